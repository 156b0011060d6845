"""From statistics to curvature: factors, decisions, inverses, block sizes, what is saved."""

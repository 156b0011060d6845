"""From gradients to preconditioned directions of the length that is asked for."""

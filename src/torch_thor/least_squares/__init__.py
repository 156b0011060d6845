"""Steps with exact curvature of losses that are sums of squares: equations and fits."""

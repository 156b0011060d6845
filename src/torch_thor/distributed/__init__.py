"""Data-parallel curvature on torch.distributed: factors are averaged, inverses never."""

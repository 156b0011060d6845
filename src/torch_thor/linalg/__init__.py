"""Pure, batched linear algebra: it knows blocks and matrices, and nothing of models."""

from torch_thor.linalg.matrices import (
    add_to_diagonal,
    diagonal_blocks,
    eigh,
    inverse_root,
    largest_eigenvalue,
    sum_of_squares,
    symmetrize,
    take,
    vector,
)

__all__ = [
    "add_to_diagonal",
    "diagonal_blocks",
    "eigh",
    "inverse_root",
    "largest_eigenvalue",
    "sum_of_squares",
    "symmetrize",
    "take",
    "vector",
]

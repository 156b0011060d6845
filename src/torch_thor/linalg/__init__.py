"""Pure, batched linear algebra: it knows blocks and matrices, and nothing of models."""

from torch_thor.linalg.matrices import (
    add_to_diagonal,
    are_nonzero,
    diagonal_blocks,
    eigh,
    inverse_root,
    largest_eigenvalue,
    norms,
    sum_of_squares,
    symmetrize,
    take,
)
from torch_thor.linalg.numbers import constants, owners, padding_of, vector

__all__ = [
    "add_to_diagonal",
    "are_nonzero",
    "constants",
    "diagonal_blocks",
    "eigh",
    "inverse_root",
    "largest_eigenvalue",
    "norms",
    "owners",
    "padding_of",
    "sum_of_squares",
    "symmetrize",
    "take",
    "vector",
]

"""Factors, the dense Fisher, damping and directions, straight from their formulas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from oracle.samples import Observed

Damping = Literal["both", "sqrt", "pi", "relative"]
Sharing = Literal["expand", "reduce"]


def factors(
    seen: Observed, sharing: Sharing = "expand", *, losses_per_sample: int = 1
) -> tuple[Tensor, Tensor]:
    """A [in, in] and G [out, out].

    expand: A = 1/(N·T) Σ_n Σ_t a aᵀ, G = 1/N Σ_n Σ_t g gᵀ.
    reduce: a is the mean and g the sum over a sample's positions; both sums divided by N.

    Args:
        seen: the layer's samples.
        sharing: how the positions of a sample are treated.
        losses_per_sample: T where every position carries a loss of its own (language models) and
            the gradients in ``seen`` are of their sum; G is then divided by N·T.
    """
    samples = len(seen.inputs)
    d_in, d_out = seen.inputs[0].shape[1], seen.output_gradients[0].shape[1]
    A = torch.zeros(d_in, d_in, dtype=torch.float64)
    G = torch.zeros(d_out, d_out, dtype=torch.float64)
    count = 0
    for a_rows, g_rows in zip(seen.inputs, seen.output_gradients, strict=True):
        if sharing == "reduce":
            pairs = [(a_rows.mean(dim=0), g_rows.sum(dim=0))]
        else:
            pairs = list(zip(a_rows, g_rows, strict=True))
        for a, g in pairs:
            A += torch.outer(a, a)
            G += torch.outer(g, g)
            count += 1
    return A / count, G / (samples * losses_per_sample)


def vector(matrix: Tensor) -> Tensor:
    """Row-major vec: entry (o, i) of W stands at o·in + i, so vec(G W A) = kron(G, A) vec(W)."""
    return matrix.reshape(-1)


def dense_fisher(seen: Observed) -> Tensor:
    """The empirical Fisher block (1/N) Σ_n vec(∇W_n) vec(∇W_n)ᵀ."""
    total = torch.zeros((), dtype=torch.float64)
    for gradient in seen.weight_gradients:
        total = total + torch.outer(vector(gradient), vector(gradient))
    return total / len(seen.weight_gradients)


def blocks_only(matrix: Tensor, split: int | None) -> Tensor:
    """Zero every entry whose row and column fall into different blocks (eq. 10).

    A split of s makes as few blocks of at most s rows as cover the matrix, all of one size but
    for the last, which may be shorter.
    """
    if split is None:
        return matrix.clone()
    blocks = math.ceil(len(matrix) / split)
    size = math.ceil(len(matrix) / blocks)
    kept = torch.zeros_like(matrix)
    for row in range(len(matrix)):
        for column in range(len(matrix)):
            if row // size == column // size:
                kept[row, column] = matrix[row, column]
    return kept


def damped(A: Tensor, G: Tensor, value: float, mode: Damping) -> tuple[Tensor, Tensor]:
    """A and G with their damping added to the diagonal."""
    mean_a, mean_g = float(A.trace()) / len(A), float(G.trace()) / len(G)
    if mode == "both":
        on_a, on_g = value, value
    elif mode == "sqrt":
        on_a, on_g = math.sqrt(value), math.sqrt(value)
    elif mode == "pi":
        pi = math.sqrt(mean_a / mean_g)
        on_a, on_g = pi * math.sqrt(value), math.sqrt(value) / pi
    else:
        on_a, on_g = value * mean_a, value * mean_g
    eye_a, eye_g = (torch.eye(len(M), dtype=torch.float64) for M in (A, G))
    return A + on_a * eye_a, G + on_g * eye_g


def inverse_power(matrix: Tensor, power: float) -> Tensor:
    """M^-power of a symmetric positive definite matrix, eigenvalue by eigenvalue."""
    if power == 1:
        inverse: Tensor = torch.linalg.inv(matrix)
        return inverse
    values, vectors = torch.linalg.eigh(matrix)
    result = torch.zeros_like(matrix)
    for index, value in enumerate(values):
        result += float(value) ** -power * torch.outer(vectors[:, index], vectors[:, index])
    return result


def direction(
    gradient: Tensor,
    A: Tensor,
    G: Tensor,
    *,
    damping: float,
    mode: Damping = "both",
    power: float = 1.0,
    split: int | None = None,
) -> Tensor:
    """(kron(Ĝ + …, Â + …))^-power vec(∇W), with the whole matrix formed; [out, in] again."""
    A_damped, G_damped = damped(A, G, damping, mode)
    whole = torch.kron(blocks_only(G_damped, split), blocks_only(A_damped, split))
    return torch.mv(inverse_power(whole, power), vector(gradient)).reshape(gradient.shape)

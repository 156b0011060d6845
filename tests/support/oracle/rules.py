"""The scalar rules around a direction: running average, trace change, norm control, EKFAC."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from oracle.samples import Observed


class RunningAverage:
    """The weighted mean of everything seen: value t has weight ρ^(latest − t)."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.seen: list[Tensor] = []

    def add(self, value: Tensor) -> Tensor:
        """Take one more value; return the average so far."""
        self.seen.append(value)
        last = len(self.seen) - 1
        weights = [self.decay ** (last - index) for index in range(len(self.seen))]
        if self.decay == 0:
            weights[-1] = 1.0
        total = torch.zeros_like(value)
        for weight, one in zip(weights, self.seen, strict=True):
            total = total + weight * one
        return total / sum(weights)


def relative_change(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], damping: float
) -> float:
    """Δ of eq. 8 with F = A ⊗ G formed in full: ||tr(F' + λI)| − |tr(F + λI)|| / |tr(F + λI)|."""
    traces = []
    for A, G in (before, after):
        F = torch.kron(A, G)
        traces.append(abs(float((F + damping * torch.eye(len(F), dtype=F.dtype)).trace())))
    return abs(traces[1] - traces[0]) / traces[0]


def kl_clip_factor(
    directions: Sequence[Tensor], gradients: Sequence[Tensor], lr: float, kl: float
) -> float:
    """min(1, sqrt(κ / (α² Σ ⟨direction, gradient⟩))): the factor that all directions share."""
    size = 0.0
    for ours, gradient in zip(directions, gradients, strict=True):
        for x, y in zip(ours.flatten(), gradient.flatten(), strict=True):
            size += float(x) * float(y)
    if size <= 0:
        return 1.0
    return min(1.0, math.sqrt(kl / (lr * lr * size)))


def grafted(direction: Tensor, base: Tensor) -> Tensor:
    """The direction with the norm of the base rule's step."""
    length = math.sqrt(sum(float(x) ** 2 for x in direction.flatten()))
    wanted = math.sqrt(sum(float(x) ** 2 for x in base.flatten()))
    return direction * (wanted / length)


def with_rms(direction: Tensor, rms: float) -> Tensor:
    """The direction scaled so that the root of its mean square is ``rms``."""
    mean = sum(float(x) ** 2 for x in direction.flatten()) / direction.numel()
    return direction * (rms / math.sqrt(mean))


class EvenedRows:
    """NorMuon's rule: rows ÷ √(running average of their mean square over the matrix's own)."""

    def __init__(self, decay: float, rows: int) -> None:
        self.averages = [RunningAverage(decay) for _ in range(rows)]

    def __call__(self, direction: Tensor) -> Tensor:
        """Take one more direction ``[rows, columns]``; return it with its rows divided."""
        mean = sum(float(x) ** 2 for x in direction.flatten()) / direction.numel()
        rows = []
        for average, row in zip(self.averages, direction, strict=True):
            share = sum(float(x) ** 2 for x in row) / len(row) / mean
            rows.append(row / average.add(torch.tensor(share, dtype=torch.float64)).sqrt())
        return torch.stack(rows)


def ekfac_direction(
    seen: Observed,
    gradient: Tensor,
    A: Tensor,
    G: Tensor,
    *,
    damping: float,
    power: float = 1.0,
    positions_apart: bool = False,
) -> Tensor:
    """EKFAC: the exact diagonal of the Fisher in the eigenbasis of A ⊗ G, damped by λ.

    The full basis ``kron(Q_G, Q_A)`` is formed; scaling k is (1/N) Σ_n (q_kᵀ vec(∇W_n))². With
    ``positions_apart`` the sum goes over every g aᵀ of a sample's positions on its own.
    """
    basis = torch.kron(torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1])
    scalings = torch.zeros(basis.shape[1], dtype=torch.float64)
    gradients = seen.weight_gradients
    if positions_apart:
        pairs = zip(seen.output_gradients, seen.inputs, strict=True)
        gradients = [torch.outer(g, a) for gs, rows in pairs for g, a in zip(gs, rows, strict=True)]
    for one in gradients:
        scalings += (basis.T @ one.reshape(-1)) ** 2
    scalings /= len(seen.weight_gradients)
    rotated = basis.T @ gradient.reshape(-1)
    return (basis @ (rotated / (scalings + damping) ** power)).reshape(gradient.shape)

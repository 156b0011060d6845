"""How factors are applied to a gradient: inverse roots, or an eigenvalue-corrected basis.

Both act on gradients stacked as ``[L, k, out, columns]``, block by block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor import linalg
from torch_thor.factors import OneHotBatch, add_to_columns
from torch_thor.partition import Partition

if TYPE_CHECKING:
    from torch_thor.factors import FactorBatch, FactorStack

Solution = tuple[tuple[Tensor, ...], Tensor]
Solutions = list[Solution]
Kernel = Callable[[Tensor], Solution]


@dataclass(frozen=True)
class Solver:
    """How blocks are factorized.

    Args:
        kernel: Factorizes a stack ``[b, s, s]``.
        symmetric: Whether its results are symmetric matrices.
        power: p of inverse roots.
    """

    kernel: Kernel
    symmetric: bool
    power: float


@dataclass(frozen=True)
class Factorization:
    """Blocks to factorize and where the results belong.

    Args:
        matrices: ``[l, k, n, s, s]``.
        targets: Results' stores, each ``[L, k, n, ...]``.
        slots: The l layers of the stack that ``matrices`` belong to.
        owned: Whether only this rank has these blocks.
    """

    matrices: Tensor
    targets: tuple[Tensor, ...]
    slots: list[int]
    owned: bool = False


def factorize(
    jobs: Iterable[Factorization], solve: Callable[[list[Tensor]], Solutions]
) -> list[list[bool]]:
    """Solves all jobs, stacked by block size, and stores what succeeded.

    Args:
        jobs: What to factorize.
        solve: Factorizes stacks ``[b, s, s]``, one for each size, type and device.

    Returns:
        For every job, for each of its slots, whether all its blocks succeeded.
    """
    jobs = list(jobs)
    alike: dict[tuple[int, torch.dtype, torch.device], list[int]] = defaultdict(list)
    for number, job in enumerate(jobs):
        blocks = job.matrices
        alike[blocks.shape[-1], blocks.dtype, blocks.device].append(number)
    success: list[list[bool]] = [[] for _ in jobs]
    stacked = []
    for numbers in alike.values():
        parts = [jobs[number].matrices.flatten(0, 2) for number in numbers]
        stacked.append(torch.cat(parts) if len(parts) > 1 else parts[0])
    for numbers, (results, good) in zip(alike.values(), solve(stacked), strict=True):
        counts = [jobs[number].matrices.shape[:3].numel() for number in numbers]
        pieces = [torch.split(result, counts) for result in results]
        marks = iter(good.tolist())  # the host waits once for all blocks of a size
        for place, number in enumerate(numbers):
            fine = list(islice(marks, counts[place]))
            success[number] = _store(jobs[number], [piece[place] for piece in pieces], fine)
    return success


def solve_all(stacks: Sequence[Tensor], solver: Solver) -> Solutions:
    """Factorizes stacks ``[b, s, s]`` in this process."""
    return [solve(stack, solver.kernel) for stack in stacks]


def solve(matrices: Tensor, kernel: Kernel) -> Solution:
    """Factorizes a stack ``[b, s, s]``; blocks that fail are tried again in float64.

    Returns:
        The kernel's results, and a mask ``[b]`` of the blocks that succeeded.
    """
    results, good = kernel(matrices)
    if matrices.dtype == torch.float64 or bool(good.all()):
        return results, good
    bad = (~good).nonzero().squeeze(1)
    repeated, repaired = kernel(matrices[bad].double())
    for result, again in zip(results, repeated, strict=True):
        rounded = again.to(result.dtype)
        repaired = repaired & rounded.isfinite().flatten(1).all(1)
        result[bad] = rounded
    good[bad] = repaired
    return results, good


def _store(job: Factorization, results: list[Tensor], good: list[bool]) -> list[bool]:
    shape = job.matrices.shape[:3]
    blocks = shape[1:].numel()
    success = [all(good[first : first + blocks]) for first in range(0, len(good), blocks)]
    kept = [place for place, fine in enumerate(success) if fine]
    for target, result in zip(job.targets, results, strict=True) if kept else ():
        stacked = result.view(*shape, *result.shape[1:])
        places = [target[job.slots[place]] for place in kept]
        torch._foreach_copy_(places, [stacked[place] for place in kept])
    return success


def multiply_left(roots: Tensor, cut: Partition, matrices: Tensor) -> Tensor:
    """Returns diag(roots) M for roots ``[B, n, s, s]`` and M ``[B, out, columns]``."""
    batch, rows, columns = matrices.shape
    if cut.block == 1:
        return matrices * roots.flatten(1).unsqueeze(2)
    if cut.count == 1:
        return torch.bmm(roots[:, 0], matrices)
    padded = pad(matrices, (0, 0, 0, cut.padding)) if cut.padding else matrices
    product = torch.bmm(roots.flatten(0, 1), padded.view(-1, cut.block, columns))
    product = product.view(batch, cut.padded, columns)
    return product[:, :rows] if cut.padding else product


def multiply_right(matrices: Tensor, cut: Partition, roots: Tensor) -> Tensor:
    """Returns M diag(roots) for M ``[B, out, columns]`` and roots ``[B, n, s, s]``."""
    batch, rows, _ = matrices.shape
    if cut.block == 1:
        return matrices * roots.flatten(1).unsqueeze(1)
    if cut.count == 1:
        return torch.bmm(matrices, roots[:, 0])
    padded = pad(matrices, (0, cut.padding)) if cut.padding else matrices
    tiles = padded.reshape(batch, rows, cut.count, cut.block).transpose(1, 2)
    product = torch.bmm(tiles.reshape(-1, rows, cut.block), roots.flatten(0, 1))
    product = product.view(batch, cut.count, rows, cut.block).transpose(1, 2)
    product = product.reshape(batch, rows, cut.padded)
    return product[..., : cut.size] if cut.padding else product


class InverseRoots:
    """(A + ..)^-p and (G + ..)^-p of every block (paper, eq. 6 at p = 1).

    Args:
        a: Input factors.
        g: Output gradient factors.
        power: p, 1 or 1/2.
        dtype: Type of the stored roots and of the products.
    """

    def __init__(self, a: FactorStack, g: FactorStack, power: float, dtype: torch.dtype) -> None:
        """Allocates the roots."""
        self.power = power
        self._partitions = (a.partition, g.partition)
        self.a = torch.zeros_like(a.blocks, dtype=dtype)
        self.g = torch.zeros_like(g.blocks, dtype=dtype)
        self._flat = (self.a.flatten(0, 1), self.g.flatten(0, 1))

    def jobs(
        self, a: FactorStack, g: FactorStack, slots: list[int], shifts: tuple[Tensor, Tensor]
    ) -> list[Factorization]:
        """Returns what has to be factorized to refresh some layers."""
        return [
            Factorization(a.damped(slots, shifts[0]), (self.a,), slots),
            Factorization(g.damped(slots, shifts[1]), (self.g,), slots),
        ]

    def solver(self, condition: float) -> Solver:
        """Returns what factorizes damped blocks, given a bound on their condition numbers."""

        def kernel(matrices: Tensor) -> Solution:
            roots, good = linalg.inverse_root(matrices, self.power, condition)
            return (roots,), good

        return Solver(kernel, symmetric=True, power=self.power)

    def direction(self, matrices: Tensor, slots: list[int] | None) -> Tensor:
        """Preconditions ``[l, k, out, columns]``; ``slots`` names the layers, None all."""
        a, g = self._flat
        if slots is not None:
            a, g = (linalg.take(roots, slots).flatten(0, 1) for roots in (self.a, self.g))
        left = multiply_left(g, self._partitions[1], matrices.flatten(0, 1))
        return multiply_right(left, self._partitions[0], a).view(matrices.shape)

    def band(self, matrices: Tensor, slot: int, blocks: slice) -> Tensor:
        """Preconditions the rows of some blocks of G of one layer that is one matrix.

        Args:
            matrices: ``[1, rows, columns]``, padded to whole blocks both ways.
            slot: The layer.
            blocks: The blocks of G.
        """
        a, g = self.a[slot], self.g[slot, :, blocks]
        rows = Partition(matrices.shape[1], g.shape[-1])
        columns = Partition(matrices.shape[2], a.shape[-1])
        return multiply_right(multiply_left(g, rows, matrices), columns, a)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a checkpoint has to hold."""
        return self.a, self.g


class EigenBasis:
    """EKFAC: eigenbases of A and G with second moments of the gradient in that basis.

    Scalings S = E[(Q_Gᵀ ∇W Q_A)²] take the place of the products of eigenvalues
    (George et al. 2018). Rows count as samples, as the factors' "expand" does.

    Args:
        a: Input factors.
        g: Output gradient factors.
        power: p, 1 or 1/2.
        dtype: Type of the stored bases and of the products.
    """

    def __init__(self, a: FactorStack, g: FactorStack, power: float, dtype: torch.dtype) -> None:
        """Allocates bases, eigenvalues and scalings."""
        self.power = power
        self._padding = (a.partition.padding, g.partition.padding)
        # In the basis, padded rows are ordinary rows.
        self._partitions = tuple(Partition(p.padded, p.block) for p in (a.partition, g.partition))
        self.a = torch.zeros_like(a.blocks, dtype=dtype)
        self.g = torch.zeros_like(g.blocks, dtype=dtype)
        self.values_a = torch.zeros_like(a.blocks[..., 0])
        self.values_g = torch.zeros_like(g.blocks[..., 0])
        shape = (*a.blocks.shape[:2], g.partition.padded, a.partition.padded)
        self.scalings = a.blocks.new_ones(shape)
        self.inverse = a.blocks.new_ones(shape)

    def jobs(
        self,
        a: FactorStack,
        g: FactorStack,
        slots: list[int],
        shifts: tuple[Tensor, Tensor],  # noqa: ARG002 (damping enters through the scalings)
    ) -> list[Factorization]:
        """Returns what has to be factorized to refresh some layers (undamped)."""
        zero = torch.zeros_like(a.traces[: len(slots)])
        return [
            Factorization(a.damped(slots, zero), (self.a, self.values_a), slots),
            Factorization(g.damped(slots, zero), (self.g, self.values_g), slots),
        ]

    def solver(self, condition: float) -> Solver:  # noqa: ARG002 (it has no say here)
        """Returns what factorizes blocks."""

        def kernel(matrices: Tensor) -> Solution:
            values, vectors = linalg.eigh(linalg.symmetrize(matrices))
            good = values.isfinite().all(-1) & vectors.isfinite().flatten(-2).all(-1)
            return (vectors, values.clamp_min(0)), good

        return Solver(kernel, symmetric=False, power=self.power)

    def reset_scalings(self, slot: int) -> None:
        """A new basis: start again from K-FAC's estimate, the products of eigenvalues."""
        values_a, values_g = self.values_a[slot].flatten(1), self.values_g[slot].flatten(1)
        self.scalings[slot] = values_g.unsqueeze(-1) * values_a.unsqueeze(-2)

    def moments(self, slot: int, a: FactorBatch, g: FactorBatch) -> Tensor:
        """Second moments of a batch's gradients in the current basis: ``[k, out, columns]``."""
        total = torch.zeros_like(self.scalings[slot])
        dtype = total.dtype
        (cut_a, cut_g), (pad_a, pad_g) = self._partitions, self._padding
        basis_a, basis_g = self.a[slot].to(dtype), self.g[slot].to(dtype)
        for rows_a, rows_g, weight in zip(a.rows, g.rows, a.weights, strict=True):
            side_g = multiply_right(pad(rows_g.to(dtype), (0, pad_g)), cut_g, basis_g)
            if isinstance(a, OneHotBatch):
                add_to_columns(total, rows_a, side_g.square())
                continue
            side_a = multiply_right(pad(rows_a.to(dtype), (0, pad_a)), cut_a, basis_a)
            total += side_g.square().mT @ side_a.square() * weight
        return total * g.scale

    def fold_scalings(self, slot: int, moments: Tensor, keep: float) -> None:
        """Folds second moments in the current basis into the average."""
        self.scalings[slot].lerp_(moments, 1.0 - keep)

    def damp(self, slot: int, shift: Tensor) -> None:
        """Recomputes (S + shift)^-p of a layer; ``shift`` is ``[k]``.

        Where a shift leaves less than rounding does (of a square: ε² of the largest), that is
        what is inverted: a direction that no gradient had must not become infinite.
        """
        damped = self.scalings[slot] + shift[:, None, None]
        numbers = torch.finfo(damped.dtype)
        least = (damped.amax((-2, -1), keepdim=True) * numbers.eps**2).clamp_min(numbers.tiny)
        self.inverse[slot] = torch.maximum(damped, least).pow(-self.power)

    def direction(self, matrices: Tensor, slots: list[int] | None) -> Tensor:
        """Preconditions ``[l, k, out, columns]``; ``slots`` names the layers, None all."""
        a, g, inverse = self.a, self.g, self.inverse
        if slots is not None:
            a, g, inverse = (linalg.take(one, slots) for one in (a, g, inverse))
        shape = matrices.shape
        (cut_a, cut_g), (pad_a, pad_g) = self._partitions, self._padding
        flat = pad(matrices.flatten(0, 1), (0, pad_a, 0, pad_g))
        flat_a, flat_g = a.flatten(0, 1), g.flatten(0, 1)
        flat = multiply_right(multiply_left(flat_g.mT, cut_g, flat), cut_a, flat_a)
        flat = flat * inverse.flatten(0, 1)
        flat = multiply_right(multiply_left(flat_g, cut_g, flat), cut_a, flat_a.mT)
        return flat[:, : shape[-2], : shape[-1]].reshape(shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a checkpoint has to hold."""
        return self.a, self.g, self.values_a, self.values_g, self.scalings, self.inverse


Inverses = EigenBasis | InverseRoots

"""From decided layers to renewed curvature: averages, damped blocks, roots, a batch at a time."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

import torch

from torch_thor.curvature.block_batch import Member, batches
from torch_thor.curvature.due import DueMatrices
from torch_thor.distributed.buckets import Part
from torch_thor.linalg.factorize import rounded, solve
from torch_thor.linalg.foreach import is_asynchronous

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from torch import Tensor

    from torch_thor.curvature.block_batch import BlockBatch
    from torch_thor.curvature.due import DueLayer
    from torch_thor.distributed.communicator import Communicator
    from torch_thor.linalg.factorize import Solution


def gather(due_layers: list[DueLayer], ranks: Communicator) -> None:
    """Forms the blocks of all ranks' statistics, for a rule that compares matrices."""
    members = [_members(c, 0) for c in due_layers]
    summed = ranks.reduce(Part(one.compute, symmetric=True) for own in members for one in own)
    for c in due_layers:
        c.blocks = c.stack.own((next(summed), next(summed)))


class Renewal:
    """Renews the curvature of layers of one type and device.

    Args:
        due: The layers, l of them, whose statistics enter their averages.
        ranks: The other ranks.
        product: How the trace of eq. 8 is read, see ``TraceRule``.
        looks: Whether a gradient of zeros says that it was zeroed after its backward.

    Attributes:
        due: The layers.
        trace: tr(F + λI) of each layer with its new statistics, ``[l]``.
        counts: Whether they are finite, see ``DueMatrices``, ``[l]``; others stay as they were.
        succeeded: Whether all that was due of a layer could be factorized, ``[l]``; what failed
            keeps its last inverse.
    """

    def __init__(
        self, due: list[DueLayer], ranks: Communicator, *, product: bool, looks: bool
    ) -> None:
        self.due, self._ranks, self._product = due, ranks, product
        self._weights = [c.record.weight for c in due]
        self._matrices = DueMatrices(due, looks=looks)
        self.counts = self._matrices.counts
        self.trace = self._matrices.damped_traces(product=product)
        self._members = [one for number, c in enumerate(due) for one in _members(c, number)]
        # In an eigenbasis, padding would be sorted in among the others.
        self._padded = not due[0].stack.is_corrected
        found = batches(self._members, padded=self._padded)
        averages = self._averages(found)
        self._matrices.store()
        for c in due:
            c.stack.note_folded(c.slot)
        refreshed = [one for one in self._members if one.due.refresh]
        if len(refreshed) < len(self._members):
            found, averages = self._loaded(refreshed)
        self.succeeded = self._factorize(found, averages)

    def _loaded(self, members: Sequence[Member]) -> tuple[list[BlockBatch], list[Tensor]]:
        """The running averages of some factors."""
        found = batches(members, padded=self._padded)
        return found, [batch.load([one.blocks for one in batch.members]) for batch in found]

    def outcome(self) -> Tensor:
        """Of each layer: trace, whether statistics are finite and count, success: ``[4, l]``."""
        flags = (self._matrices.finite, self.counts, self.succeeded)
        return torch.stack((self.trace, *flags)).to(torch.float64)

    def undo(self, number: int) -> None:
        """Notes that a layer's statistics did not count."""
        self.due[number].record.weight = self._weights[number]

    def of_zeros(self, numbers: Sequence[int]) -> Renewal:
        """Renews layers whose gradient is zero for another reason than that it was zeroed."""
        own = [self.due[number] for number in numbers]
        return Renewal(own, self._ranks, product=self._product, looks=False)

    @property
    def can_repair(self) -> bool:
        """Whether ``repair`` may help; several ranks have tried that already."""
        return self._ranks.size == 1

    def repair(self, numbers: Container[int]) -> None:
        """Tries some layers that failed once more, in float64."""
        found, averages = self._loaded([one for one in self._members if one.number in numbers])
        self._matrices = DueMatrices(self.due, fresh=False)
        self.succeeded |= self._factorize(found, averages, wide=True)

    def _averages(self, found: Sequence[BlockBatch]) -> list[Tensor]:
        """Folds the blocks of all ranks' statistics into the running averages."""
        news = [batch.grams() for batch in found]
        views = {
            one: view
            for batch, new in zip(found, news, strict=True)
            for one, view in zip(batch.members, batch.views(new), strict=True)
        }
        self._sum(views)
        averages = []
        for batch, new in zip(found, news, strict=True):
            blocks = [one.blocks for one in batch.members]
            old = batch.load(blocks)
            kept = batch.of_layers(self.counts).view(-1, 1, 1)
            _lerp(batch, old, torch.where(kept, new, old))
            batch.store(blocks, old)
            averages.append(old)
        return averages

    def _sum(self, views: dict[Member, Tensor]) -> None:
        """Sums over ranks, and fills in what was not formed together with others."""
        for one in self._members:
            if one.due.blocks is not None:
                views[one].copy_(one.due.blocks[one.side])
        asked = [one for one in self._members if one.due.blocks is None]
        parts = [
            Part(one.compute if one.rows is None else partial(_same, views[one]), symmetric=True)
            for one in asked
        ]
        for one, total in zip(asked, self._ranks.reduce(parts), strict=True):
            if total is not views[one]:
                shard = one.due.stack.shard
                views[one].copy_(shard.take(total) if shard and one.side else total)

    def _factorize(
        self, found: Sequence[BlockBatch], averages: Sequence[Tensor], *, wide: bool = False
    ) -> Tensor:
        """Factorizes damped averages, which it may write to; keeps what succeeded, ``[l]``."""
        if not found:
            return self.counts
        least = [self._damp(batch, own) for batch, own in zip(found, averages, strict=True)]
        condition = self._condition(found, averages, least)
        if wide:
            wider = self._solve(found, [average.double() for average in averages], condition)
            solutions = [rounded(one, self.trace.dtype) for one in wider]
        else:
            solutions = self._solve(found, averages, condition)
        failed = torch.zeros_like(self.trace)
        for batch, (_, good) in zip(found, solutions, strict=True):
            failed.index_add_(0, batch.layer_of_block, (~good).to(failed.dtype))
        succeeded = self._everywhere((failed == 0) & self.counts)
        for batch, (results, _) in zip(found, solutions, strict=True):
            kept = batch.of_layers(succeeded)
            targets = zip(*[one.targets for one in batch.members], strict=True)
            for result, own in zip(results, targets, strict=True):
                before = batch.load(own)
                fresh = kept.view(-1, *[1] * (result.dim() - 1))
                batch.store(own, torch.where(fresh, result, before))
        return succeeded

    def _damp(self, batch: BlockBatch, average: Tensor) -> Tensor:
        """Adds shifts to the diagonals; rows that are padding get a factor's mean eigenvalue.

        Returns what no eigenvalue of a block is less than, ``[B]``.
        """
        starts = self._matrices.starts
        added = batch.of_matrices(self._matrices.shifts, starts).unsqueeze(1)
        if self.due[0].stack.is_corrected:  # scalings are damped in the place of factors
            added = torch.zeros_like(added)
        if batch.is_padded:
            means = batch.of_matrices(self._matrices.means, starts).unsqueeze(1)
            added = torch.where(batch.unused(), means + added, added)
        average.diagonal(dim1=-2, dim2=-1).add_(added)
        return added.amin(1)

    def _condition(
        self, found: Sequence[BlockBatch], averages: Sequence[Tensor], least: Sequence[Tensor]
    ) -> float:
        """A bound on all condition numbers; what is on a device is not waited for."""
        known = max(c.stack.condition(c.damping) for c in self.due if c.refresh)
        # Where ranks own blocks alone, they would not see the same.
        if is_asynchronous(least[0].device) or any(one.members[0].is_owned for one in found):
            return known
        pairs = zip(averages, least, strict=True)
        # No eigenvalue exceeds the largest sum of a row.
        most = [(own.abs().sum(-1).amax(-1) / low).amax() for own, low in pairs]
        seen = float(torch.stack(most).amax())
        return seen if 1.0 <= seen < known else known

    def _solve(
        self, found: Sequence[BlockBatch], averages: Sequence[Tensor], condition: float
    ) -> list[Solution]:
        """Factorizes what all ranks have together, and what this one owns alone."""
        refreshed = next(c for c in self.due if c.refresh)
        solver = refreshed.stack.inverses.solver(condition)
        owned = [batch.members[0].is_owned for batch in found]
        shared = [average for average, own in zip(averages, owned, strict=True) if not own]
        of_all = iter(self._ranks.solve(shared, solver) if shared else [])
        return [
            solve(average, solver.kernel) if own else next(of_all)
            for average, own in zip(averages, owned, strict=True)
        ]

    def _everywhere(self, succeeded: Tensor) -> Tensor:
        """Of layers whose rows the ranks share out: whether they succeeded on all ranks."""
        sharded = [n for n, c in enumerate(self.due) if c.refresh and c.stack.shard is not None]
        if not sharded:
            return succeeded
        here = succeeded.tolist()
        everywhere = dict(zip(sharded, self._ranks.all([here[n] for n in sharded]), strict=True))
        flags = [everywhere.get(n, fine) for n, fine in enumerate(here)]
        return torch.tensor(flags, device="cpu").to(succeeded.device, non_blocking=True)


def _members(due: DueLayer, number: int) -> tuple[Member, Member]:
    return Member(due, number, 0), Member(due, number, 1)


def _same(value: Tensor) -> Tensor:
    return value


def _lerp(batch: BlockBatch, old: Tensor, new: Tensor) -> None:
    """Moves averages by each layer's share of the new statistics."""
    shares = [1.0 - one.due.stack.keep(one.due.slot) for one in batch.members]
    if len(set(shares)) == 1:
        old.lerp_(new, shares[0])
        return
    views = list(zip(batch.views(old), batch.views(new), strict=True))
    alike: dict[float, list[int]] = defaultdict(list)
    for place, share in enumerate(shares):
        alike[share].append(place)
    for share, places in alike.items():
        own = [views[place] for place in places]
        torch._foreach_lerp_([x for x, _ in own], [y for _, y in own], share)


def correct(due_layers: Sequence[DueLayer], renewed: list[DueLayer], ranks: Communicator) -> None:
    """EKFAC: renews the scalings of due layers whose statistics, or whose basis, changed."""
    new = {id(c) for c in renewed}
    changed = [
        c
        for c in due_layers
        if c.stack.is_corrected and (id(c) in new or (c.fold and not c.refresh and c.record.ready))
    ]
    summed = ranks.reduce(
        Part(partial(c.stack.moments, c.slot, c.statistics.batch), symmetric=False) for c in changed
    )
    for c, moments in zip(changed, summed, strict=True):
        c.stack.correct(c.slot, c.damping, moments, new=id(c) in new)

"""From decided due_layers to renewed curvature: fold, factorize, correct."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch_thor.distributed.buckets import Part
from torch_thor.linalg.factorize import factorize, solve_all
from torch_thor.options.errors import CurvatureError
from torch_thor.options.notices import warn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch_thor.curvature.decisions import DueLayer
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.distributed.communicator import Communicator
    from torch_thor.linalg.factorize import Factorization, Solver, Success


def fold(due_layers: Iterable[DueLayer], ranks: Communicator) -> None:
    """Folds the statistics of all ranks into the running averages.

    Args:
        due_layers: Those whose statistics are wanted.
        ranks: Where the other ranks are reached.
    """
    chosen = list(due_layers)
    summed = ranks.reduce(_blocks(c for c in chosen if c.blocks is None))
    for c in chosen:
        c.stack.fold(c.slot, c.blocks or (next(summed), next(summed)), c.statistics.traces)


def gather(due_layers: Iterable[DueLayer], ranks: Communicator) -> None:
    """Forms the blocks of all ranks' statistics, for a rule that compares matrices."""
    chosen = list(due_layers)
    summed = ranks.reduce(_blocks(chosen))
    for c in chosen:
        c.blocks = (next(summed), next(summed))


def _blocks(due_layers: Iterable[DueLayer]) -> Iterator[Part]:
    for c in due_layers:
        a, g = c.statistics.batch
        yield Part(partial(a.blocks, c.stack.a.partition, c.stack.dtype), symmetric=True)
        yield Part(partial(c.stack.blocks_g, g), symmetric=True)


def refresh(
    stacks: Iterable[LayerStack], due_layers: list[DueLayer], ranks: Communicator, tolerated: int
) -> list[DueLayer]:
    """Factorizes anew what belongs to some due_layers, block sizes of all stacks together.

    Args:
        stacks: All stacks of the engine.
        due_layers: Those to refresh.
        ranks: Where the other ranks are reached.
        tolerated: Failures in a row of one layer before an error.

    Returns:
        Those that succeeded.

    Raises:
        CurvatureError: Where a layer failed more often than is tolerated.
    """
    chosen = [(s, [c for c in due_layers if c.stack is s]) for s in stacks]
    chosen = [(stack, due) for stack, due in chosen if due]
    if not chosen:
        return []
    jobs = [stack.jobs([c.slot for c in due]) for stack, due in chosen]
    condition = max(stack.condition([c.slot for c in due]) for stack, due in chosen)
    solver = chosen[0][0].inverses.solver(condition)
    success = _factorize([job for of_stack in jobs for job in of_stack], solver, ranks)
    renewed = []
    for of_stack, (_, due) in zip(jobs, chosen, strict=True):
        for place, c in enumerate(due):
            if all(success[job][place] for job in of_stack):
                c.record.trace, c.record.failures = c.trace, 0
                c.stack.ready[c.slot] = True
                renewed.append(c)
            else:
                _fail(c, tolerated)
    return renewed


def _factorize(jobs: list[Factorization], solver: Solver, ranks: Communicator) -> Success:
    """Factorizes what all ranks have together, and what this one owns alone.

    Returns:
        For every job, for each of its slots, whether all ranks succeeded.
    """
    owned = [job for job in jobs if job.owned]
    shared = (job for job in jobs if not job.owned)
    success = factorize(shared, lambda blocks: ranks.solve(blocks, solver))
    if owned:
        alone = factorize(owned, partial(solve_all, solver=solver))
        everywhere = iter(ranks.all([fine for job in owned for fine in alone[job]]))
        success |= {job: [next(everywhere) for _ in job.slots] for job in owned}
    return success


def _fail(due_layer: DueLayer, tolerated: int) -> None:
    record = due_layer.record
    record.failures += 1
    message = (
        f"The factors of layer {due_layer.layer.name!r} could not be inverted "
        f"({record.failures} times in a row); its last good inverse stays. "
        "Raise damping, or exclude the layer."
    )
    if record.failures > tolerated:
        raise CurvatureError(message)
    warn(message)


def correct(due_layers: list[DueLayer], renewed: list[DueLayer], ranks: Communicator) -> None:
    """EKFAC: renews the scalings of layers whose statistics or whose basis changed.

    Args:
        due_layers: All that were due.
        renewed: Those among them that have a new basis.
        ranks: Where the other ranks are reached.
    """
    new = {id(c) for c in renewed}
    changed = [
        c
        for c in due_layers
        if c.stack.is_corrected and (id(c) in new or (c.fold and not c.refresh and c.is_ready))
    ]
    summed = ranks.reduce(
        Part(partial(c.stack.moments, c.slot, c.statistics.batch), symmetric=False) for c in changed
    )
    for c, moments in zip(changed, summed, strict=True):
        c.stack.correct(c.slot, moments, new=id(c) in new)

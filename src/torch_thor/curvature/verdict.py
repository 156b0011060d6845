"""What a refresh has come to, on its way from the device to the records of its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_thor.curvature.decisions import decide, relative_change
from torch_thor.curvature.due import lots
from torch_thor.curvature.refresh import Renewal
from torch_thor.options.errors import CurvatureError
from torch_thor.options.notices import warn
from torch_thor.options.trace_rule import Decision, LayerDecision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.due import DueLayer
    from torch_thor.distributed.communicator import Communicator
    from torch_thor.options.trace_rule import TraceRule


def renew(
    due: Sequence[DueLayer], rule: TraceRule | None, ranks: Communicator, step: int
) -> Verdict:
    """Decides about layers with new statistics, folds these in, and refreshes what is due."""
    if rule is not None:
        decide(due, rule, ranks)
    product = rule is not None and rule.damped_trace == "product"
    # Of several ranks each has looked at its own gradients.
    alone = ranks.size == 1
    renewals = [
        Renewal(lot, ranks, product=product, looks=alone)
        for lot in lots([one for one in due if one.fold])
    ]
    return Verdict(due, renewals, step)


class Verdict:
    """Which layers have new curvature; the device knows first.

    Statistics that are not finite never reach a factor: the layer is kept. Until the verdict is
    read, records say that everything succeeded.

    Args:
        due: All layers that were due.
        renewals: Those of them that were folded or refreshed.
        step: Number of the step.

    Attributes:
        due: The same.
        step: The same.
    """

    def __init__(self, due: Sequence[DueLayer], renewals: Sequence[Renewal], step: int) -> None:
        self.due, self._renewals, self.step = due, renewals, step
        found = [renewal.outcome() for renewal in renewals]
        self._found = [one.to("cpu", non_blocking=True) for one in found]
        devices = {one.device for one in found if one.device.type == "cuda"}
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]

    @property
    def can_wait(self) -> bool:
        """Whether nothing depends on it before the next refresh."""
        on_device = all(r.trace.device.type != "cpu" for r in self._renewals)
        return on_device and all(
            c.record.ready and not c.stack.is_corrected for r in self._renewals for c in r.due
        )

    def outlook(self) -> Outlook:
        """Returns what it will say, for somebody who is not to wait now."""
        layers = [[c.layer if c.refresh else None for c in r.due] for r in self._renewals]
        return Outlook(self.step, tuple(zip(layers, self._found, strict=True)), tuple(self._events))

    def read(self, tolerated: int) -> list[DueLayer]:
        """Takes it into the records; returns the layers that were refreshed.

        Args:
            tolerated: Failures of a layer in a row before an error.

        Raises:
            CurvatureError: Where a layer failed more often than is tolerated.
        """
        for event in self._events:
            event.synchronize()
        renewed: list[DueLayer] = []
        failed: list[DueLayer] = []
        waiting = list(zip(self._renewals, self._found, strict=True))
        for renewal, values in waiting:  # which may grow
            again = self._take(renewal, values.tolist(), renewed, failed)
            if again:
                more = renewal.of_zeros(again)
                waiting.append((more, more.outcome()))
        for c in failed:
            _fail(c, tolerated)
        return renewed

    def _take(
        self,
        renewal: Renewal,
        values: list[list[float]],
        renewed: list[DueLayer],
        failed: list[DueLayer],
    ) -> list[int]:
        """Sorts the layers of a renewal; returns those that were left out and should not be."""
        traces, finite, counts, succeeded = values
        numbers = range(len(renewal.due))
        missed = {n for n in numbers if renewal.due[n].refresh and counts[n] > succeeded[n]}
        if missed and renewal.can_repair:
            renewal.repair(missed)
            succeeded = renewal.succeeded.tolist()
        again = []
        for number, c in enumerate(renewal.due):
            if not counts[number]:
                renewal.undo(number)
                if finite[number] and not c.moves:
                    again.append(number)
                else:
                    c.fold, c.decision = False, Decision.KEEP
            elif c.refresh:
                record = c.record
                if math.isinf(c.change) and record.trace is not None:
                    c.change = relative_change(traces[number], record.trace)
                record.change = c.change
                if succeeded[number]:
                    record.trace, record.failures, record.ready = traces[number], 0, True
                    record.renewed = self.step
                (renewed if succeeded[number] else failed).append(c)
        return again

    def reports(self) -> tuple[LayerDecision, ...]:
        """The decisions that were due, once the verdict was read."""
        return tuple(one.report(self.step) for one in self.due if one.refresh)


@dataclass(frozen=True, eq=False)
class Outlook:
    """What a refresh has come to, without its statistics and what follows from it.

    Args:
        step: Number of the step.
        found: Layers, ``None`` where one was not refreshed, and what the device found of them.
        events: After which that is known.
    """

    step: int
    found: tuple[tuple[list[TrackedLayer | None], Tensor], ...]
    events: tuple[torch.cuda.Event, ...]

    def read(self) -> list[tuple[TrackedLayer, float, bool]]:
        """Layers that were refreshed, their new traces, and whether it succeeded; waits."""
        for event in self.events:
            event.synchronize()
        return [
            (layer, trace, bool(succeeded))
            for layers, values in self.found
            for layer, (trace, _, counts, succeeded) in zip(layers, values.T.tolist(), strict=True)
            if layer is not None and counts
        ]


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

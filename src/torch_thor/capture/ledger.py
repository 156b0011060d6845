"""Which calls stand behind the gradient that is in ``.grad``: only these are statistics of a step.

A call is written down when the gradient of its output arrives, before the weight's own does. When
that backward has ended, the tensor that it left in ``.grad`` is remembered, weakly and with its
version; the calls count as long as that tensor stays there and is not zeroed. So a gradient that is
dropped, by ``zero_grad`` of whomever, by ``None`` or by another tensor, takes its calls along.
"""

from __future__ import annotations

import copy
import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdRef

from torch_thor.capture.autograd import NO_TASK, running_backward
from torch_thor.layers.shards import is_dtensor, local

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from torch_thor.capture.calls import Call

_MOST_DRAWS = 64  # whose forwards had no backward of their own
_MOST_SIGNS = 8  # that wait to be read from the device


class _Mark:
    """A gradient as it was when it was looked at, held weakly; ``None`` is a mark of its own.

    Calls are forgotten as soon as the gradient is.
    """

    def __init__(self, gradient: Tensor | None, calls: list[Call] | None = None) -> None:
        self._reference: WeakIdRef | None = None
        self._version, self._place = -1, 0
        if gradient is not None:
            forget = None if calls is None else lambda _: calls.clear()
            self._reference = WeakIdRef(gradient, forget)
            self._version, self._place = local(gradient)._version, local(gradient).data_ptr()

    @property
    def is_alive(self) -> bool:
        """Whether somebody still holds the gradient."""
        return self._reference is not None and self._reference() is not None

    def is_same(self, gradient: Tensor | None) -> bool:
        """Whether it is the same tensor in the same memory, whatever was written into it."""
        if gradient is None or self._reference is None:
            return gradient is None and self._reference is None
        return self._reference() is gradient and local(gradient).data_ptr() == self._place

    def is_unchanged(self, gradient: Tensor | None) -> bool:
        """Whether it is the same tensor and nothing was written into it."""
        written = gradient is not None and local(gradient)._version != self._version
        return self.is_same(gradient) and not written


@dataclass
class _Backward:
    """A backward whose gradient was not yet seen in ``.grad``.

    Args:
        before: What ``.grad`` was when it reached the weight.
        used: What stood in the weight's place in the forward.
        earlier: The calls behind ``before``, which a backward that makes its own graph replaces.
        handed_out: The gradient that somebody has to put into ``.grad``, because
            ``torch.autograd.grad`` returned it or another leaf stood in the weight's place.
        calls: Its calls.
        hook: What waits for ``handed_out``.
        ended: Whether it has ended without an error.
    """

    before: _Mark
    used: Tensor
    earlier: list[Call]
    handed_out: _Mark | None = None
    calls: list[Call] = field(default_factory=list)
    hook: RemovableHandle | None = None
    ended: bool = False

    def let_go(self) -> None:
        """Takes the hook off."""
        if self.hook is not None:
            self.hook.remove()


@dataclass(frozen=True)
class _Draw:
    """A call of sampled labels, and its forward as long as that one's graph is there."""

    call: Call
    forward: weakref.ref[object]


class Ledger:
    """The calls of one weight, whose ``.grad`` the step reads."""

    def __init__(self, weight: nn.Parameter) -> None:
        self._weight = weight
        self._open: dict[int, _Backward] = {}
        self.calls: list[Call] = []
        self._mark = _Mark(None)
        self._signs: list[tuple[Tensor, int]] = []
        self._drawn: list[_Draw] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        """A copy of the weight has no gradient of these calls."""
        return Ledger(copy.deepcopy(self._weight, memo))

    @property
    def is_empty(self) -> bool:
        """Whether no call is waiting for anything."""
        return not (self._open or self.calls or self._drawn)

    def clear(self) -> None:
        """Forgets all calls, as after a step that has read them, and lets go of the gradient."""
        if self.is_empty:
            return
        for one in self._open.values():
            one.let_go()
        self._open.clear()
        self._drawn, self._mark = [], _Mark(None)
        self._forget()

    def _forget(self) -> None:
        self.calls, self._signs = [], []

    def _forget_replaced(self) -> None:
        if not self._mark.is_same(self._weight.grad):
            self._forget()

    def begin(self, task: int, used: Tensor, hook: RemovableHandle | None) -> None:
        """Opens a backward that reaches the weight, before it adds anything to ``.grad``.

        Args:
            task: Number of the backward in autograd's engine.
            used: What stood in the weight's place in the forward.
            hook: What calls ``hand_out``, where the gradient is handed out.
        """
        # Others may go on: a checkpointed segment runs a backward inside a backward.
        self._take_in([one for one, it in self._open.items() if it.handed_out is not None])
        self._sign()
        mark = _Mark(self._weight.grad)
        self._open[task] = _Backward(mark, used, earlier=list(self.calls), hook=hook)

    def is_open(self, task: int) -> bool:
        """Whether a backward has begun."""
        return task in self._open

    def add(self, task: int, call: Call) -> None:
        """Writes a call of an open backward down."""
        self._open[task].calls.append(call)

    def holds(self, call: Call) -> bool:
        """Whether a call still counts."""
        self._forget_replaced()
        return any(one is call for one in self.calls)

    def draw(self, call: Call, forward: object) -> None:
        """Writes a call of sampled labels down; it counts with its forward's own gradient.

        One whose forward has no other backward belongs to the next gradient.
        """
        self._drawn = [*self._drawn[1 - _MOST_DRAWS :], _Draw(call, weakref.ref(forward))]

    def bind(self, task: int, forward: object) -> None:
        """Notes that an open backward runs through a forward whose labels were sampled."""
        own = [one for one in self._drawn if one.forward() is forward]
        self._open[task].calls += [one.call for one in own]
        self._drawn = [one for one in self._drawn if one not in own]

    def add_late(self, call: Call) -> None:
        """Writes a call down whose gradient stands in ``.grad`` already."""
        if self._mark.is_unchanged(self._weight.grad):
            self.calls.append(call)

    def hand_out(self, task: int, gradient: Tensor) -> None:
        """Notes the gradient that ``torch.autograd.grad`` returns in place of adding it."""
        if one := self._open.get(task):
            one.handed_out = _Mark(gradient, one.calls)

    def settle(self, task: int) -> None:
        """Looks at what a backward has left, now that it has ended."""
        one = self._open.get(task)
        if one is None:
            return
        one.ended = True
        one.let_go()
        lost = [draw for draw in self._drawn if draw.forward() is None]
        if lost and not one.calls:
            one.calls += [draw.call for draw in lost]
        self._drawn = [draw for draw in self._drawn if draw not in lost]
        leaf = one.used.is_leaf and one.used is not self._weight
        if leaf and one.handed_out is None and not is_dtensor(self._weight):
            one.handed_out = _Mark(one.used.grad, one.calls)
        self._take_in([task])

    def review(self) -> None:
        """Looks once more: before a forward, and before a step reads.

        A backward that is over and did not end has failed: nothing of it counts.
        """
        running = running_backward()
        if running == NO_TASK:
            for task in [task for task, one in self._open.items() if not one.ended]:
                self._open.pop(task).let_go()
        self._take_in([t for t, one in self._open.items() if one.ended or t == running])
        self._forget_replaced()

    def read(self) -> list[Call]:
        """The calls that count in a step."""
        return self.calls or [one.call for one in self._drawn]

    def signs(self, *, now: bool) -> list[tuple[Tensor, int]]:
        """Whether the gradient was anything but zero at some times, and the calls behind it then.

        Writing through ``.data`` leaves no other trace. The first is a scalar on the device.

        Args:
            now: Whether this is such a time, whoever has written to the gradient.
        """
        self._sign(asked=now)
        signs, self._signs = self._signs, []
        return [(sign, count) for sign, count in signs if count <= len(self.calls)]

    def _sign(self, *, asked: bool = True) -> None:
        gradient = self._weight.grad
        self._forget_replaced()
        if not self.calls or gradient is None:
            return
        written = not self._mark.is_unchanged(gradient)
        # No rank of sharded rows knows whether the others' are zero too.
        if written or (asked and not is_dtensor(gradient)):
            self._signs.append((local(gradient).any(), len(self.calls)))
        if written or len(self._signs) == _MOST_SIGNS:
            self.drop_zeroed([(bool(sign), count) for sign, count in self._signs])
            self._signs = []

    def drop_zeroed(self, signs: Iterable[tuple[bool, int]]) -> None:
        """Forgets the first calls, up to the last of which the gradient was zeroed in place.

        Args:
            signs: What ``signs`` returned, read from the device.
        """
        count = max((count for alive, count in signs if not alive), default=0)
        # A gradient that never was anything but zero is no sign of a drop.
        if any(call.moves() for call in self.calls[:count]):
            self.calls = self.calls[count:]
            self._mark = _Mark(self._weight.grad, self.calls)

    def _take_in(self, tasks: Iterable[int]) -> None:
        """Counts the calls of backwards whose gradient is in ``.grad``; forgets lost ones."""
        gradient = self._weight.grad
        for task in tasks:
            one = self._open[task]
            if one.handed_out is None:
                arrived = not one.before.is_unchanged(gradient)
                # FSDP keeps gradients elsewhere until it has summed them over the ranks.
                waits = is_dtensor(self._weight)
                kept = self.calls or one.earlier
            else:
                arrived, waits = one.handed_out.is_same(gradient), one.handed_out.is_alive
                kept = self.calls if self._mark.is_same(gradient) else []
            if gradient is not None and arrived:
                self.calls = [*kept, *one.calls]
                self._mark = _Mark(gradient, self.calls)
            if arrived or not waits:
                del self._open[task]


def drop_zeroed(ledgers: Iterable[Ledger], *, now: bool) -> None:
    """Drops calls whose gradient was zeroed in place; waits for each device once.

    Args:
        ledgers: Whose calls.
        now: Whether to look at gradients that nobody is known to have written to, too.
    """
    seen: dict[torch.device, list[tuple[Ledger, Tensor, int]]] = defaultdict(list)
    for ledger in ledgers:
        for sign, count in ledger.signs(now=now):
            seen[sign.device].append((ledger, sign, count))
    for alike in seen.values():
        alive = torch.stack([sign for _, sign, _ in alike]).tolist()
        signs: dict[Ledger, list[tuple[bool, int]]] = defaultdict(list)
        for (ledger, _, count), moves in zip(alike, alive, strict=True):
            signs[ledger].append((moves, count))
        for ledger, own in signs.items():
            ledger.drop_zeroed(own)

"""Which calls stand behind the gradient that is in ``.grad``: only these are statistics of a step.

A call is written down when the gradient of its output arrives, before the weight's own does. When
that backward has ended, the tensor that it left in ``.grad`` is remembered, weakly and with its
version; the calls count as long as that tensor stays there and is not zeroed. So a gradient that is
dropped, by ``zero_grad`` of whomever, by ``None`` or by another tensor, takes its calls along.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.utils.weak import WeakIdRef

from torch_thor.layers.shards import is_dtensor, local

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from torch_thor.capture.calls import Call


class GradientMark:
    """A gradient as it was when it was looked at, held weakly.

    Args:
        gradient: What stands in ``.grad``; ``None`` is a mark of its own.
        calls: Calls that are forgotten as soon as the gradient is.
    """

    def __init__(self, gradient: Tensor | None, calls: list[Call] | None = None) -> None:
        """Notes identity and version."""
        self._reference: WeakIdRef | None = None
        self._version = -1
        if gradient is not None:
            forget = None if calls is None else lambda _: calls.clear()
            self._reference = WeakIdRef(gradient, forget)
            self._version = local(gradient)._version

    @property
    def is_alive(self) -> bool:
        """Whether somebody still holds the gradient."""
        return self._reference is not None and self._reference() is not None

    def is_same(self, gradient: Tensor | None) -> bool:
        """Whether it is the same tensor, whatever was written into it."""
        if gradient is None or self._reference is None:
            return gradient is None and self._reference is None
        return self._reference() is gradient

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
        handed_out: The gradient that somebody has to put into ``.grad``, because
            ``torch.autograd.grad`` returned it or another leaf stood in the weight's place.
        calls: Its calls.
    """

    before: GradientMark
    used: Tensor
    handed_out: GradientMark | None = None
    calls: list[Call] = field(default_factory=list)


class Ledger:
    """The calls of one weight.

    Args:
        weight: The weight, whose ``.grad`` the step reads.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        """Starts empty."""
        self._weight = weight
        self._open: dict[int, _Backward] = {}
        self.calls: list[Call] = []
        self._mark = GradientMark(None)
        self._drawn: list[Call] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        """A copy of the weight has no gradient of these calls."""
        return Ledger(copy.deepcopy(self._weight, memo))

    @property
    def is_empty(self) -> bool:
        """Whether no call is waiting for anything."""
        return not (self._open or self.calls or self._drawn)

    def clear(self) -> None:
        """Forgets all calls, as after a step that has read them."""
        self._open.clear()
        self._drawn = []
        self.calls = []

    def begin(self, task: int, used: Tensor) -> bool:
        """Opens a backward that reaches the weight, before it adds anything to ``.grad``.

        Args:
            task: Number of the backward in autograd's engine.
            used: What stood in the weight's place in the forward.

        Returns:
            Whether the backward is a new one.
        """
        if task in self._open:
            return False
        # Others may go on: a checkpointed segment runs a backward inside a backward.
        self._take_in([one for one, it in self._open.items() if it.handed_out is not None])
        gradient = self.suspect
        if gradient is not None and not bool(gradient.any()):
            self.drop()
        self._open[task] = _Backward(GradientMark(self._weight.grad), used, calls=self._drawn)
        self._drawn = []
        return True

    def add(self, task: int, call: Call) -> None:
        """Writes a call of an open backward down."""
        self._open[task].calls.append(call)

    def draw(self, call: Call) -> None:
        """Writes a call of sampled labels down; it belongs to the next gradient."""
        self._drawn.append(call)

    def hand_out(self, task: int, gradient: Tensor) -> None:
        """Notes the gradient that ``torch.autograd.grad`` returns in place of adding it."""
        if one := self._open.get(task):
            one.handed_out = GradientMark(gradient, one.calls)

    def settle(self, task: int) -> None:
        """Looks at what a backward has left, now that it has ended."""
        one = self._open.get(task)
        if one is None:
            return
        leaf = one.used.is_leaf and one.used is not self._weight
        if leaf and one.handed_out is None and not is_dtensor(self._weight):
            one.handed_out = GradientMark(one.used.grad, one.calls)
        self._take_in([task])

    def review(self) -> None:
        """Looks once more while no backward runs: before a forward, and before a step reads."""
        self._take_in(list(self._open))
        if not self._mark.is_same(self._weight.grad):
            self.calls = []

    def read(self) -> list[Call]:
        """The calls that count in a step."""
        return [*self.calls, *self._drawn]

    @property
    def suspect(self) -> Tensor | None:
        """The gradient, where something was written into it since: if it is zero now, ``drop``."""
        gradient = self._weight.grad
        if not self._mark.is_same(gradient):
            self.calls = []
        if not self.calls or gradient is None or self._mark.is_unchanged(gradient):
            return None
        return local(gradient)

    def drop(self) -> None:
        """Forgets the calls behind a gradient that was zeroed in place."""
        # A gradient that never was anything but zero is no sign of a drop.
        if any(bool(call.gradients.any()) for call in self.calls):
            self.calls = []

    def _take_in(self, tasks: Iterable[int]) -> None:
        """Counts the calls of backwards whose gradient is in ``.grad``; forgets lost ones."""
        gradient = self._weight.grad
        for task in tasks:
            one = self._open[task]
            if one.handed_out is None:
                arrived = not one.before.is_unchanged(gradient)
                # FSDP keeps gradients elsewhere until it has summed them over the ranks.
                waits = is_dtensor(self._weight)
            else:
                arrived, waits = one.handed_out.is_same(gradient), one.handed_out.is_alive
                if arrived and not self._mark.is_same(gradient):
                    self.calls = []
            if gradient is not None and arrived:
                self.calls = [*self.calls, *one.calls]
                self._mark = GradientMark(gradient, self.calls)
            if arrived or not waits:
                del self._open[task]

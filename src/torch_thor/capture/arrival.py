"""The gradient of a call's output arrives: with which backward, and for the how-many-eth time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch_thor.capture.autograd import (
    Delivery,
    delivery_of,
    running_backward,
    when_backward_ends,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from torch_thor.capture.calls import Call
    from torch_thor.capture.pending import PendingCall
    from torch_thor.capture.tracked import TrackedLayer


class Context(Protocol):
    """What an arrival has to know of the capture."""

    @property
    def counts_sampled(self) -> bool:
        """Whether only labels that were sampled count."""

    @property
    def samples_now(self) -> bool:
        """Whether the running backward is one of sampled labels."""

    def obstructing(self, layer: TrackedLayer) -> AbstractContextManager[None]:
        """Inside, an error costs the layer its statistics of this step, and the user nothing."""


class Arrival:
    """Hangs on the graph of one call, and lives as long as it.

    Args:
        context: See ``Context``.
        pending: The call.
        weight: The weight that it used.
    """

    def __init__(self, context: Context, pending: PendingCall, weight: Tensor) -> None:
        """Waits."""
        self._context, self._pending, self._weight = context, pending, weight
        self._call: Call | None = None
        self._delivered = False

    def on_gradient(self, gradient: Tensor) -> None:
        """Takes the gradient of the output in."""
        layer = self._pending.layer
        if not layer.armed:
            return
        with self._context.obstructing(layer):
            if self._context.counts_sampled and self._context.samples_now:
                self._draw(gradient)
            elif self._begin_backward():
                self._deliver(gradient)
            else:
                return
            layer.group_has_gradient = True

    def _draw(self, gradient: Tensor) -> None:
        call, ledger = self._pending.complete(gradient), self._pending.layer.ledger
        if self._delivered:
            ledger.add_late(call)
        else:
            ledger.draw(call, self._pending)

    def _deliver(self, gradient: Tensor) -> None:
        ledger, task = self._pending.layer.ledger, running_backward()
        if self._context.counts_sampled:
            self._delivered = True
            ledger.bind(task, self._pending)
            return
        call = self._pending.complete(gradient)
        if self._call is not None and ledger.holds(self._call):
            # The same rows once more: the gradient that counts is the sum.
            self._pending.merge(self._call, call)
            return
        self._call = call
        ledger.add(task, call)

    def _begin_backward(self) -> bool:
        """Whether the running backward delivers a gradient of the weight; opens the ledger."""
        delivery, weight = delivery_of(self._weight), self._weight
        if delivery is Delivery.NONE:
            return False
        task, ledger = running_backward(), self._pending.layer.ledger
        if not ledger.is_open(task):
            hook: RemovableHandle | None = None
            if delivery is Delivery.HANDED_OUT:
                hook = weight.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: ledger.hand_out(task, gradient)
                )
            ledger.begin(task, weight, hook)
            when_backward_ends(lambda: ledger.settle(task))
        return True

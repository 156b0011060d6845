"""From calls to statistics: which (a, g) pairs reached backward since the last step.

A forward hook takes the wanted rows of the input at once, so a later in-place change of
the activation can't reach them, and hangs a hook on the *output tensor*; when its
gradient arrives, the pair is complete. Output-tensor hooks survive in-place activations,
modules used twice and activation checkpointing; full backward hooks don't.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from torch_thor.capture.autograd import as_plain, is_transformed, require_plain
from torch_thor.capture.hooks import ModelHooks, other_listeners
from torch_thor.capture.ledger import drop_zeroed
from torch_thor.capture.pending import CallRules, PendingCall, Sampling
from torch_thor.capture.statistics import count_rows, divide_sums
from torch_thor.layers.jets import Jet, streams_of
from torch_thor.options.notices import warn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch_thor.capture.fisher import Draw
    from torch_thor.capture.hooks import Listener, Seen
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.options.curvature import Statistics


REPLACED = (
    "none of its calls made the gradient that stands in .grad (was it replaced, or made of "
    "gradients?)"
)


class Capture:
    """Collects the calls of the layers that are armed.

    Args:
        options: Row budget, weight sharing, loss reduction.
        matched: Take the gradients of all rows that a one-hot layer counts, whatever the
            budget: EKFAC needs both sides of each row.

    Attributes:
        hooks: What tells it of calls.
        turns: Steps that have used what was collected.
    """

    _turns_of_all: ClassVar[int] = 0

    def __init__(self, options: Statistics, *, matched: bool = False) -> None:
        self.hooks = ModelHooks(self)
        self.turns = 0
        self._sampling = Sampling(wanted=options.fisher == "mc")
        self._rules = CallRules(options, matched, self._sampling)
        self._mask_fits = False
        self._last_turn = Capture._turns_of_all
        self._told_rivals = False
        self._turns_of: weakref.WeakKeyDictionary[Listener, int] = weakref.WeakKeyDictionary()

    def __deepcopy__(self, memo: dict[int, object]) -> Capture:
        """A copy has no hooks: whoever copies the layers too attaches it to them."""
        return Capture(self._rules.options, matched=self._rules.matched)

    def tell_rivals(self, layers: Iterable[TrackedLayer]) -> None:
        """Notes a step; warns, once, where another optimizer steps the same layers too.

        One that is only not collected yet, as the optimizer that was saved, is none.
        """
        self.turns += 1
        Capture._turns_of_all += 1
        alone = Capture._turns_of_all == self._last_turn + 1
        self._last_turn = Capture._turns_of_all
        if alone or self._told_rivals:
            return
        names = []
        for layer in layers:
            others = other_listeners(self, layer)
            if any(other.turns > self._turns_of.get(other, 0) for other in others):
                names.append(layer.name)
        self.note_turns(layers)
        if names:
            self._told_rivals = True
            warn(
                f"Another optimizer or preconditioner of torch_thor acts on {len(names)} layers "
                f"of this model too ({', '.join(map(repr, names[:3]))}). Step one of them only, "
                "or give each parameters of its own."
            )

    def note_turns(self, layers: Iterable[TrackedLayer]) -> None:
        """Notes how often the other captures were used so far."""
        for layer in layers:
            for other in other_listeners(self, layer):
                self._turns_of[other] = other.turns

    @property
    def mask_in_force(self) -> Tensor | None:
        """True where a position counts; ``None``: nobody has said."""
        return self._rules.mask

    def mask(self, counts: Tensor | None) -> None:
        """Leaves positions out of the statistics of the next forwards, until the next step.

        Args:
            counts: True where a position counts, ``[N, T]``.
        """
        self._rules = replace(self._rules, mask=None if counts is None else counts.detach())
        self._mask_fits = False

    def forget(self, layers: Iterable[TrackedLayer], *, cut_short: bool = False) -> None:
        """Drops what was collected.

        Args:
            layers: The layers.
            cut_short: Whether the step that it was for is still to come, and lacks it.
        """
        if self._rules.mask is not None:
            self.mask(None)
        for layer in layers:
            waits = layer.called or layer.weight.grad is not None or not layer.ledger.is_empty
            layer.forget()
            layer.listened = not (cut_short and waits)

    def arm(self, layers: Iterable[TrackedLayer], wanted: set[TrackedLayer], seed: int) -> None:
        """Says which layers count until the next step, and seeds the choice of their rows."""
        if wanted:
            self._rules = replace(self._rules, seed=seed)
        for layer in layers:
            layer.armed = layer in wanted
        self.hooks.arm()

    @contextmanager
    def sampled_backward(self, draw: Draw | None) -> Iterator[None]:
        """Inside, a backward is one of sampled labels, the only kind that "mc" counts.

        Args:
            draw: What its loss is a sum over; ``None``: it reduces as the training loss does.
        """
        self._sampling.running, self._sampling.draw = True, draw
        try:
            yield
        finally:
            self._sampling.running = False

    # A compiled model pays a graph break in steps with statistics, and none in the others.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def on_forward(
        self, layer: TrackedLayer, weight: Tensor, inputs: Seen, output: Seen, first: int = 0
    ) -> None:
        """Takes the input rows and waits for the gradient of the output.

        Args:
            layer: The layer.
            weight: The weight that the call used.
            inputs: Input of the call.
            output: Output of the call.
            first: The first matrix of the layer that took part in the call.
        """
        streams = inputs.streams.shape[1] if isinstance(inputs, Jet) else 1
        inputs, output = streams_of(inputs), streams_of(output)
        if is_transformed(output):
            return
        layer.begin_call()
        if not output.numel():
            layer.listened = False
        elif weight.requires_grad and output.requires_grad:
            with layer.obstructed():
                require_plain(output)
                rules = self._rules if streams == 1 else replace(self._rules, streams=streams)
                call = PendingCall(layer, weight, rules, as_plain(inputs), output, first)
                self._mask_fits |= call.fits_mask

    def settle(self, layers: Iterable[TrackedLayer], *, now: bool) -> None:
        """Leaves the calls whose gradient is in ``.grad`` now; before a step reads them.

        Args:
            layers: The layers.
            now: Whether to wait and see which gradients are all zeros.
        """
        heard = [layer for layer in layers if layer.called or not layer.ledger.is_empty]
        mask = self._rules.mask
        if mask is not None and not self._mask_fits and any(layer.called for layer in heard):
            warn(
                f"The mask of use_mask, {list(mask.shape)}, fits no call of a layer over "
                "tokens, so it leaves nothing out. It must be [N, T]: samples, then positions."
            )
        for layer in heard:
            layer.ledger.review()
            if layer.called and not layer.ledger.read() and layer.weight.grad is not None:
                layer.obstacle = layer.obstacle or REPLACED
        count_rows(call for layer in heard for call in layer.ledger.read())
        drop_zeroed((layer.ledger for layer in heard), now=now)
        if self._sampling.wanted:
            drawn = [call for layer in heard for call in layer.ledger.read()]
            divide_sums(drawn, self._rules.options.loss_reduction)

"""From calls to statistics: which (a, g) pairs reached backward since the last step.

A forward hook takes the wanted rows of the input at once, so a later in-place change of
the activation can't reach them, and hangs a hook on the *output tensor*; when its
gradient arrives, the pair is complete. Output-tensor hooks survive in-place activations,
modules used twice and activation checkpointing; full backward hooks don't.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from torch_thor.capture.arrival import Arrival
from torch_thor.capture.autograd import (
    as_plain,
    is_transformed,
    on_gradient_of,
    require_plain,
)
from torch_thor.capture.calls import count_rows
from torch_thor.capture.hooks import (
    EnterHook,
    ForwardHook,
    LeaveHook,
    Watches,
    go_first,
    hang,
    other_listeners,
    take_off,
)
from torch_thor.capture.pending import CallRules, begin_call
from torch_thor.options.notices import warn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.utils.hooks import RemovableHandle

    from torch_thor.capture.hooks import Listener
    from torch_thor.capture.ledger import Ledger
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
        seed: Seed of the row choice.
        turns: Steps that have used what was collected.
    """

    _turns_of_all: ClassVar[int] = 0

    def __init__(self, options: Statistics, *, matched: bool = False) -> None:
        """Starts without hooks."""
        self.options = options
        self._matched = matched
        self.seed = 0
        self.turns = 0
        self._last_turn = Capture._turns_of_all
        self._told_rivals = False
        self._turns_of: weakref.WeakKeyDictionary[Listener, int] = weakref.WeakKeyDictionary()
        self._sampled_backward = False
        self._mask: Tensor | None = None
        self._mask_fits = False
        self._layers: list[TrackedLayer] = []
        self._removed, self._suspended = False, 0
        self._handles: list[RemovableHandle] = []
        self._first: list[tuple[nn.Module, RemovableHandle]] = []
        self._watches: list[Watches] = []
        weakref.finalize(self, take_off, self._handles)

    def attach(self, layers: Iterable[TrackedLayer]) -> None:
        """Hangs hooks on some layers and no others, unless it is removed or suspended."""
        self._layers = list(layers)
        self._detach()
        if self._removed or self._suspended:
            return
        hidden: dict[nn.Module, list[TrackedLayer]] = defaultdict(list)
        for layer in self._layers:
            if layer.adapter.inside_function:
                hidden[layer.module].append(layer)
                continue
            # Before fully_shard takes the weight away again.
            hook = ForwardHook(self, layer)
            handle = hang(layer.module, hook, with_kwargs=True)
            go_first(layer.module, handle)
            self._handles.append(handle)
            self._first.append((layer.module, handle))
        for module, inside in hidden.items():
            watches = Watches(self, inside)
            self._watches.append(watches)
            self._handles.append(hang(module, EnterHook(watches), before=True))
            self._handles.append(hang(module, LeaveHook(watches), always_call=True))

    def _detach(self) -> None:
        take_off(self._handles)
        self._first.clear()
        for watches in self._watches:
            watches.leave_all()
        self._watches.clear()

    def remove(self) -> None:
        """Takes every hook off the model, for good."""
        self._removed = True
        self._detach()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, no module has a hook; one inside another changes nothing."""
        self._suspended += 1
        self._detach()
        try:
            yield
        finally:
            self._suspended -= 1
            self.attach(self._layers)

    def __deepcopy__(self, memo: dict[int, object]) -> Capture:
        """A copy has no hooks: whoever copies the layers too attaches it to them."""
        return Capture(self.options, matched=self._matched)

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

    def mask(self, counts: Tensor) -> None:
        """Leaves positions out of the statistics of the next forwards, until the next step.

        Args:
            counts: True where a position counts, ``[N, T]``.
        """
        self._mask, self._mask_fits = counts.detach(), False

    def forget(self, layers: Iterable[TrackedLayer]) -> None:
        """Drops what was collected."""
        self._mask = None
        for layer in layers:
            layer.ledger.clear()
            layer.called, layer.obstacle, layer.listened = False, "", True
            layer.group, layer.group_has_gradient = 0, False

    def arm(self, layers: Iterable[TrackedLayer], wanted: set[TrackedLayer], seed: int) -> None:
        """Says which layers count until the next step."""
        self.seed = seed
        for layer in layers:
            layer.armed = layer in wanted
        for watches in self._watches:
            watches.arm()
        for module, handle in self._first if wanted else ():
            go_first(module, handle)

    @contextmanager
    def sampled_backward(self) -> Iterator[None]:
        """Inside, a backward is one of sampled labels, the only kind that "mc" counts."""
        self._sampled_backward = True
        try:
            yield
        finally:
            self._sampled_backward = False

    # A compiled model pays a graph break in steps with statistics, and none in the others.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def on_forward(
        self, layer: TrackedLayer, weight: Tensor, inputs: Tensor, output: Tensor, first: int = 0
    ) -> None:
        """Takes the input rows and waits for the gradient of the output.

        Args:
            layer: The layer.
            weight: The weight that the call used.
            inputs: Input of the call.
            output: Output of the call.
            first: The first matrix of the layer that took part in the call.
        """
        if is_transformed(output):
            return
        layer.begin_call()
        if not output.numel():
            layer.listened = False
        elif weight.requires_grad and output.requires_grad:
            with self.obstructing(layer):
                require_plain(output)
                self._await(layer, weight, as_plain(inputs), output, first)

    @contextmanager
    def obstructing(self, layer: TrackedLayer) -> Iterator[None]:
        """Inside, an error costs the layer its statistics of this step, and the user nothing."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (a forward that works without us has to work)
            said = str(error).strip().partition("\n")[0]
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            layer.obstacle = f"its call can't be understood ({kind}{said})"

    def _await(
        self, layer: TrackedLayer, weight: Tensor, inputs: Tensor, output: Tensor, first: int
    ) -> None:
        pending = begin_call(self._rules(), layer, inputs, output, first)
        self._mask_fits |= pending.kept_of_all is not None or pending.is_weighed
        arrival = Arrival(self, pending, weight)
        on_gradient_of(pending.watched(output), arrival.on_gradient)

    @property
    def counts_sampled(self) -> bool:
        """Whether only labels that were sampled count."""
        return self.options.fisher == "mc"

    @property
    def samples_now(self) -> bool:
        """Whether the running backward is one of sampled labels."""
        return self._sampled_backward

    def _rules(self) -> CallRules:
        budget = None if self._matched else self.options.rows
        reduce = self.options.weight_sharing == "reduce"
        return CallRules(self.options.rows, budget, reduce, self.seed, self._mask)

    def _tell_misfit(self, layers: Iterable[TrackedLayer]) -> None:
        if self._mask is not None and not self._mask_fits and any(one.called for one in layers):
            warn(
                f"The mask of use_mask, {list(self._mask.shape)}, fits no call of a layer over "
                "tokens, so it leaves nothing out. It must be [N, T]: samples, then positions."
            )

    def settle(self, layers: Iterable[TrackedLayer]) -> None:
        """Leaves the calls whose gradient is in ``.grad`` now; before a step reads them."""
        self._tell_misfit(layers)
        seen: dict[torch.device, list[tuple[Ledger, Tensor, int]]] = defaultdict(list)
        layers = [layer for layer in layers if layer.called or not layer.ledger.is_empty]
        for layer in layers:
            ledger = layer.ledger
            ledger.review()
            if layer.called and not ledger.read() and layer.weight.grad is not None:
                layer.obstacle = layer.obstacle or REPLACED
            for sign, count in ledger.signs():
                seen[sign.device].append((ledger, sign, count))
        count_rows([call for layer in layers for call in layer.ledger.read()])
        for alike in seen.values():
            moved = torch.stack([sign for _, sign, _ in alike]).tolist()
            of_ledger: dict[Ledger, list[tuple[bool, int]]] = defaultdict(list)
            for (ledger, _, count), moves in zip(alike, moved, strict=True):
                of_ledger[ledger].append((moves, count))
            for ledger, signs in of_ledger.items():
                ledger.drop_zeroed(signs)

"""The hooks on a model's modules; they hold the capture weakly and never travel with a copy."""

from __future__ import annotations

import weakref
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from torch_thor.capture.autograd import graph_must_stay_whole
from torch_thor.capture.registering import StaysBehind, go_first, hang, take_off
from torch_thor.layers import ProjectionWatch
from torch_thor.layers.jets import Jet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.utils.hooks import RemovableHandle

    from torch_thor.capture.outputs import OutputProbe
    from torch_thor.capture.tracked import TrackedLayer


# What goes into a layer and comes out: values, or values with their derivatives.
Seen: TypeAlias = Tensor | Jet


class Listener(Protocol):
    """What hears of calls, and has a say only as long as somebody steps with it.

    Attributes:
        turns: Steps that have used what was collected.
    """

    turns: int

    def on_forward(
        self, layer: TrackedLayer, weight: Tensor, inputs: Seen, output: Seen, first: int = 0
    ) -> None:
        """Takes a call of a layer; ``first`` is the first of its matrices that took part."""


# Modes that follow operations without computing them: make_fx, fake tensors.
_RECORDERS = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)


def _may_look() -> bool:
    """Whether a hook can look at a call and leave what torch records of the model as it is."""
    if torch.compiler.is_compiling():
        return not graph_must_stay_whole()
    return not (torch._C._is_tracing() or any(map(torch._C._get_dispatch_mode, _RECORDERS)))


class ModelHooks:
    """The hooks of one listener; they go with it.

    Args:
        listener: What hears of calls.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = weakref.ref(listener)
        self._layers: list[TrackedLayer] = []
        self._probe: OutputProbe | None = None
        self._removed, self._suspended = False, 0
        self._handles: list[RemovableHandle] = []
        self._first: list[tuple[nn.Module, RemovableHandle]] = []
        self._watches: list[_Watch] = []
        weakref.finalize(self, take_off, self._handles)

    def attach(self, layers: Iterable[TrackedLayer], probe: OutputProbe | None = None) -> None:
        """Hangs hooks on some layers and no others, unless they are removed or suspended.

        An open probe hears of the modules that it wants to hear of.
        """
        self._layers, listener = list(layers), self._listener()
        self._probe = probe
        self._detach()
        if self._removed or self._suspended or listener is None:
            return
        hidden: dict[nn.Module, list[TrackedLayer]] = defaultdict(list)
        for layer in self._layers:
            if layer.adapter.inside_function:
                hidden[layer.module].append(layer)
                continue
            # Before fully_shard takes the weight away again.
            handle = hang(layer.module, _ForwardHook(listener, layer), with_kwargs=True)
            go_first(layer.module, handle)
            self._handles.append(handle)
            self._first.append((layer.module, handle))
        for module, inside in hidden.items():
            watch = _Watch(listener, inside)
            self._watches.append(watch)
            self._handles.append(hang(module, watch, before=True))
            self._handles.append(hang(module, _WatchEnd(watch), always_call=True))
        if probe is not None and probe.is_open:
            for module in probe.modules:
                handle = hang(module, _ProbeHook(probe))
                probe.heard_by(handle)
                self._handles.append(handle)

    def arm(self) -> None:
        """Gets ready for forwards of layers of which some, or others than before, count."""
        for watch in self._watches:
            watch.arm()
        if any(layer.armed for layer in self._layers):
            for module, handle in self._first:
                go_first(module, handle)

    def _detach(self) -> None:
        take_off(self._handles)
        self._first.clear()
        for watch in self._watches:
            watch.leave_all()
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
            self.attach(self._layers, self._probe)


def other_listeners(listener: Listener, layer: TrackedLayer) -> set[Listener]:
    """The listeners besides this one whose hooks listen to a layer's weight."""
    module = layer.module
    hooks: list[object] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    ours = [hook for hook in hooks if isinstance(hook, _Hook)]
    found = {other for hook in ours if (other := hook.listener_to(layer.weight)) is not None}
    return found - {listener}


class _Hook(StaysBehind):
    """A hook of ours."""

    def listener_to(self, weight: nn.Parameter) -> Listener | None:
        """The listener that it serves, where that one still is and listens to a weight."""
        raise NotImplementedError


class _ForwardHook(_Hook):
    """Hands a module's call to the listener."""

    def __init__(self, listener: Listener, layer: TrackedLayer) -> None:
        self._listener, self._layer = weakref.ref(listener), weakref.ref(layer)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        listener, layer = self._listener(), self._layer()
        if listener is None or layer is None or not layer.armed or not _may_look():
            return
        if not torch.is_grad_enabled():
            # Perhaps a reentrant checkpoint, whose call is seen when it is recomputed.
            layer.begin_call()
            return
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        weight = layer.adapter.weight(module)
        if isinstance(weight, Tensor) and not weight.requires_grad:
            return
        if isinstance(weight, Tensor) and isinstance(inputs, Seen) and isinstance(output, Seen):
            listener.on_forward(layer, weight, inputs, output)
        else:
            layer.obstacle = "its call has no tensor as input, weight or output"

    def listener_to(self, weight: nn.Parameter) -> Listener | None:
        layer = self._layer()
        return self._listener() if layer is not None and layer.weight is weight else None


class _Watch(_Hook):
    """Runs before a module's forward, to see linear maps inside that no module hook sees."""

    def __init__(self, listener: Listener, layers: Sequence[TrackedLayer]) -> None:
        self._listener = weakref.ref(listener)
        self._references = [weakref.ref(layer) for layer in layers]
        self._entered: list[ProjectionWatch] = []
        self._wanted = False

    def __call__(self, module: nn.Module, args: tuple[object, ...]) -> None:  # noqa: ARG002
        if not self._wanted or not _may_look():
            return
        if not any(layer.weight.requires_grad for layer in self.layers):
            return
        if torch.is_grad_enabled():
            self._push()
            return
        for layer in self.layers:
            if layer.armed:
                layer.begin_call()

    @property
    def layers(self) -> list[TrackedLayer]:
        """Those that still are."""
        return [layer for one in self._references if (layer := one()) is not None]

    def listener_to(self, weight: nn.Parameter) -> Listener | None:
        heard = any(layer.weight is weight for layer in self.layers)
        return self._listener() if heard else None

    def arm(self) -> None:
        """Notes whether any of its layers counts now."""
        self.leave_all()
        self._wanted = any(layer.armed for layer in self.layers)

    def leave_all(self) -> None:
        """Ends what an interrupt has left: torch calls no hook then."""
        while self._entered:
            self._pop()

    def leave(self) -> None:
        """Ends the latest watch."""
        if self._entered:
            self._pop()

    # A compiled model breaks its graph here in steps with statistics, and runs the attention
    # between the two breaks as it is written.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _push(self) -> None:
        watch = ProjectionWatch(self._on_projection)
        watch.__enter__()
        self._entered.append(watch)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _pop(self) -> None:
        self._entered.pop().__exit__(None, None, None)

    def _on_projection(self, used: Tensor, inputs: Tensor, output: Tensor) -> None:
        listener = self._listener()
        if listener is None:
            return
        for layer in (one for one in self.layers if one.armed):
            weight: Tensor = layer.adapter.weight(layer.module)
            if used is weight or used._base is weight:
                passed = int(used.storage_offset() - weight.storage_offset())
                first = passed // (layer.geometry.outputs * layer.geometry.inputs)
                listener.on_forward(layer, weight, inputs, output, first)


class _ProbeHook(StaysBehind):
    """Tells an open probe of a module's call."""

    def __init__(self, probe: OutputProbe) -> None:
        self._probe = weakref.ref(probe)

    def __call__(self, module: nn.Module, args: object, output: object) -> None:  # noqa: ARG002
        probe = self._probe()
        if probe is not None and probe.is_open and torch.is_grad_enabled() and _may_look():
            probe.hear(module, output)


class _WatchEnd(StaysBehind):
    """Runs after a watched module's forward, also when it raised."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def __call__(self, module: nn.Module, args: object, output: object) -> None:  # noqa: ARG002
        self._watch.leave()

"""The hooks on a model's modules; they hold the engine weakly and never travel with a copy."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from torch_thor.capture.autograd import graph_must_stay_whole
from torch_thor.layers import ProjectionWatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.utils.hooks import RemovableHandle

    from torch_thor.capture.tracked import TrackedLayer


class Listener(Protocol):
    """What hears of calls, and has a say only as long as somebody steps with it.

    Attributes:
        turns: Steps that have used what was collected.
    """

    turns: int

    def on_forward(
        self, layer: TrackedLayer, weight: Tensor, inputs: Tensor, output: Tensor, first: int = 0
    ) -> None:
        """Takes a call of a layer; ``first`` is the first of its matrices that took part."""


class _InertHook:
    """What a copied or unpickled model carries in the place of a hook, until its first call."""

    def __call__(self, module: nn.Module, *args: object) -> None:  # noqa: ARG002
        """Takes itself off."""
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook is self]:
                del hooks[key]


class _StaysBehind:
    """A hook that is not copied or pickled with its module."""

    @property
    def __name__(self) -> str:
        """None: asked for by torch.jit.script alone, which compiles a module's hooks.

        Raises:
            AttributeError: Always.
        """
        raise AttributeError(
            "torch.jit.script can't compile the hooks of torch_thor: script the model inside "
            "'with optimizer.without_hooks():'"
        )

    def __deepcopy__(self, memo: dict[int, object]) -> _InertHook:
        return _InertHook()

    def __reduce__(self) -> tuple[type[_InertHook], tuple[()]]:
        return (_InertHook, ())


def _may_look() -> bool:
    """Whether a hook can look at a call and leave what torch records of the model as it is."""
    if torch.compiler.is_compiling():
        return not graph_must_stay_whole()
    return not torch._C._is_tracing()


def take_off(handles: list[RemovableHandle]) -> None:
    """Takes hooks off their modules."""
    for handle in handles:
        handle.remove()
    handles.clear()


class ForwardHook(_StaysBehind):
    """Hands a module's call to the capture.

    Args:
        capture: Where calls are collected.
        layer: The module's layer.
    """

    def __init__(self, capture: Listener, layer: TrackedLayer) -> None:
        """Keeps weak references."""
        self._capture = weakref.ref(capture)
        self._layer = weakref.ref(layer)

    def __call__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        """Runs after the module's forward."""
        capture, layer = self._capture(), self._layer()
        if capture is None or layer is None or not layer.armed or not _may_look():
            return
        if not torch.is_grad_enabled():
            # Perhaps a reentrant checkpoint, whose call is seen when it is recomputed.
            layer.begin_call()
            return
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        weight = layer.adapter.weight(module)
        if isinstance(weight, Tensor) and isinstance(inputs, Tensor) and isinstance(output, Tensor):
            capture.on_forward(layer, weight, inputs, output)
        else:
            layer.obstacle = "its call has no tensor as input, weight or output"

    def listens_to(self, weight: nn.Parameter) -> Listener | None:
        """The capture that it serves, where that one still is and listens to a weight."""
        layer = self._layer()
        return self._capture() if layer is not None and layer.weight is weight else None


class Watches:
    """The function modes of one module whose linear maps no module hook sees.

    Args:
        capture: Where calls are collected.
        layers: Layers of that module.
    """

    def __init__(self, capture: Listener, layers: Iterable[TrackedLayer]) -> None:
        """Keeps weak references."""
        self._capture = weakref.ref(capture)
        self._layers = [weakref.ref(layer) for layer in layers]
        self._entered: list[ProjectionWatch] = []
        self._wanted = False

    def listens_to(self, weight: nn.Parameter) -> Listener | None:
        """The capture that it serves, where that one still is and listens to a weight."""
        layers = [one() for one in self._layers]
        heard = any(layer is not None and layer.weight is weight for layer in layers)
        return self._capture() if heard else None

    def arm(self) -> None:
        """Notes whether any of its layers counts now."""
        self._wanted = any(layer.armed for one in self._layers if (layer := one()) is not None)

    def enter(self) -> None:
        """Begins to watch, where that is wanted."""
        if not self._wanted or not _may_look():
            return
        if torch.is_grad_enabled():
            self._push()
            return
        for reference in self._layers:
            if (layer := reference()) is not None and layer.armed:
                layer.begin_call()

    def leave(self) -> None:
        """Ends the latest watch."""
        if self._entered:
            self._pop()

    # A compiled model breaks its graph here in steps with statistics, and runs the attention
    # between the two breaks as it is written.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _push(self) -> None:
        watch = ProjectionWatch(self._on_projection)
        watch.__enter__()  # type: ignore[no-untyped-call]
        self._entered.append(watch)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _pop(self) -> None:
        self._entered.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _on_projection(self, used: Tensor, inputs: Tensor, output: Tensor) -> None:
        capture = self._capture()
        for reference in self._layers:
            layer = reference()
            if capture is None or layer is None or not layer.armed:
                continue
            weight: Tensor = layer.adapter.weight(layer.module)
            if used is weight or used._base is weight:
                passed = int(used.storage_offset() - weight.storage_offset())
                first = passed // (layer.geometry.outputs * layer.geometry.inputs)
                capture.on_forward(layer, weight, inputs, output, first)


class EnterHook(_StaysBehind):
    """Runs before a watched module's forward."""

    def __init__(self, watches: Watches) -> None:
        """Shares the modes with the other hook."""
        self._watches = watches
        self.listens_to = watches.listens_to

    def __call__(self, module: nn.Module, args: tuple[object, ...]) -> None:  # noqa: ARG002
        """Begins to watch."""
        self._watches.enter()


class LeaveHook(_StaysBehind):
    """Runs after a watched module's forward, also when it raised."""

    def __init__(self, watches: Watches) -> None:
        """Shares the modes with the other hook."""
        self._watches = watches

    def __call__(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:  # noqa: ARG002
        """Ends the watch."""
        self._watches.leave()


def other_listeners(listener: Listener, layer: TrackedLayer) -> set[Listener]:
    """The listeners besides this one whose hooks listen to a layer's weight."""
    module = layer.module
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    ours = [hook for hook in hooks if isinstance(hook, ForwardHook | EnterHook)]
    found = {other for hook in ours if (other := hook.listens_to(layer.weight)) is not None}
    return found - {listener}

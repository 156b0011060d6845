"""The hooks on a model's modules; they hold the engine weakly and never travel with a copy."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from torch_thor.capture.autograd import graph_must_stay_whole
from torch_thor.layers import ProjectionWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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


_FIRST_NUMBER = 1 << 40
# Modes that follow operations without computing them: make_fx, fake tensors.
_RECORDERS = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)


class _InertHook:
    """What a copied or unpickled model carries in the place of a hook, until its first call."""

    def __call__(self, module: nn.Module, *args: object) -> None:  # noqa: ARG002
        """Takes itself off."""
        notes = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook is self]:
                del hooks[key]
                for table in (getattr(module, note, {}) for note in notes):
                    table.pop(key, None)


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
    return not (torch._C._is_tracing() or any(map(torch._C._get_dispatch_mode, _RECORDERS)))


def hang(
    module: nn.Module, hook: Callable[..., None], *, before: bool = False, **how: bool
) -> RemovableHandle:
    """Registers a hook under a number that no other hook has, also not in another process.

    A model that is saved whole carries its hooks along, and torch counts from 0 in each process.

    Args:
        module: The module.
        hook: The hook.
        before: Whether it runs before the forward.
        how: What torch's ``register_forward_hook`` takes.
    """
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle: RemovableHandle = register(hook, **how)
    tables = [module._forward_pre_hooks] if before else [module._forward_hooks]
    tables += [] if before else [module._forward_hooks_with_kwargs]  # type: ignore[list-item]
    tables += [] if before else [module._forward_hooks_always_called]  # type: ignore[list-item]
    number = handle.id + _FIRST_NUMBER
    for table in tables:
        if handle.id in table:
            table[number] = table.pop(handle.id)
    handle.id = number
    return handle


def go_first(module: nn.Module, handle: RemovableHandle) -> None:
    """Lets a forward hook see the output before others change it, whenever they came."""
    hooks: Any = module._forward_hooks
    if handle.id in hooks and next(iter(hooks)) != handle.id:
        hooks.move_to_end(handle.id, last=False)


def _is_frozen(weight: object) -> bool:
    return isinstance(weight, Tensor) and not weight.requires_grad


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
        if _is_frozen(weight):
            return
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
        self.leave_all()
        self._wanted = any(layer.armed for one in self._layers if (layer := one()) is not None)

    def _any_trained(self) -> bool:
        layers = [one() for one in self._layers]
        return any(layer is not None and layer.weight.requires_grad for layer in layers)

    def enter(self) -> None:
        """Begins to watch, where that is wanted."""
        if not self._wanted or not _may_look() or not self._any_trained():
            return
        if torch.is_grad_enabled():
            self._push()
            return
        for reference in self._layers:
            if (layer := reference()) is not None and layer.armed:
                layer.begin_call()

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

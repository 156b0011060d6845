"""How hooks are registered: under numbers of their own, in front, and not copied with a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.utils.hooks import RemovableHandle

_FIRST_NUMBER = 1 << 40


def hang(
    module: nn.Module, hook: Callable[..., None], *, before: bool = False, **how: bool
) -> RemovableHandle:
    """Registers a hook under a number that no other hook has, also not in another process.

    A model that is saved whole carries its hooks along, and torch counts from 0 in each process.
    """
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle: RemovableHandle = register(hook, **how)
    number = handle.id + _FIRST_NUMBER
    for table in _tables(module, before=before):
        if handle.id in table:
            table[number] = table.pop(handle.id)
    handle.id = number
    return handle


def _tables(module: nn.Module, *, before: bool) -> list[dict[int, Any]]:
    """The hooks of a module by their numbers, and what torch notes about them."""
    if before:
        return [module._forward_pre_hooks]
    notes = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return [module._forward_hooks, *(getattr(module, note, {}) for note in notes)]


def go_first(module: nn.Module, handle: RemovableHandle) -> None:
    """Lets a forward hook see the output before others change it, whenever they came."""
    hooks: Any = module._forward_hooks
    if handle.id in hooks and next(iter(hooks)) != handle.id:
        hooks.move_to_end(handle.id, last=False)


def take_off(handles: list[RemovableHandle]) -> None:
    """Takes hooks off their modules."""
    for handle in handles:
        handle.remove()
    handles.clear()


class _InertHook:
    """What a copied or unpickled model carries in the place of a hook, until its first call."""

    def __call__(self, module: nn.Module, *args: object) -> None:  # noqa: ARG002
        for before in (False, True):
            hooks, *notes = _tables(module, before=before)
            for key in [key for key, hook in hooks.items() if hook is self]:
                for table in (hooks, *notes):
                    table.pop(key, None)


class StaysBehind:
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

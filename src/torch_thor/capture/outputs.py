"""Output layers: those whose gradient comes from the loss and passes through no other layer.

Gradients arrive from the loss on. So a layer at which one arrives is hidden if autograd's graph
above another one's call, whose gradient has arrived before, holds its own call.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torch_thor.capture.autograd import (
    base_of,
    inside_backward,
    on_gradient_of,
    running_backward,
    running_node,
    when_backward_ends,
)
from torch_thor.capture.registering import take_off
from torch_thor.layers import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.hooks import RemovableHandle

_TABLES = (nn.Embedding, nn.EmbeddingBag)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class OutputProbe:
    """Listens to the modules with weights until a backward has shown how they follow each other.

    Args:
        modules: What is listened to, see ``modules_with_weights``.

    Attributes:
        is_open: Whether it still listens.
    """

    def __init__(self, modules: frozenset[nn.Module]) -> None:
        self.modules, self.is_open = modules, True
        self._arrived: set[nn.Module] = set()
        self._hidden: set[nn.Module] = set()
        self._above: set[Any] = set()  # nodes above the calls of which gradients have arrived
        self._running: set[int] = set()
        self._handles: list[RemovableHandle] = []

    def __deepcopy__(self, memo: dict[int, object]) -> OutputProbe:
        """A copy of the model has run no backward of its own."""
        twin = OutputProbe(copy.deepcopy(self.modules, memo))
        twin.is_open = self.is_open
        return twin

    @property
    def has_arrived(self) -> bool:
        """Whether a backward has come through the model."""
        return bool(self._arrived)

    def is_output(self, module: nn.Module, part: str) -> bool:
        """Whether a layer was found to be one; of several weights of a module the last may be."""
        if module not in self._arrived or module in self._hidden:
            return False
        parts = parts_of(module)
        return not parts or part == parts[-1].name

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def hear(self, module: nn.Module, output: object) -> None:
        """Takes a call of a module."""
        # A reentrant checkpoint recomputes its segment in a backward of its own, inside this node.
        around = running_node() if inside_backward() else None
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                self._wait(module, tensor, around)

    def _wait(self, module: nn.Module, output: Tensor, around: Any) -> None:
        def arrive(gradient: Tensor) -> None:  # noqa: ARG001
            if self.is_open:
                self._arrive(module, running_node(), around)

        base = base_of(output)
        on_gradient_of(output if base is None else base, arrive)

    def _arrive(self, module: nn.Module, node: Any, around: Any) -> None:
        task = running_backward()
        if around is None and task not in self._running:
            self._running.add(task)
            when_backward_ends(lambda: self._end(task))
        self._arrived.add(module)
        if node in self._above or around in self._above:
            self._hidden.add(module)
        self._climb(node)
        self._climb(around)

    def _climb(self, node: Any) -> None:
        waiting = [] if node is None else [one for one, _ in node.next_functions]
        while waiting:
            above = waiting.pop()
            if above is not None and above not in self._above:
                self._above.add(above)
                waiting += [one for one, _ in above.next_functions]

    def _end(self, task: int) -> None:
        """Lets go of the graph when no backward needs it any more."""
        self._running.discard(task)
        if not self._running:
            self._above.clear()

    def heard_by(self, handle: RemovableHandle) -> None:
        """Notes a hook that goes when it is closed."""
        self._handles.append(handle)

    def close(self) -> None:
        """Listens no longer."""
        self.is_open = False
        take_off(self._handles)
        self._above.clear()


def modules_with_weights(model: nn.Module) -> frozenset[nn.Module]:
    """All modules that multiply by a matrix, whoever trains it: their outputs may end a model."""
    return frozenset(module for module in model.modules() if any(_weights(module)))


def _weights(module: nn.Module) -> Iterator[bool]:
    if isinstance(module, _TABLES):
        return
    yield isinstance(module, _LAYERS)
    yield any(part.adapter.by_default for part in parts_of(module))
    # A container's own parameters are no layer of which the output is the container's.
    held = module.parameters(recurse=False)
    yield not any(module.children()) and any(one.dim() > 1 for one in held)

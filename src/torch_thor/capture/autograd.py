"""What torch's autograd engine knows about a call: views, transforms, the running backward."""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

NO_TASK = -1


class Delivery(enum.Enum):
    """What the running backward does with the gradient of a weight."""

    NONE = "computes none"
    ADDED = "adds it to .grad"
    HANDED_OUT = "returns it: torch.autograd.grad was asked for it"


def running_backward() -> int:
    """The number of the innermost running backward, or ``NO_TASK``."""
    return int(torch._C._current_graph_task_id())


def running_node() -> Any:
    """The node of the graph that the innermost running backward has come to, if one runs."""
    return torch._C._current_autograd_node()


def inside_backward() -> bool:
    """Whether a backward is running, as while a checkpointed segment is recomputed."""
    return running_backward() != NO_TASK


def when_backward_ends(action: Callable[[], None]) -> None:
    """Runs an action when the innermost running backward has ended without an error."""
    torch.autograd.Variable._execution_engine.queue_callback(action)


def is_transformed(output: object) -> bool:
    """Whether a call runs inside torch.func, whose tensors must not outlive the transform."""
    inside = isinstance(output, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(output)
    return bool(inside)


def require_plain(tensor: Tensor) -> None:
    """Raises ``ValueError``, which says what it is, for a tensor that is no plain memory."""
    kind = type(tensor)
    if tensor.is_nested:
        raise ValueError("a nested tensor")
    if tensor.is_quantized:
        raise ValueError("a quantized tensor")
    if tensor.layout is not torch.strided:
        raise ValueError(f"a tensor of layout {tensor.layout}")
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise ValueError(f"a {kind.__module__}.{kind.__qualname__}")


def as_plain(tensor: Tensor) -> Tensor:
    """The values outside the graph, without the class that a library gave them."""
    require_plain(tensor)
    detached = tensor.detach()
    return detached if type(detached) is Tensor else detached.as_subclass(Tensor)


def base_of(output: Tensor) -> Tensor | None:
    """The tensor that a view's gradient has to be taken from.

    A later in-place change of a view (``nn.ReLU(inplace=True)`` behind a Linear over
    sequences) takes the view's own node out of the graph, and a hook on it with it; the
    base's node stays.
    """
    base = output._base
    usable = base is not None and base.grad_fn is not None and base.is_contiguous()
    return base if usable else None


def on_gradient_of(output: Tensor, action: Callable[[Tensor], None]) -> None:
    """Calls an action with the gradient that meets the function that made ``output``.

    Hooks of a tensor run in the order of their registration; those of its node run after them
    all, so what a user's hook made of the gradient is seen.
    """
    node, number = output.grad_fn, output.output_nr
    if node is None:
        return

    def before(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[number]
        if gradient is not None:
            action(gradient)

    node.register_prehook(before)


def delivery_of(weight: Tensor) -> Delivery:
    """What the running backward does with a weight's gradient."""
    if not weight.requires_grad:  # frozen since the forward
        return Delivery.NONE
    node = torch.autograd.graph.get_gradient_edge(weight).node
    try:
        runs = bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:
        return Delivery.HANDED_OUT
    return Delivery.ADDED if runs else Delivery.NONE


# Marked as torch.compiler.assume_constant_result does: it runs while a graph is traced.
def graph_must_stay_whole() -> bool:
    """Whether the graph that is being traced may not be broken: ``fullgraph=True``, an export."""
    tracing = sys.modules.get("torch._dynamo.symbolic_convert")
    try:
        translator = tracing.InstructionTranslator.current_tx()  # type: ignore[union-attr]
    except AttributeError:
        return True
    if translator is None:
        return True
    return bool(translator.one_graph or getattr(translator, "error_on_graph_break", False))


graph_must_stay_whole._dynamo_marked_constant = True  # type: ignore[attr-defined]

"""What torch's autograd engine knows about a call: views, transforms, the running backward."""

from __future__ import annotations

import torch
from torch import Tensor


def inside_backward() -> bool:
    """Whether a backward is running, as while a checkpointed segment is recomputed."""
    return bool(torch._C._current_graph_task_id() != -1)


def is_transformed(output: object) -> bool:
    """Whether a call runs inside torch.func, whose tensors must not outlive the transform."""
    inside = isinstance(output, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(output)
    return bool(inside)


def base_of(output: Tensor) -> Tensor | None:
    """The tensor that a view's gradient has to be taken from.

    A later in-place change of a view (``nn.ReLU(inplace=True)`` behind a Linear over
    sequences) takes the view's own node out of the graph, and a hook on it with it; the
    base's node stays.
    """
    base = output._base
    usable = base is not None and base.grad_fn is not None and base.is_contiguous()
    return base if usable else None


def receives_gradient(weight: Tensor) -> bool:
    """Whether the running backward reaches a weight; a gradient of inputs alone does not."""
    node = torch.autograd.graph.get_gradient_edge(weight).node
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:
        # torch.autograd.grad was asked for this very weight.
        return True

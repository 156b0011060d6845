"""``nn.MultiheadAttention``: projections inside one function that no module hook sees."""

from __future__ import annotations

import threading
from functools import cache
from operator import attrgetter
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)
from torch.overrides import TorchFunctionMode

from torch_thor.layers.adapter import LayerAdapter, Part, with_ones
from torch_thor.layers.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch_thor.layers.rows import RowPlan


class ProjectionAdapter(LayerAdapter[nn.MultiheadAttention]):
    """One weight of an attention module, of one matrix or several side by side.

    The packed weight ``[3E, E]`` is three matrices (query, key, value), each with its own
    factors. Inputs and gradients arrive as the function has them, positions first.

    Args:
        weight: Qualified name of the weight.
        matrices: Matrices in it.
    """

    inside_function = True
    has_tokens = True

    def __init__(self, weight: str, matrices: int = 1) -> None:
        self._weight, self._matrices = weight, matrices

    def weight(self, module: nn.MultiheadAttention) -> Any:
        """Also that of the output projection, a module of its own."""
        return attrgetter(self._weight)(module)

    def geometry(self, module: nn.MultiheadAttention, *, bias: bool) -> Geometry:
        """Matrices below each other."""
        rows, columns = module.get_parameter(self._weight).shape
        return Geometry(self._matrices, rows // self._matrices, columns, bias)

    def call_shape(
        self, module: nn.MultiheadAttention, inputs: Tensor, output: Tensor
    ) -> tuple[int, int]:
        """Of inputs ``[T, N, in]``."""
        return inputs.shape[1], inputs.shape[0]

    def input_rows(
        self, module: nn.MultiheadAttention, inputs: Tensor, plan: RowPlan, *, bias: bool
    ) -> Tensor:
        """Rows are the inputs themselves, the same for all matrices of a call."""
        return with_ones(plan.take_inputs(_table(inputs, plan)), bias=bias).unsqueeze(0)

    def output_rows(self, module: nn.MultiheadAttention, gradient: Tensor, plan: RowPlan) -> Tensor:
        """Rows are the output gradients, cut into the matrices of the call."""
        width = module.get_parameter(self._weight).shape[0] // self._matrices
        rows = plan.take_gradients(_table(gradient, plan))
        return rows.view(len(rows), -1, width).transpose(0, 1)


class CommonBiasAdapter(ProjectionAdapter):
    """The bias ``[3·E]`` of separate projections: three columns that meet the input 1."""

    def geometry(self, module: nn.MultiheadAttention, *, bias: bool) -> Geometry:
        """Matrices below each other, one column each."""
        return Geometry(3, module.embed_dim, 1, bias=False)

    def input_rows(
        self, module: nn.MultiheadAttention, inputs: Tensor, plan: RowPlan, *, bias: bool
    ) -> Tensor:
        """Rows are ones."""
        return plan.take_inputs(_table(inputs, plan)[..., :1]).fill_(1.0).unsqueeze(0)


def _table(maps: Tensor, plan: RowPlan) -> Tensor:
    """``[T, N, d]`` or ``[T·N, d]`` as ``[N, T, d]``."""
    return maps.reshape(plan.positions, plan.samples, -1).transpose(0, 1)


def attention_parts(module: nn.MultiheadAttention) -> tuple[Part, ...]:
    """Input projections (one packed weight, or three) and the output projection."""
    if module._qkv_same_embed_dim:
        parts = [_part(module, "in_proj", "in_proj_weight", "in_proj_bias", matrices=3)]
    else:
        parts = [_part(module, f"{one}_proj", f"{one}_proj_weight") for one in ("q", "k", "v")]
        if module.in_proj_bias is not None:
            parts.append(_part(module, "in_proj_bias", "in_proj_bias", matrices=3))
    parts.append(_part(module, "out_proj", "out_proj.weight", "out_proj.bias"))
    return tuple(parts)


@cache
def _adapter(weight: str, matrices: int) -> ProjectionAdapter:
    """One for all modules, because a layer is another where its adapter is."""
    kind = CommonBiasAdapter if weight == "in_proj_bias" else ProjectionAdapter
    return kind(weight, matrices)


def _part(
    module: nn.MultiheadAttention, name: str, weight: str, bias: str = "", *, matrices: int = 1
) -> Part:
    own = dict(module.named_parameters())
    return Part(name, _adapter(weight, matrices), own.get(weight), own.get(bias))


class _Entered(threading.local):
    """The watches that a thread has entered."""

    def __init__(self) -> None:
        self.watches: list[ProjectionWatch] = []


_ENTERED = _Entered()


class ProjectionWatch(TorchFunctionMode):
    """Sees the linear maps inside ``multi_head_attention_forward`` while it is entered.

    Args:
        on_projection: Called with (parameter, inputs ``[T, N, in]``, output) of each, for its
            weight and for its bias.
    """

    def __init__(self, on_projection: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._on_projection = on_projection

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        _ENTERED.watches.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _ENTERED.watches.remove(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is not F.multi_head_attention_forward:
            return func(*args, **(kwargs or {}))
        return self._attend(args, kwargs or {})

    # Some compilers (torch 2.11) would go into the copying of functions, and compile each copy.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        query: Tensor = args[0]
        samples = query.shape[1] if query.dim() == 3 else 1

        def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            output = F.linear(inputs, weight, bias)
            for used in (weight,) if bias is None else (weight, bias):
                rows = inputs.reshape(-1 if samples else 0, samples, inputs.shape[-1])
                # Another optimizer's watch does not see what runs inside of this one.
                for watch in _ENTERED.watches:
                    watch._on_projection(used, rows, output)
            return output

        return _over(linear)(*args, **kwargs)


def _over(linear: Callable[..., Tensor]) -> Callable[..., object]:
    """Returns torch's attention function with its name ``linear`` bound to another function.

    Under a function mode torch hands the whole function over instead of running it, so its
    inner calls could not be seen otherwise; the copy doesn't ask for modes again.
    """
    scope: dict[str, Any] = {**vars(F), "has_torch_function": lambda _: False}
    for name, function in vars(F).items():
        if isinstance(function, FunctionType) and "linear" in function.__code__.co_names:
            copy = FunctionType(function.__code__, scope, name, function.__defaults__)
            copy.__kwdefaults__ = function.__kwdefaults__
            scope[name] = copy
    scope["linear"] = linear
    attention: Callable[..., object] = scope["multi_head_attention_forward"]
    return attention

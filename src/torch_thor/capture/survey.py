"""Which layers of a model are preconditioned, and how every parameter trains."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_thor.capture.coverage import Coverage, ParameterCoverage, Treatment
from torch_thor.capture.names import joined, own_names
from torch_thor.capture.selection import selected
from torch_thor.capture.tracked import TrackedLayer
from torch_thor.capture.uncurved import Matrices, matrices_of
from torch_thor.layers import Part, parts_of, reason_against
from torch_thor.layers.linear import SEQUENCE_FIRST
from torch_thor.layers.shards import reason_against_shards, unsharded_type
from torch_thor.layers.weight_norm import type_below, weight_normed
from torch_thor.options.errors import require
from torch_thor.options.update import Base

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from torch_thor.capture.selection import Selector


_FROZEN = "weight is not trained"
_BIAS = "bias: no column of the weight's matrix"
_APART = "its weight is in no parameter group of this optimizer"


@dataclass(frozen=True)
class Survey:
    """What was found in a model.

    Args:
        layers: Those to precondition.
        asleep: Those that would be, if their weight were not frozen.
        coverage: How every parameter trains.
        matrices: Those of the base rule that are matrices all the same.
    """

    layers: list[TrackedLayer]
    asleep: list[TrackedLayer]
    coverage: Coverage
    matrices: dict[nn.Parameter, Matrices]


def survey(
    model: nn.Module,
    exclude: Sequence[Selector],
    include: Sequence[Selector] = (),
    served: Container[nn.Parameter] | None = None,
    base: Base = Base(),
) -> Survey:
    """Finds the layers to precondition and accounts for every parameter.

    Args:
        model: The model.
        exclude: Names (``*`` is a wildcard) or types of modules to leave alone.
        include: The same of modules whose type is left alone unless asked for.
        served: Parameters that the optimizer steps; ``None`` takes all of the model's.
        base: What it says of the biases of layers.

    Raises:
        InvalidOptionError: For a selector that matches no module, or a lazy parameter.
    """
    _require_built(model)
    return _Surveyor(model, exclude, include, served, base).survey()


class _Surveyor:
    """What is asked of a model while it is surveyed; see ``survey``."""

    def __init__(
        self,
        model: nn.Module,
        exclude: Sequence[Selector],
        include: Sequence[Selector],
        served: Container[nn.Parameter] | None,
        base: Base,
    ) -> None:
        self._model, self._served, self._base = model, served, base
        self._excluded = selected("exclude", model, exclude)
        self._included = selected("include", model, include)
        self._own, self._owners = own_names(model), _owners(model)
        self._sequence_first = _sequence_first(model)
        self._reasons: dict[int, str] = {}

    def survey(self) -> Survey:
        layers: list[TrackedLayer] = []
        asleep: list[TrackedLayer] = []
        for name, module in self._model.named_modules():
            for part in self._parts(module):
                reason = self._reason_against(name, module, part)
                if (
                    reason in ("", _FROZEN)
                    and part.weight is not None
                    and self._serves(part.weight)
                ):
                    layer = self._track(name, module, part, part.weight)
                    (asleep if reason else layers).append(layer)
                    if not reason:
                        if layer.bias is None and part.bias is not None:
                            self._reasons[id(part.bias)] = self._refused(part.bias) or _BIAS
                        continue
                own = () if part.name else module.parameters(recurse=False)
                why = reason or _APART
                self._reasons.update((id(p), why) for p in (part.weight, part.bias, *own))
        curvature = {id(p): layer.curvature for layer in layers for p in layer.parameters}
        coverage = Coverage(tuple(self._account(curvature)))
        return Survey(layers, asleep, coverage, self._matrices(coverage))

    def _matrices(self, coverage: Coverage) -> dict[nn.Parameter, Matrices]:
        """Finds matrices that are neither shared nor excluded."""
        found = {}
        for entry, (name, parameter) in zip(coverage, self._model.named_parameters(), strict=True):
            path = name.rpartition(".")[0]
            left = path in self._excluded or len(self._owners[id(parameter)]) > 1
            if entry.treatment is Treatment.BASE and not left:
                matrices = matrices_of(self._model, name, entry.name, parameter)
                if matrices is not None:
                    found[parameter] = matrices
        return found

    def _account(self, curvature: Mapping[int, str]) -> Iterator[ParameterCoverage]:
        """Lists all parameters, how they train, and why."""
        for name, parameter in self._model.named_parameters():
            path, _, leaf = name.rpartition(".")
            module = self._model.get_submodule(path)
            if not parameter.requires_grad:
                treatment, why = Treatment.FROZEN, "requires_grad is False"
            elif not self._serves(parameter):
                treatment, why = Treatment.FROZEN, "in no parameter group of this optimizer"
            elif id(parameter) in curvature:
                treatment, why = Treatment.PRECONDITIONED, curvature[id(parameter)]
            else:
                why = self._shared(parameter) or self._reasons.get(id(parameter), "")
                treatment, why = Treatment.BASE, why or reason_against(module)
            shape, kind = tuple(parameter.shape), unsharded_type(module).__name__
            own = joined(self._own[path], leaf)
            yield ParameterCoverage(own, shape, kind, treatment, why)

    def _parts(self, module: nn.Module) -> Iterable[Part]:
        parts = parts_of(module)
        if module not in self._sequence_first:
            return parts
        normed = weight_normed(SEQUENCE_FIRST)
        return [
            replace(part, adapter=SEQUENCE_FIRST if part.adapter.sums_rows else normed)
            for part in parts
        ]

    def _serves(self, parameter: nn.Parameter) -> bool:
        return self._served is None or parameter in self._served

    def _track(
        self, name: str, module: nn.Module, part: Part, weight: nn.Parameter
    ) -> TrackedLayer:
        bias = part.bias
        reason = "" if bias is None else self._refused(bias)
        if reason and (reason != _FROZEN or weight.requires_grad):
            bias = None
        geometry = part.adapter.geometry(module, bias=bias is not None)
        if self._base.biases and geometry.bias:
            bias, geometry = None, part.adapter.geometry(module, bias=False)
        own = joined(self._own[name], part.name)
        return TrackedLayer(own, module, part.adapter, geometry, weight, bias, part.name)

    def _reason_against(self, name: str, module: nn.Module, part: Part) -> str:
        """Why a weight trains by the base rule; empty where it is preconditioned."""
        full = joined(name, part.name)
        if full in self._excluded:
            return "excluded"
        if part.weight is None:
            return "weight is not a plain parameter"
        if not (part.adapter.by_default or full in self._included):
            return f"not included (include=(nn.{type_below(module).__name__},))"
        reason = part.adapter.refusal(module) or self._refused(part.weight)
        if reason not in ("", _FROZEN):
            return reason
        shape = part.adapter.geometry(module, bias=False)
        if self._base.biases and part.weight.dim() == 1 and shape.structure.is_factored:
            return _BIAS
        by_rows = shape.is_plain and shape.matrices == 1 and not part.name
        return reason_against_shards(self._model, part.weight, by_rows=by_rows) or reason

    def _shared(self, parameter: nn.Parameter) -> str:
        """Under which names several modules hold a parameter; empty where one does."""
        names = self._owners[id(parameter)]
        return "shared: " + " = ".join(names) if len(names) > 1 else ""

    def _refused(self, parameter: nn.Parameter) -> str:
        """Why a parameter can't be part of a layer's matrix; empty where it can."""
        if shared := self._shared(parameter):
            return shared
        if not parameter.requires_grad:
            return _FROZEN
        if not parameter.is_floating_point():
            return f"no curvature for {parameter.dtype}"
        return "" if parameter.numel() else "weight has no entries"


def _require_built(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        allowed = "built: run one forward through a model with lazy layers first"
        require(f"parameter {name}", "uninitialized", not is_lazy(parameter), allowed)


def sparse_parameters(model: nn.Module) -> dict[Tensor, str]:
    """Weights whose gradients are sparse, with the names of their modules."""
    return {
        module.weight: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }


def _sequence_first(model: nn.Module) -> set[nn.Module]:
    """The Linears of torch's own transformer layers whose first dimension counts positions."""
    kinds = nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
    blocks = [module for module in model.modules() if isinstance(module, kinds)]
    return {
        linear
        for block in blocks
        if not block.self_attn.batch_first
        for linear in (block.linear1, block.linear2)
        if type_below(linear) is nn.Linear
    }


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The names under which modules hold each parameter, by the parameter's id."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name)
    # A module that stands at several places holds its parameters once.
    held = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    return {key: names if held[key] > 1 else names[:1] for key, names in owners.items()}

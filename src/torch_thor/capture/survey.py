"""Which layers of a model are preconditioned, and how every parameter trains."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_thor.capture.coverage import Coverage, ParameterCoverage, Treatment
from torch_thor.capture.names import joined, own_names
from torch_thor.capture.selection import full_name, selected
from torch_thor.capture.tracked import TrackedLayer
from torch_thor.layers import Part, parts_of, reason_against
from torch_thor.layers.linear import SEQUENCE_FIRST
from torch_thor.layers.shards import reason_against_shards, unsharded_type
from torch_thor.options.errors import require

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from torch_thor.capture.selection import Selector


_FROZEN = "weight is not trained"


@dataclass(frozen=True)
class Survey:
    """What was found in a model.

    Args:
        layers: Those to precondition.
        asleep: Those that would be, if their weight were not frozen.
        coverage: How every parameter trains.
    """

    layers: list[TrackedLayer]
    asleep: list[TrackedLayer]
    coverage: Coverage


def survey(
    model: nn.Module,
    exclude: Sequence[Selector],
    include: Sequence[Selector] = (),
    served: Container[nn.Parameter] | None = None,
) -> Survey:
    """Finds the layers to precondition and accounts for every parameter.

    Args:
        model: The model.
        exclude: Names (``*`` is a wildcard) or types of modules to leave alone.
        include: The same of modules whose type is left alone unless asked for.
        served: Parameters that the optimizer steps; ``None`` takes all of the model's.

    Raises:
        InvalidOptionError: For a selector that matches no module, or a lazy parameter.
    """
    _require_built(model)
    chosen = (selected("exclude", model, exclude), selected("include", model, include))
    owners, own = _owners(model), own_names(model)
    layers: list[TrackedLayer] = []
    asleep: list[TrackedLayer] = []
    reasons: dict[int, str] = {}
    sequence_first = _sequence_first(model)
    for name, module in model.named_modules():
        for part in _parts(module, sequence_first):
            full = full_name(name, part)
            reason = _reason_against(full, module, part, chosen, owners)
            if reason in ("", _FROZEN):
                reason = _reason_against_shards(model, module, part) or reason
            if reason in ("", _FROZEN) and part.weight is not None and _serves(served, part.weight):
                layer = _track(joined(own[name], part.name), module, part, part.weight, owners)
                (asleep if reason else layers).append(layer)
                if not reason:
                    continue
            hit = (part.weight, part.bias) if part.name else module.parameters(recurse=False)
            reasons.update((id(p), reason) for p in hit)
    covered = {id(p): _curvature(layer) for layer in layers for p in layer.parameters}

    def explain(parameter: nn.Parameter, module: nn.Module) -> tuple[Treatment, str]:
        if not parameter.requires_grad:
            return Treatment.FROZEN, "requires_grad is False"
        if not _serves(served, parameter):
            return Treatment.FROZEN, "in no parameter group of this optimizer"
        if id(parameter) in covered:
            return Treatment.PRECONDITIONED, covered[id(parameter)]
        why = _shared(parameter, owners) or reasons.get(id(parameter), "")
        return Treatment.BASE, why or reason_against(module)

    return Survey(layers, asleep, _account(model, explain))


def _account(
    model: nn.Module, explain: Callable[[nn.Parameter, nn.Module], tuple[Treatment, str]]
) -> Coverage:
    """Lists all parameters of a model, how they train, and why."""
    own = own_names(model)
    entries = []
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        treatment, why = explain(parameter, module)
        shape, kind = tuple(parameter.shape), unsharded_type(module).__name__
        entries.append(ParameterCoverage(joined(own[path], leaf), shape, kind, treatment, why))
    return Coverage(tuple(entries))


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
        if type(linear) is nn.Linear
    }


def _parts(module: nn.Module, sequence_first: set[nn.Module]) -> Iterable[Part]:
    parts = parts_of(module)
    if module not in sequence_first:
        return parts
    return [replace(part, adapter=SEQUENCE_FIRST) for part in parts]


def _serves(served: Container[nn.Parameter] | None, parameter: nn.Parameter) -> bool:
    return served is None or parameter in served


def _curvature(layer: TrackedLayer) -> str:
    return layer.geometry.structure.curvature


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


def _reason_against(
    name: str,
    module: nn.Module,
    part: Part,
    chosen: tuple[frozenset[str], frozenset[str]],
    owners: dict[int, list[str]],
) -> str:
    """Why a weight trains by the base rule; empty where it is preconditioned."""
    exclude, include = chosen
    if name in exclude:
        return "excluded"
    wanted = part.adapter.by_default or name in include
    kind = type(module).__name__
    if part.weight is None:
        return "weight is not a plain parameter"
    if not wanted:
        return f"not included (include=(nn.{kind},))"
    return part.adapter.refusal(module) or _refused(part.weight, owners)


def _reason_against_shards(model: nn.Module, module: nn.Module, part: Part) -> str:
    if part.weight is None:
        return ""
    shape = part.adapter.geometry(module, bias=False)
    by_rows = shape.is_plain and shape.matrices == 1 and not part.name
    return reason_against_shards(model, part.weight, by_rows=by_rows)


def _track(
    name: str, module: nn.Module, part: Part, weight: nn.Parameter, owners: dict[int, list[str]]
) -> TrackedLayer:
    bias = part.bias
    reason = "" if bias is None else _refused(bias, owners)
    if reason and (reason != _FROZEN or weight.requires_grad):
        bias = None
    geometry = part.adapter.geometry(module, bias=bias is not None)
    return TrackedLayer(name, module, part.adapter, geometry, weight, bias, part.name)


def _shared(parameter: nn.Parameter, owners: dict[int, list[str]]) -> str:
    """Under which names several modules hold a parameter; empty where one does."""
    names = owners[id(parameter)]
    return "shared: " + " = ".join(names) if len(names) > 1 else ""


def _refused(parameter: nn.Parameter, owners: dict[int, list[str]]) -> str:
    """Why a parameter can't be part of a layer's matrix; empty where it can."""
    if shared := _shared(parameter, owners):
        return shared
    if not parameter.requires_grad:
        return _FROZEN
    if not parameter.is_floating_point():
        return f"no curvature for {parameter.dtype}"
    if not parameter.numel():
        return "weight has no entries"
    return ""

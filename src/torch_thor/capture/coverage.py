"""Which parameters are preconditioned, which not, and why."""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_thor.capture.names import joined, own_names, own_parameters
from torch_thor.capture.selection import full_name, selected
from torch_thor.capture.tracked import TrackedLayer
from torch_thor.layers import Part, parts_of, reason_against
from torch_thor.layers.shards import reason_against_shards, unsharded_type
from torch_thor.options.errors import require

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from torch_thor.capture.selection import Selector


class Treatment(enum.Enum):
    """How a parameter trains."""

    PRECONDITIONED = "preconditioned"
    BASE = "base rule"
    FROZEN = "not trained"


@dataclass(frozen=True)
class ParameterCoverage:
    """One line of the report.

    Args:
        name: Qualified name of the parameter.
        shape: Its shape.
        layer_type: Class of the module that owns it.
        treatment: How it trains.
        reason: Why, in words.
    """

    name: str
    shape: tuple[int, ...]
    layer_type: str
    treatment: Treatment
    reason: str

    @property
    def size(self) -> int:
        """Number of entries."""
        result = 1
        for length in self.shape:
            result *= length
        return result


@dataclass(frozen=True)
class Coverage:
    """The report on a whole model; ``str()`` prints it as a table.

    Args:
        parameters: One entry for every parameter of the model.
    """

    parameters: tuple[ParameterCoverage, ...]

    def __iter__(self) -> Iterator[ParameterCoverage]:
        """Iterates over the entries."""
        return iter(self.parameters)

    def share(self, treatment: Treatment) -> float:
        """Share of the model's entries that train this way, in [0, 1]."""
        total = sum(entry.size for entry in self.parameters)
        return sum(e.size for e in self.parameters if e.treatment is treatment) / max(total, 1)

    def __str__(self) -> str:
        """Renders a table with totals."""
        rows = [
            (
                e.name,
                "x".join(map(str, e.shape)) or "scalar",
                e.layer_type,
                e.treatment.value,
                e.reason,
            )
            for e in self.parameters
        ]
        head = ("parameter", "shape", "layer", "trains by", "reason")
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
        totals = ", ".join(f"{t.value} {self.share(t):.1%}" for t in Treatment)
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], f"entries: {totals}"])


def survey(
    model: nn.Module,
    exclude: Sequence[Selector],
    include: Sequence[Selector] = (),
    served: Container[nn.Parameter] | None = None,
) -> tuple[list[TrackedLayer], Coverage]:
    """Finds the layers to precondition and accounts for every parameter.

    Args:
        model: The model.
        exclude: Names (``*`` is a wildcard) or types of modules to leave alone.
        include: The same of modules whose type is left alone unless asked for.
        served: Parameters that the optimizer steps; ``None`` takes all of the model's.

    Raises:
        InvalidOptionError: For a selector that matches no module, or a lazy parameter.
    """
    for name, parameter in model.named_parameters():
        allowed = "built: run one forward through a model with lazy layers first"
        require(f"parameter {name}", "uninitialized", not is_lazy(parameter), allowed)
    chosen = (selected("exclude", model, exclude), selected("include", model, include))
    owners, own = _owners(model), own_names(model)
    layers: list[TrackedLayer] = []
    reasons: dict[int, str] = {}
    for name, module in model.named_modules():
        for part in parts_of(module):
            full = full_name(name, part)
            reason = _reason_against(full, module, part, chosen, owners)
            reason = reason or _reason_against_shards(model, module, part)
            if not reason and part.weight is not None and _serves(served, part.weight):
                named = joined(own[name], part.name)
                layers.append(_track(named, module, part, part.weight, owners))
                continue
            hit = (part.weight, part.bias) if part.name else module.parameters(recurse=False)
            reasons.update((id(p), reason) for p in hit)
    covered = {id(p): _curvature(layer) for layer in layers for p in layer.parameters}
    entries = []
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        treatment = Treatment.BASE
        shared = _shared(parameter, owners)
        why = shared or reasons.get(id(parameter), "") or reason_against(module)
        if not parameter.requires_grad:
            treatment, why = Treatment.FROZEN, "requires_grad is False"
        elif not _serves(served, parameter):
            treatment, why = Treatment.FROZEN, "in no parameter group of this optimizer"
        elif id(parameter) in covered:
            treatment, why = Treatment.PRECONDITIONED, covered[id(parameter)]
        shape, kind = tuple(parameter.shape), unsharded_type(module).__name__
        known = joined(own[path], leaf)
        entries.append(ParameterCoverage(known, shape, kind, treatment, why))
    return layers, Coverage(tuple(entries))


def as_seen(
    coverage: Coverage, model: nn.Module, reasons: Mapping[nn.Parameter, str], foreign: int
) -> Coverage:
    """Corrects a survey by what the hooks have seen since.

    Args:
        coverage: What was found in the model.
        model: The model.
        reasons: Why parameters of tracked layers step by the base rule so far.
        foreign: Parameters that the optimizer steps and that are not the model's.
    """
    named = own_parameters(model)
    entries = [
        replace(entry, treatment=Treatment.BASE, reason=reasons[named[entry.name]])
        if named[entry.name] in reasons
        else entry
        for entry in coverage
    ]
    if foreign:
        why = f"{foreign} parameters of the groups are not the model's"
        entries.append(ParameterCoverage("(others)", (), "", Treatment.BASE, why))
    return Coverage(tuple(entries))


def sparse_parameters(model: nn.Module) -> dict[Tensor, str]:
    """Weights whose gradients are sparse, with the names of their modules."""
    return {
        module.weight: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }


def _serves(served: Container[nn.Parameter] | None, parameter: nn.Parameter) -> bool:
    return served is None or parameter in served


def _curvature(layer: TrackedLayer) -> str:
    return "Fisher of each channel" if layer.geometry.unit_wise else "Kronecker factors"


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
    by_rows = shape.matrices == 1 and not (
        shape.transposed or shape.one_hot or shape.unit_wise or part.name
    )
    return reason_against_shards(model, part.weight, by_rows=by_rows)


def _track(
    name: str, module: nn.Module, part: Part, weight: nn.Parameter, owners: dict[int, list[str]]
) -> TrackedLayer:
    bias = None if part.bias is None or _refused(part.bias, owners) else part.bias
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
        return "weight is not trained"
    if not parameter.is_floating_point():
        return f"no curvature for {parameter.dtype}"
    if not parameter.numel():
        return "weight has no entries"
    return ""

"""Which parameters are preconditioned, which not, and why."""

from __future__ import annotations

import enum
import fnmatch
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from torch_thor.capture import TrackedLayer
from torch_thor.errors import InvalidOptionError, require
from torch_thor.layers import adapter_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Selector: TypeAlias = str | type[nn.Module]


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


def survey(model: nn.Module, exclude: Sequence[Selector]) -> tuple[list[TrackedLayer], Coverage]:
    """Finds the layers to precondition and accounts for every parameter.

    Args:
        model: The model.
        exclude: Names (``*`` is a wildcard) or types of modules to leave alone.

    Raises:
        InvalidOptionError: For a selector that matches no module, or a lazy parameter.
    """
    for name, parameter in model.named_parameters():
        allowed = "built: run one forward through a model with lazy layers first"
        require(f"parameter {name}", "uninitialized", not is_lazy(parameter), allowed)
    _check_selectors(model, exclude)
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    layers: list[TrackedLayer] = []
    entries: list[ParameterCoverage] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        layer, reason = _track(name, module, exclude, owners)
        if layer is not None:
            layers.append(layer)
        covered = {id(p) for p in layer.parameters} if layer is not None else set()
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            treatment, why = Treatment.BASE, reason
            if not parameter.requires_grad:
                treatment, why = Treatment.FROZEN, "requires_grad is False"
            elif id(parameter) in covered:
                treatment, why = Treatment.PRECONDITIONED, "Kronecker factors"
            entries.append(
                ParameterCoverage(
                    f"{name}.{key}" if name else key,
                    tuple(parameter.shape),
                    type(module).__name__,
                    treatment,
                    why,
                )
            )
    return layers, Coverage(tuple(entries))


def _check_selectors(model: nn.Module, exclude: Sequence[Selector]) -> None:
    for selector in exclude:
        if not any(_matches(selector, name, m) for name, m in model.named_modules()):
            shown = selector if isinstance(selector, str) else selector.__name__
            raise InvalidOptionError(
                "exclude", shown, "the name (or pattern, or type) of a module of the model"
            )


def _matches(selector: Selector, name: str, module: nn.Module) -> bool:
    if isinstance(selector, str):
        inside = name.startswith(f"{selector}.")
        return inside or fnmatch.fnmatchcase(name, selector)
    return isinstance(module, selector)


def _track(
    name: str, module: nn.Module, exclude: Sequence[Selector], owners: Counter[int]
) -> tuple[TrackedLayer | None, str]:
    """Returns the layer, or ``None`` and the reason why it is none."""
    adapter = adapter_for(module)
    if adapter is None:
        return None, f"no curvature for {type(module).__name__}"
    if any(_matches(selector, name, module) for selector in exclude):
        return None, "excluded"
    own = dict(module.named_parameters(recurse=False))
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or (reason := _refused(weight, owners)):
        return None, "weight is not a plain parameter" if weight is None else reason
    if bias is not None and _refused(bias, owners):
        bias = None
    geometry = adapter.geometry(module, bias=bias is not None)
    return TrackedLayer(name, module, adapter, geometry, weight, bias), ""


def _refused(parameter: nn.Parameter, owners: Counter[int]) -> str:
    """Why a parameter can't be part of a layer's matrix; empty where it can."""
    if owners[id(parameter)] > 1:
        return "shared with another module"
    if not parameter.requires_grad:
        return "weight is not trained"
    if not parameter.is_floating_point():
        return f"no curvature for {parameter.dtype}"
    return ""

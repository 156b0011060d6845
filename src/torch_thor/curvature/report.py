"""What there is to see of each layer's curvature and of its latest step, when it is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import torch

from torch_thor.curvature.decisions import relative_change
from torch_thor.curvature.spectra import spectra
from torch_thor.options.tables import Table, Tabular

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.engine import CurvatureEngine
    from torch_thor.curvature.verdict import Outlook

Moves: TypeAlias = "Sequence[tuple[Sequence[TrackedLayer], Tensor]]"  # [2, l]: step, turned

_UNKNOWN = "–"
_WORDS = {
    "age": "age",
    "change": "Δ trace",
    "rank_a": "rank of A",
    "rank_g": "rank of G",
    "condition_a": "condition of A",
    "condition_g": "condition of G",
    "step": "step ÷ weight",
    "turned": "turned",
    "failures": "failures",
}


@dataclass(frozen=True)
class LayerNumbers:
    """What is known of one layer; NaN where something is not.

    Args:
        name: The layer's.
        size: Rows of its factors (A, G), between which and 1 the ranks lie.
        age: Steps since the curvature in use was found; 0 if the latest step did.
        change: Δ of eq. 8 when the layer was last due; infinite at its first refresh.
        rank_a: Effective rank of A, (Σ μ)² / Σ μ² over the eigenvalues μ of its blocks.
        rank_g: The same of G; of a sharded layer, of the rows that this rank owns.
        condition_a: (μ_max + shift) / shift of A, the shift being what λ adds to its diagonal.
        condition_g: The same of G.
        step: Length of the latest step ÷ length of the weight, biases included that are part of the
            layer's matrix; of a sharded layer, of the rows that this rank owns.
        turned: 1 − cos² of the angle between the direction and what was preconditioned (the
            gradient, or its momentum): the share that curvature and norm control have put in.
        failures: Failed inversions in a row.
    """

    name: str
    size: tuple[int, int]
    age: float = math.nan
    change: float = math.nan
    rank_a: float = math.nan
    rank_g: float = math.nan
    condition_a: float = math.nan
    condition_g: float = math.nan
    step: float = math.nan
    turned: float = math.nan
    failures: float = 0.0


QUANTITIES = tuple(one.name for one in fields(LayerNumbers) if one.name not in ("name", "size"))


@dataclass(frozen=True)
class _Known:
    """What the host knows of a layer when it is asked."""

    layer: TrackedLayer
    size: tuple[int, int]
    age: float = math.nan
    change: float = math.nan
    trace: float | None = None
    failures: int = 0


@dataclass(frozen=True, eq=False)
class StatisticsReport(Tabular):
    """What ``statistics()`` has found; it prints as a table, and shows as one in a notebook.

    The numbers are on the device until they are read; reading them waits for it.

    Args:
        steps: Steps taken when it was asked for.
    """

    steps: int
    _known: tuple[_Known, ...]
    _spectra: Moves  # [4, l]: as in ``spectra``
    _moves: Moves
    _outlook: Outlook | None

    def numbers(self) -> tuple[LayerNumbers, ...]:
        """Returns one entry for every preconditioned layer, in the model's order."""
        return self._numbers

    @cached_property
    def _numbers(self) -> tuple[LayerNumbers, ...]:
        spectra = _by_layer(self._spectra)
        moves = _by_layer(self._moves)
        refreshed = {} if self._outlook is None else self._read(self._outlook)
        found = []
        for one in self._known:
            age, change = refreshed.get(one.layer, (one.age, one.change))
            rank_a, rank_g, condition_a, condition_g = spectra.get(one.layer, (math.nan,) * 4)
            step, turned = moves.get(one.layer, (math.nan, math.nan))
            found.append(
                LayerNumbers(
                    one.layer.name,
                    one.size,
                    age,
                    change,
                    rank_a,
                    rank_g,
                    condition_a,
                    condition_g,
                    step,
                    turned,
                    float(one.failures),
                )
            )
        return tuple(found)

    def _read(self, outlook: Outlook) -> dict[TrackedLayer, tuple[float, float]]:
        """Age and Δ of layers of whose refresh the host didn't know when it was asked."""
        known = {one.layer: one for one in self._known}
        age = float(self.steps - 1 - outlook.step)
        found = {}
        for layer, trace, succeeded in outlook.read():
            before = known[layer].trace
            change = math.inf if before is None else relative_change(trace, before)
            found[layer] = (age if succeeded else known[layer].age, change)
        return found

    def __iter__(self) -> Iterator[LayerNumbers]:
        return iter(self.numbers())

    def scalars(self) -> dict[str, float]:
        """Returns all finite numbers by ``"quantity/layer"``, as ``wandb.log`` takes them."""
        return {
            f"{_WORDS[quantity]}/{one.name or 'model'}": value
            for quantity in QUANTITIES
            for one in self
            if math.isfinite(value := getattr(one, quantity))
        }

    @property
    def table(self) -> Table:
        """One row for every preconditioned layer."""
        rows = [
            (
                one.name or "(the model)",
                _number(one.age),
                _number(one.change),
                *(
                    f"{_number(rank)} of {size}"
                    for rank, size in zip((one.rank_a, one.rank_g), one.size, strict=True)
                ),
                *map(_number, (one.condition_a, one.condition_g, one.step, one.turned)),
                _number(one.failures),
            )
            for one in self
        ]
        head = ("layer", *_WORDS.values())
        return Table(head, rows, (f"after {self.steps} steps",))


def _by_layer(found: Moves) -> dict[TrackedLayer, tuple[float, ...]]:
    """Numbers on the device, by layer; waits."""
    return {
        layer: tuple(own)
        for layers, values in found
        for layer, own in zip(layers, values.T.tolist(), strict=True)
    }


def _number(value: float) -> str:
    """Three digits, however large."""
    if math.isnan(value):
        return _UNKNOWN
    if math.isinf(value):
        return "∞"
    return f"{value:.0f}" if value.is_integer() and value < 1e4 else f"{value:.3g}"


@torch.no_grad()
def statistics_of(
    engine: CurvatureEngine, dampings: Mapping[nn.Parameter, float], moves: Moves
) -> StatisticsReport:
    """Asks for the statistics of all layers; nothing waits for the device.

    Args:
        engine: The layers and their curvature.
        dampings: λ of each weight.
        moves: Length of step ÷ length of weight, and share of the direction that was turned.
    """
    places = {place.layer: place for place in engine.store}
    known = []
    for layer in engine.layers:
        size = (layer.geometry.columns, layer.geometry.outputs)
        if layer not in places:
            known.append(_Known(layer, size))
            continue
        record = places[layer].record
        age = math.nan if record.renewed is None else float(engine.steps - 1 - record.renewed)
        change = math.nan if record.change is None else record.change
        known.append(_Known(layer, size, age, change, record.trace, record.failures))
    stacks = engine.stacks
    ranks = zip((stack.layers for stack in stacks), spectra(stacks, dampings), strict=True)
    outlook = None if engine.verdict is None else engine.verdict.outlook()
    return StatisticsReport(engine.steps, tuple(known), tuple(ranks), tuple(moves), outlook)

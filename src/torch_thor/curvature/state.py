"""What a checkpoint holds of the engine, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import torch
from torch import Tensor

from torch_thor.capture.names import joined, own_names
from torch_thor.curvature.clock import Calendar, RefreshClock
from torch_thor.curvature.decisions import LayerRecord
from torch_thor.layers import parts_of
from torch_thor.layers.shards import as_shards, local
from torch_thor.options.checks import check_types
from torch_thor.options.errors import StateMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.options import CurvatureOptions
    from torch_thor.curvature.stacks import LayerStack
    from torch_thor.curvature.store import CurvatureStore
    from torch_thor.layers import Part
    from torch_thor.options.trace_rule import TraceRule

Identity: TypeAlias = "tuple[nn.Module, str]"

FORMAT = 2
READABLE = (1, FORMAT)
DAMPING_MODE = "damping_mode"


class Holder(Protocol):
    """What has curvature: the engine, as far as a checkpoint asks for it.

    Attributes:
        model: The model.
        options: See ``CurvatureOptions``.
        store: The curvature.
        steps: Steps taken.
        calendar: When factors and inverses are due.
    """

    model: nn.Module
    options: CurvatureOptions
    store: CurvatureStore
    steps: int
    calendar: Calendar

    @property
    def layers(self) -> list[TrackedLayer]:
        """The model's layers."""


def save(engine: Holder) -> dict[str, Any]:
    """Returns tensors and plain numbers only, so ``weights_only=True`` loads it."""
    layers: dict[str, Any] = {}
    for stack in engine.store.stacks:
        for slot, layer in enumerate(stack.layers):
            layers[layer.name] = {
                "geometry": _geometry(layer),
                "record": asdict(engine.store.records[layer.name]),
                "weight": stack.weights[slot],
                "ready": stack.ready[slot],
                "split": cut_of(stack),
                "tensors": [_saved(stack, slot, tensor) for tensor in _tensors(stack)],
                "rows": stack.rows.saved(slot),
            }
    names = {identity: name for name, (identity, _) in places_of(engine.model).items()}
    return {
        "format": FORMAT,
        "power": engine.options.power,
        "eigen": engine.options.eigenvalue_correction,
        # Words stand in keys, so that all values are numbers or tensors, which can be compared.
        "options": {f"{name}={word}": True for name, word in words_of(engine.options).items()},
        "trace_rule": numbers_of(engine.options.trace_rule),
        "steps": engine.steps,
        "began": engine.calendar.began,
        "clocks": [asdict(clock) for clock in engine.calendar.clocks],
        "layers": layers,
        "resting": {
            names[identity]: entry
            for identity, entry in engine.store.resting.items()
            if identity in names
        },
    }


def places_of(model: nn.Module) -> dict[str, tuple[Identity, Part]]:
    """Returns every weight of a model that has an adapter, by its own name."""
    own = own_names(model)
    return {
        joined(own[path], part.name): ((module, part.name), part)
        for path, module in model.named_modules()
        for part in parts_of(module)
    }


def words_of(options: CurvatureOptions) -> dict[str, str]:
    """Says what the factors average, and how damping enters."""
    told = options.statistics
    return {
        "fisher": told.fisher,
        "weight_sharing": told.weight_sharing,
        "norm_fisher": told.norm_fisher,
        "loss_reduction": told.loss_reduction,
        DAMPING_MODE: options.damping.mode,
    }


def numbers_of(rule: TraceRule | None) -> list[float]:
    """Says what a trace rule compares with what; nothing of none."""
    if rule is None:
        return []
    kinds = (rule.damped_trace == "product", rule.compare == "distance")
    return [rule.update_above, rule.freeze_below, *map(float, kinds)]


def cut_of(stack: LayerStack) -> list[int]:
    """Rows of a block of A and of G."""
    return [stack.a.partition.block, stack.g.partition.block]


@dataclass(frozen=True)
class SavedLayer:
    """What is saved of a layer.

    Args:
        geometry: (k, out, columns) of its matrices.
        record: What the engine remembers of it.
        weight: Weight of its running averages.
        ready: Whether it has an inverse.
        split: Rows of a block of A and of G.
        tensors: Factors, traces and inverses.
        rows: Averages of its rows; checkpoints of version 0.1 have none.

    Raises:
        InvalidOptionError: For what is of another type.
    """

    geometry: tuple[int, ...]
    record: LayerRecord
    weight: float
    ready: bool
    split: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        """Checks the types."""
        check_types(self)
        check_types(self.record)

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Self:
        """Reads an entry of a checkpoint."""
        return cls(**{**entry, "record": LayerRecord(**entry["record"])})

    def entry(self) -> dict[str, Any]:
        """Returns it as a checkpoint has it."""
        return {**vars(self), "record": asdict(self.record)}

    def is_of(self, layer: TrackedLayer) -> bool:
        """Says whether a layer's matrices have this shape."""
        return list(self.geometry) == _geometry(layer)

    def fits(self, stack: LayerStack, slot: int) -> bool:
        """Says whether it has the tensors of a layer of a stack."""
        sizes = [local(tensor).numel() for tensor in self.tensors]
        own = [tensor[slot].numel() for tensor in _tensors(stack)]
        rows = self.rows is None or self.rows.shape == stack.rows.saved(slot).shape
        return self.is_of(stack.layers[slot]) and sizes == own and rows

    @torch.no_grad()
    def fill(self, stack: LayerStack, slot: int) -> None:
        """Copies its tensors into a stack that it fits."""
        stack.weights[slot], stack.ready[slot] = self.weight, self.ready
        if self.rows is not None:
            stack.rows.restore(slot, self.rows)
        for tensor, value in zip(_tensors(stack), self.tensors, strict=True):
            tensor[slot].copy_(local(value).view_as(tensor[slot]))


@dataclass(frozen=True)
class SavedState:
    """A checkpoint's curvature.

    Args:
        layers: What is saved of each layer, by the name that it was saved with.
        power: p of the inverse roots.
        eigen: Whether it is EKFAC's.
        steps: Steps taken.
        clocks: When factors and inverses are due.
        began: Step from which intervals count.
        options: Words of the options, ``name=word``; checkpoints of version 0.1 have none.
        trace_rule: Numbers of the rule of decisions.
        resting: What is saved of layers that were frozen then, by name.
        skipped_steps: What an optimizer keeps there.
    """

    layers: dict[str, SavedLayer]
    power: float
    eigen: bool
    steps: int
    clocks: tuple[RefreshClock, ...]
    began: int = 0
    options: dict[str, bool] = field(default_factory=dict)
    trace_rule: tuple[float, ...] = ()
    resting: dict[str, SavedLayer] = field(default_factory=dict)
    skipped_steps: int = 0

    def __post_init__(self) -> None:
        """Checks the types."""
        check_types(self)
        for clock in self.clocks:
            check_types(clock)

    @property
    def words(self) -> dict[str, str]:
        """The words of the options, as far as the checkpoint has them."""
        pairs = (word.partition("=") for word in self.options)
        return {name: word for name, _, word in pairs}

    def damps_as(self, engine: Holder) -> bool:
        """Says whether damping entered as it does in an engine."""
        own = words_of(engine.options)[DAMPING_MODE]
        return self.words.get(DAMPING_MODE, own) == own


def read(state: Any) -> SavedState:
    """Reads what ``state_dict`` returned.

    Raises:
        StateMismatchError: Where it can't be read.
    """
    if not isinstance(state, dict) or state.get("format") not in READABLE:
        raise StateMismatchError(
            "The checkpoint holds no curvature state that this version can read. "
            "Load what this optimizer's state_dict() returned; torch's get_optimizer_state_dict "
            "drops the curvature."
        )
    try:
        first, second = (RefreshClock(**clock) for clock in state["clocks"])
        layers = {name: SavedLayer.of(entry) for name, entry in state["layers"].items()}
        resting = state.get("resting", {}).items()
        rest = {name: SavedLayer.of(entry) for name, entry in resting}
        known = ("format", "clocks", "layers", "resting", "skipped_steps")
        others = {key: value for key, value in state.items() if key not in known}
        return SavedState(layers=layers, resting=rest, clocks=(first, second), **others)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StateMismatchError(
            f"The checkpoint's curvature can't be read ({type(error).__name__}: {error}). "
            "Load what this optimizer's state_dict() returned, unchanged."
        ) from error


def restore_layers(store: CurvatureStore, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Copies in what is saved of the layers that there are, by name, where it fits."""
    for stack in store.stacks:
        for slot, layer in enumerate(stack.layers):
            if layer.name in entries:
                saved = SavedLayer.of(entries[layer.name])
                if saved.fits(stack, slot):
                    store.records[layer.name] = saved.record
                    saved.fill(stack, slot)


def _geometry(layer: TrackedLayer) -> list[int]:
    geometry = layer.geometry
    return [geometry.matrices, geometry.outputs, geometry.columns]


def _saved(stack: LayerStack, slot: int, tensor: Tensor) -> Tensor:
    """A layer's part of a tensor of the stack, distributed as its weight's rows are."""
    part = tensor[slot].clone()
    by_rows = tensor is stack.g.blocks or tensor is stack.inverses.g
    sharded = by_rows and stack.shard is not None
    return as_shards(part, stack.layers[slot].weight) if sharded else part


def _tensors(stack: LayerStack) -> tuple[Tensor, ...]:
    factors = (stack.a.blocks, stack.g.blocks, stack.a.traces, stack.g.traces)
    return (*factors, *stack.inverses.tensors)

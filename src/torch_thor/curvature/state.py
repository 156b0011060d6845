"""What a checkpoint holds of the curvature: tensors and plain numbers, layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from torch_thor.curvature.clock import RefreshClock
from torch_thor.curvature.stacks import LayerRecord
from torch_thor.layers.shards import as_shards, local
from torch_thor.options.checks import check_types
from torch_thor.options.errors import StateMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.options import CurvatureOptions
    from torch_thor.curvature.stacks import Place
    from torch_thor.options.trace_rule import TraceRule

FORMAT = 2
READABLE = (1, FORMAT)
DAMPING_MODE = "damping_mode"
NO_STATISTICS = "no statistics yet"


@dataclass(frozen=True)
class SavedLayer:
    """What is saved of a layer; checks its types."""

    geometry: tuple[int, ...]  # (k, out, columns) of its matrices
    record: LayerRecord
    starved: bool  # whether it was said that it gets a gradient and no statistics
    split: tuple[int, ...]  # rows of a block of A and of G
    tensors: tuple[Tensor, ...]  # factors, traces and inverses
    rows: Tensor | None = None  # their averages; checkpoints of version 0.1 have none

    def __post_init__(self) -> None:
        check_types(self)
        check_types(self.record)

    @classmethod
    def of(cls, place: Place) -> Self:
        """Takes a copy of what there is."""
        stack, slot, layer = place.stack, place.slot, place.layer
        return cls(
            shape_of(layer),
            replace(place.record),
            bool(layer.cause),
            cut_of(place),
            tuple(_saved(place, tensor) for tensor in stack.tensors),
            stack.rows.saved(slot),
        )

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Self:
        """Reads an entry of a checkpoint."""
        known = dict(entry)
        told = dict(known.pop("record"))
        starved = told.pop("starved", False)
        record = LayerRecord(known.pop("weight"), known.pop("ready"), **told)
        return cls(record=record, starved=starved, **known)

    def entry(self) -> dict[str, Any]:
        """Returns it as a checkpoint has it."""
        told = asdict(self.record)
        return {
            "geometry": list(self.geometry),
            "weight": told.pop("weight"),
            "ready": told.pop("ready"),
            "record": {**told, "starved": self.starved},
            "split": list(self.split),
            "tensors": list(self.tensors),
            "rows": self.rows,
        }

    def fits(self, place: Place) -> bool:
        """Says whether it has the tensors of a layer at a place."""
        stack, slot = place.stack, place.slot
        sizes = [local(tensor).numel() for tensor in self.tensors]
        own = [tensor[slot].numel() for tensor in stack.tensors]
        rows = self.rows is None or self.rows.shape == stack.rows.saved(slot).shape
        return tuple(self.geometry) == shape_of(place.layer) and sizes == own and rows

    @torch.no_grad()
    def fill(self, place: Place, record: LayerRecord | None = None) -> None:
        """Copies it to a place that it fits, with another record if one is given."""
        stack, slot, layer = place.stack, place.slot, place.layer
        stack.records[slot] = replace(record or self.record)
        if self.starved:
            layer.cause = layer.cause or NO_STATISTICS
        if self.rows is not None:
            stack.rows.restore(slot, self.rows)
        for tensor, value in zip(stack.tensors, self.tensors, strict=True):
            tensor[slot].copy_(local(value).view_as(tensor[slot]))


def shape_of(layer: TrackedLayer) -> tuple[int, int, int]:
    """(k, out, columns) of a layer's matrices."""
    return layer.geometry.matrices, layer.geometry.outputs, layer.geometry.columns


def cut_of(place: Place) -> tuple[int, int]:
    """Rows of a block of A and of G."""
    return place.stack.a.partition.block, place.stack.g.partition.block


def _saved(place: Place, tensor: Tensor) -> Tensor:
    """A layer's part of a tensor of the stack, distributed as its weight's rows are."""
    stack, part = place.stack, tensor[place.slot].clone()
    by_rows = tensor is stack.g.blocks or tensor is stack.inverses.g
    return as_shards(part, place.layer.weight) if by_rows and stack.shard is not None else part


@dataclass(frozen=True)
class SavedState:
    """A checkpoint's curvature; checks its types. Layers are named as when they were saved."""

    layers: dict[str, SavedLayer]
    power: float
    eigen: bool
    steps: int
    clocks: tuple[RefreshClock, ...]
    began: int = 0
    options: dict[str, bool] = field(default_factory=dict)  # "name=word"; version 0.1 has none
    trace_rule: tuple[float, ...] = ()
    resting: dict[str, SavedLayer] = field(default_factory=dict)  # frozen when it was saved
    skipped_steps: int = 0  # which an optimizer keeps there
    overshoot: dict[str, Any] | None = None  # which an optimizer keeps there too
    outputs: dict[str, bool] | None = None  # layers that the base rule has; None: not known yet

    def __post_init__(self) -> None:
        check_types(self)
        for clock in self.clocks:
            check_types(clock)

    @classmethod
    def read(cls, state: Any) -> Self:
        """Reads what ``state_dict`` returned.

        Raises:
            StateMismatchError: Where it can't be read.
        """
        if not isinstance(state, dict) or state.get("format") not in READABLE:
            raise StateMismatchError(
                "The checkpoint holds no curvature state that this version can read. "
                "Load what this optimizer's state_dict() returned; torch's "
                "get_optimizer_state_dict drops the curvature."
            )
        try:
            known = {key: value for key, value in state.items() if key != "format"}
            first, second = (RefreshClock(**clock) for clock in known.pop("clocks"))
            layers, resting = (
                {name: SavedLayer.read(entry) for name, entry in entries.items()}
                for entries in (known.pop("layers"), known.pop("resting", {}))
            )
            return cls(layers=layers, resting=resting, clocks=(first, second), **known)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateMismatchError(
                f"The checkpoint's curvature can't be read ({type(error).__name__}: {error}). "
                "Load what this optimizer's state_dict() returned, unchanged."
            ) from error

    @property
    def words(self) -> dict[str, str]:
        """The words of the options, as far as the checkpoint has them."""
        pairs = (word.partition("=") for word in self.options)
        return {name: word for name, _, word in pairs}

    def damps_as(self, options: CurvatureOptions) -> bool:
        """Says whether damping entered as it does with these options."""
        own = options.damping.mode
        return self.words.get(DAMPING_MODE, own) == own


def saved_options(options: CurvatureOptions) -> dict[str, Any]:
    """What a checkpoint says of the options behind it."""
    return {
        "power": options.power,
        "eigen": options.eigenvalue_correction,
        # Words stand in keys, so that all values are numbers or tensors, which can be compared.
        "options": {f"{name}={word}": True for name, word in words_of(options).items()},
        "trace_rule": numbers_of(options.trace_rule),
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

"""What a checkpoint holds of the engine, and how it is checked before it is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_thor.errors import StateMismatchError
from torch_thor.shards import as_shards, local
from torch_thor.stacks import SplitRule

if TYPE_CHECKING:
    from torch_thor.capture import TrackedLayer
    from torch_thor.engine import CurvatureEngine
    from torch_thor.stacks import LayerStack

FORMAT = 1


def save(engine: CurvatureEngine) -> dict[str, Any]:
    """Returns tensors and plain numbers only, so ``weights_only=True`` loads it."""
    layers: dict[str, Any] = {}
    for stack in engine.stacks:
        for slot, layer in enumerate(stack.layers):
            layers[layer.name] = {
                "geometry": _geometry(layer),
                "record": asdict(engine.records[layer.name]),
                "weight": stack.weights[slot],
                "ready": stack.ready[slot],
                "split": [stack.a.partition.block, stack.g.partition.block],
                "tensors": [_saved(stack, slot, tensor) for tensor in _tensors(stack)],
                "rows": stack.rows.saved(slot),
            }
    return {
        "format": FORMAT,
        "power": engine.options.power,
        "eigen": engine.options.eigenvalue_correction,
        "steps": engine.steps,
        "clocks": [asdict(clock) for clock in engine.clocks],
        "layers": layers,
    }


def has_layers(saved: Any) -> bool:
    """Says whether the state was saved after the first step."""
    return bool(saved["layers"])


def check_layers(engine: CurvatureEngine, saved: Any) -> None:
    """Raises ``StateMismatchError`` unless ``saved`` names the engine's layers."""
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise StateMismatchError(
            "The checkpoint holds no curvature state that this version can read. "
            "Load what this optimizer's state_dict() returned; torch's get_optimizer_state_dict "
            "drops the curvature."
        )
    own = (engine.options.power, engine.options.eigenvalue_correction)
    if (saved["power"], saved["eigen"]) != own:
        raise StateMismatchError(
            f"The checkpoint was saved with (power, eigenvalue correction) = "
            f"{(saved['power'], saved['eigen'])}, this optimizer has {own}. "
            "Build it with the options that it was saved with."
        )
    expected = {layer.name for layer in engine.layers}
    found = set(saved["layers"])
    if found and found != expected:
        raise StateMismatchError(
            f"The checkpoint is of another model: layers missing in it "
            f"{sorted(expected - found)[:5]}, layers unknown to the model "
            f"{sorted(found - expected)[:5]}. Build the same model and optimizer first."
        )


def check_shapes(stacks: list[LayerStack], saved: Any) -> None:
    """Raises ``StateMismatchError`` unless every layer's tensors have the stacks' shapes."""
    for stack in stacks if has_layers(saved) else ():
        for slot, layer in enumerate(stack.layers):
            _check_shapes(layer.name, stack, slot, saved["layers"][layer.name]["tensors"])


def _check_shapes(name: str, stack: LayerStack, slot: int, saved: list[Tensor]) -> None:
    own = [tuple(_saved(stack, slot, tensor).shape) for tensor in _tensors(stack)]
    other = [tuple(tensor.shape) for tensor in saved]
    if own != other:
        raise StateMismatchError(
            f"The checkpoint's layer {name!r} has factors of shape {other}, the model's has "
            f"{own}. Use the same model, split and optimizer as when it was saved."
        )


def load(engine: CurvatureEngine, saved: dict[str, Any]) -> None:
    """Copies a checked state in."""
    engine.steps = saved["steps"]
    for clock, values in zip(engine.clocks, saved["clocks"], strict=True):
        clock.start, clock.length, clock.first = values["start"], values["length"], values["first"]
    restore_layers(engine, saved["layers"])


def restore_layers(engine: CurvatureEngine, saved: dict[str, Any]) -> None:
    """Copies in what is saved of the layers that the engine has, by name, where it fits."""
    for stack in engine.stacks:
        for slot, layer in enumerate(stack.layers):
            entry = saved.get(layer.name)
            if entry is None or not _fits(entry, stack, slot):
                continue
            record = engine.records[layer.name]
            for key, value in entry["record"].items():
                setattr(record, key, value)
            stack.weights[slot], stack.ready[slot] = entry["weight"], entry["ready"]
            if "rows" in entry:  # not in checkpoints of version 0.1
                stack.rows.restore(slot, entry["rows"])
            with torch.no_grad():
                for tensor, value in zip(_tensors(stack), entry["tensors"], strict=True):
                    tensor[slot].copy_(local(value).view_as(tensor[slot]))


def _fits(entry: dict[str, Any], stack: LayerStack, slot: int) -> bool:
    shapes = [local(tensor).numel() for tensor in entry["tensors"]]
    own = [tensor[slot].numel() for tensor in _tensors(stack)]
    return shapes == own and bool(entry["geometry"] == _geometry(stack.layers[slot]))


def _geometry(layer: TrackedLayer) -> list[int]:
    geometry = layer.geometry
    return [geometry.matrices, geometry.outputs, geometry.columns]


def saved_split(engine: CurvatureEngine, saved: Any) -> SplitRule:
    """Returns the cut that a checkpoint was made with, so that nothing is measured."""
    layers = saved["layers"]
    blocks = {
        layer.geometry: (layers[layer.name]["split"][0], layers[layer.name]["split"][1])
        for layer in engine.layers
        if layer.name in layers
    }
    return SplitRule(None, blocks)


def _saved(stack: LayerStack, slot: int, tensor: Tensor) -> Tensor:
    """A layer's part of a tensor of the stack, distributed as its weight's rows are."""
    part = tensor[slot].clone()
    by_rows = tensor is stack.g.blocks or tensor is stack.inverses.g
    sharded = by_rows and stack.shard is not None
    return as_shards(part, stack.layers[slot].weight) if sharded else part


def _tensors(stack: LayerStack) -> tuple[Tensor, ...]:
    factors = (stack.a.blocks, stack.g.blocks, stack.a.traces, stack.g.traces)
    return (*factors, *stack.inverses.tensors)

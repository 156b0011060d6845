"""How a checkpoint becomes the curvature of an engine: read, checked, and only then made.

What the curvature *is* must be the same, or nothing is loaded: the layers and their shapes, the
split (a number or ``None``), the power, the eigenvalue correction, and what the factors average.
All else is the new optimizer's, and wins at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch_thor.capture.names import bare, unwrapped
from torch_thor.capture.selection import as_selectors, selected
from torch_thor.curvature.clock import Clocks, RefreshClock, fresh_clocks
from torch_thor.curvature.decisions import LayerRecord
from torch_thor.curvature.stacks import LayerStack, SplitRule, build_stacks
from torch_thor.curvature.state import (
    DAMPING_MODE,
    Holder,
    Identity,
    SavedLayer,
    SavedState,
    cut_of,
    numbers_of,
    places_of,
    read,
    words_of,
)
from torch_thor.options.errors import StateMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch_thor.capture.selection import Selector

USUAL_SPLIT = 72  # of layers without curvature, where the split is measured


@dataclass(frozen=True)
class Restored:
    """What an engine takes over.

    Args:
        stacks: The curvature.
        rule: How it is cut; ``None`` where there is none yet.
        records: What is remembered of each layer.
        steps: Steps taken.
        began: Step from which intervals count.
        clocks: When factors and inverses are due.
        resting: What is kept of layers that are frozen now.
    """

    stacks: list[LayerStack]
    rule: SplitRule | None
    records: dict[str, LayerRecord]
    steps: int
    began: int
    clocks: Clocks
    resting: dict[Identity, dict[str, Any]] = field(default_factory=dict)


def whole(engine: Holder, state: object) -> Restored:
    """Returns the curvature of a checkpoint, for exactly the layers of an engine.

    Args:
        engine: Whose it is to be; it is not changed.
        state: What ``state_dict`` returned.

    Raises:
        StateMismatchError: Where they don't fit.
    """
    saved = read(state)
    _check_meaning(engine, saved)
    clocks = _clocks(engine, saved)
    if not (saved.layers or saved.resting):
        records = {layer.name: LayerRecord() for layer in engine.layers}
        return Restored([], None, records, saved.steps, saved.began, clocks)
    found, resting = _by_layer(engine, saved, frozenset())
    made = _made(engine, saved, found)
    return Restored(*made, saved.steps, saved.began, clocks, resting)


def some(
    engine: Holder,
    state: object,
    leave_out: Selector | Iterable[Selector],
) -> Restored:
    """Returns the curvature of a checkpoint for all layers but some, which have none then.

    Args:
        engine: Whose it is to be; it is not changed, and keeps steps and clocks.
        state: What ``state_dict`` of an engine or of an optimizer returned.
        leave_out: Names, patterns or types of modules, of the model or of the checkpoint.

    Raises:
        StateMismatchError: Where the others don't fit.
        InvalidOptionError: For a selector that means nothing.
    """
    inner = state.get("curvature", state) if isinstance(state, dict) else state
    saved = read(inner)
    _check_meaning(engine, saved)
    selectors = as_selectors("leave_out", leave_out)
    left = selected("leave_out", engine.model, selectors, map(bare, saved.layers))
    found, resting = _by_layer(engine, saved, left)
    clocks = engine.calendar.clocks if saved.damps_as(engine) else fresh_clocks()
    made = _made(engine, saved, found)
    return Restored(*made, engine.steps, engine.calendar.began, clocks, resting)


def _check_meaning(engine: Holder, saved: SavedState) -> None:
    options = engine.options
    own: dict[str, object] = {**words_of(options), "power": options.power}
    own["eigenvalue_correction"] = options.eigenvalue_correction
    other = {"power": saved.power, "eigenvalue_correction": saved.eigen, **saved.words}
    for name, value in other.items():
        if name != DAMPING_MODE and own.get(name) != value:
            raise StateMismatchError(
                f"The checkpoint was saved with {name}={value!r}, this optimizer has "
                f"{name}={own.get(name)!r}. Build it with the option that it was saved with."
            )


def _by_layer(
    engine: Holder, saved: SavedState, left: frozenset[str]
) -> tuple[dict[str, SavedLayer], dict[Identity, dict[str, Any]]]:
    """What is saved of each layer that is not left out, by the engine's name of it.

    A layer may have been frozen when the state was saved, or be frozen now: it rests.
    """
    places = places_of(engine.model)
    names = {identity: name for name, (identity, _) in places.items()}
    own = {names[layer.identity]: layer for layer in engine.layers}
    own = {name: layer for name, layer in own.items() if name not in left}
    frozen = {
        name
        for name, (_, part) in places.items()
        if part.weight is not None and not part.weight.requires_grad
    }
    every = {**saved.resting, **saved.layers}
    path = unwrapped(every, names.values())
    found = {path[name]: entry for name, entry in every.items() if path[name] not in left}
    missing = own.keys() - found.keys()
    unknown = {path[name] for name in saved.layers} - left - own.keys() - frozen
    if missing or unknown:
        raise StateMismatchError(
            f"The checkpoint is of another model: layers missing in it {sorted(missing)[:5]}, "
            f"layers unknown to the model {sorted(unknown)[:5]}. Build the same model and "
            "optimizer first, or leave these out: optimizer.load_curvature(state, leave_out=...)."
        )
    for name, layer in own.items():
        if not found[name].is_of(layer):
            shape = layer.geometry
            raise StateMismatchError(
                f"The checkpoint's layer {name!r} has matrices of shape "
                f"{tuple(found[name].geometry)} (number, rows, columns), the model's has "
                f"{(shape.matrices, shape.outputs, shape.columns)}. Build the same model first, or "
                "leave the layer out: optimizer.load_curvature(state, leave_out=...)."
            )
    resting = {places[name][0]: found[name].entry() for name in found.keys() & frozen}
    return {layer.name: found[name] for name, layer in own.items()}, resting


def _made(
    engine: Holder,
    saved: SavedState,
    found: dict[str, SavedLayer],
) -> tuple[list[LayerStack], SplitRule, dict[str, LayerRecord]]:
    """Makes the curvature anew: a failure leaves the old one as it is."""
    rule = _cut(engine, found)
    engine.store.room.require(engine.layers, rule)
    stacks = build_stacks(engine.layers, rule, engine.store.options)
    records = {layer.name: LayerRecord() for layer in engine.layers}
    for stack in stacks:
        for slot, layer in enumerate(stack.layers):
            entry = found.get(layer.name)
            if entry is None:
                continue
            _check_fit(engine, layer.name, entry, stack, slot)
            entry.fill(stack, slot)
            records[layer.name] = _record(engine, saved, entry)
    return stacks, rule, records


def _cut(engine: Holder, found: dict[str, SavedLayer]) -> SplitRule:
    """The cut that was said; where it is measured, the checkpoint's, so that nothing is."""
    said = engine.options.split
    if not isinstance(said, str):
        return SplitRule(said)
    known = engine.store.rule or SplitRule(USUAL_SPLIT)
    chosen = {
        layer.geometry: (found[layer.name].split[0], found[layer.name].split[1])
        for layer in engine.layers
        if layer.name in found
    }
    return SplitRule(known.usual, {**known.chosen, **chosen})


def _check_fit(engine: Holder, name: str, entry: SavedLayer, stack: LayerStack, slot: int) -> None:
    own = cut_of(stack)
    if list(entry.split) != own:
        raise StateMismatchError(
            f"The checkpoint's layer {name!r} is split into blocks of {tuple(entry.split)} rows "
            f"(of A and G), this optimizer's split={engine.options.split!r} makes blocks of "
            f"{tuple(own)}. Build it with the split that it was saved with."
        )
    if not entry.fits(stack, slot):
        shapes = [tuple(tensor.shape) for tensor in entry.tensors]
        raise StateMismatchError(
            f"The checkpoint's layer {name!r} has factors of shape {shapes}, which don't fit the "
            "model's. Use the same model, split and optimizer as when it was saved."
        )


def _record(engine: Holder, saved: SavedState, entry: SavedLayer) -> LayerRecord:
    """What is remembered of a layer, as far as this optimizer's own rule would have said it."""
    rule = engine.options.trace_rule
    if not saved.options:
        freezes = rule is not None and rule.freeze_below > 0
        return replace(entry.record, frozen=entry.record.frozen and freezes)
    same = list(saved.trace_rule) == numbers_of(rule) and saved.damps_as(engine)
    return entry.record if same else replace(entry.record, frozen=False, trace=None)


def _clocks(engine: Holder, saved: SavedState) -> Clocks:
    """The clocks, each with the interval that this optimizer's own schedule gives it.

    Where damping enters otherwise, all layers are due at once.
    """
    if not saved.damps_as(engine):
        return fresh_clocks()
    first, second = (
        replace(clock, length=RefreshClock.cycle(interval)) if clock.length else clock
        for clock, interval in (
            (clock, engine.calendar.intervals(clock.start, saved.began)[place])
            for place, clock in enumerate(saved.clocks)
        )
    )
    return first, second

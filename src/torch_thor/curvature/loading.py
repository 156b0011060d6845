"""How a checkpoint becomes the curvature of an engine: read, checked, and only then made.

What the curvature *is* must be the same, or nothing is loaded: the layers and their shapes, the
split (a number or ``None``), the power, the eigenvalue correction, and what the factors average.
All else is the new optimizer's, and wins at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch_thor.capture.names import bare, unwrapped
from torch_thor.capture.selection import as_selectors, selected
from torch_thor.curvature.stacks import LayerRecord, LayerStack, SplitRule
from torch_thor.curvature.state import (
    DAMPING_MODE,
    SavedLayer,
    SavedState,
    cut_of,
    numbers_of,
    shape_of,
    words_of,
)
from torch_thor.curvature.store import places_of
from torch_thor.options.errors import StateMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch_thor.capture.followed import FollowedModel
    from torch_thor.capture.selection import Selector
    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.clock import Calendar
    from torch_thor.curvature.stacks import Place
    from torch_thor.curvature.store import CurvatureStore, Identity

USUAL_SPLIT = 72  # of layers without curvature, where the split is measured


@dataclass(frozen=True)
class Restored:
    """What an engine takes over."""

    steps: int
    calendar: Calendar
    stacks: list[LayerStack] = field(default_factory=list)
    rule: SplitRule | None = None
    resting: dict[Identity, SavedLayer] = field(default_factory=dict)
    outputs: frozenset[str] | None = None  # names of layers that the base rule has; None: as ever


class Loading:
    """A checkpoint, and the model and curvature that it is to become; nothing is changed.

    Raises:
        StateMismatchError: Where something differs that must be the same.
    """

    def __init__(self, followed: FollowedModel, store: CurvatureStore, saved: SavedState) -> None:
        self._followed, self._store, self._saved = followed, store, saved
        self._options = store.options
        self._damps_as = saved.damps_as(self._options)
        own: dict[str, object] = {**words_of(self._options), "power": self._options.power}
        own["eigenvalue_correction"] = self._options.eigenvalue_correction
        other = {"power": saved.power, "eigenvalue_correction": saved.eigen, **saved.words}
        for name, value in other.items():
            if name != DAMPING_MODE and own.get(name) != value:
                raise StateMismatchError(
                    f"The checkpoint was saved with {name}={value!r}, this optimizer has "
                    f"{name}={own.get(name)!r}. Build it with the option that it was saved with."
                )

    def whole(self, calendar: Calendar) -> Restored:
        """Returns the curvature of the checkpoint, for exactly the layers of the model.

        Where damping enters otherwise, all layers are due at once.
        """
        saved = self._saved
        following = calendar.at(saved.began, saved.clocks if self._damps_as else ())
        restored = Restored(saved.steps, following)
        outputs = self._left_to_the_base_rule()
        if not (saved.layers or saved.resting):
            return restored if saved.outputs is None else replace(restored, outputs=outputs)
        layers = [one for one in self._followed.candidates if one.name not in outputs]
        return self._made(replace(restored, outputs=outputs), layers, frozenset())

    def some(
        self, steps: int, calendar: Calendar, leave_out: Selector | Iterable[Selector]
    ) -> Restored:
        """Returns the curvature for all layers but some, which have none then; steps go on."""
        selectors = as_selectors("leave_out", leave_out)
        names = map(bare, self._saved.layers)
        left = selected("leave_out", self._followed.model, selectors, names)
        following = calendar if self._damps_as else calendar.at(calendar.began)
        return self._made(Restored(steps, following), self._followed.layers, left)

    def _left_to_the_base_rule(self) -> frozenset[str]:
        """The checkpoint's output layers, by their names here, where this optimizer leaves them."""
        if self._followed.probe is None:
            return frozenset()
        names = unwrapped(self._saved.outputs or {}, places_of(self._followed.model))
        return frozenset(names.values())

    def _made(
        self, restored: Restored, layers: list[TrackedLayer], left: frozenset[str]
    ) -> Restored:
        """Makes the curvature anew: a failure leaves the old one as it is."""
        left |= self._left_to_the_base_rule()
        found, resting = self._by_layer(layers, left)
        rule = self._cut(found, layers)
        stacks, saved_steps = self._store.made(layers, rule), self._saved.steps
        for place in (place for stack in stacks for place in stack):
            entry = found.get(place.layer.name)
            if entry is not None:
                self._check_fit(entry, place)
                record = self._record(entry)
                if record.renewed is not None:
                    # Steps that count from another number leave an age as it is.
                    record = replace(record, renewed=record.renewed + restored.steps - saved_steps)
                entry.fill(place, record)
        return replace(restored, stacks=stacks, rule=rule, resting=resting)

    def _by_layer(
        self, layers: list[TrackedLayer], left: frozenset[str]
    ) -> tuple[dict[str, SavedLayer], dict[Identity, SavedLayer]]:
        """What is saved of each layer that is not left out, by the engine's name of it.

        A layer may have been frozen when the state was saved, or be frozen now: it rests.
        """
        saved, places = self._saved, places_of(self._followed.model)
        names = {identity: name for name, (identity, _) in places.items()}
        own = {names[layer.identity]: layer for layer in layers}
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
        known = {names[layer.identity] for layer in self._followed.candidates} | frozen
        unknown = {path[name] for name in saved.layers} - left - known
        if missing or unknown:
            raise StateMismatchError(
                "The checkpoint is of another model: layers missing in it "
                f"{sorted(missing)[:5]}, layers unknown to the model {sorted(unknown)[:5]}. Build "
                "the same model and optimizer first (what was frozen in every step has no "
                "curvature: freeze it before loading), or leave these out: "
                "optimizer.load_curvature(state, leave_out=...)."
            )
        for name, layer in own.items():
            shape, entry = shape_of(layer), found[name]
            if tuple(entry.geometry) != shape:
                raise StateMismatchError(
                    f"The checkpoint's layer {name!r} has matrices of shape "
                    f"{tuple(entry.geometry)} (number, rows, columns), the model's has {shape}. "
                    "Build the same model first, or leave the layer out: "
                    "optimizer.load_curvature(state, leave_out=...)."
                )
        resting = {places[name][0]: found[name] for name in found.keys() & frozen}
        return {layer.name: found[name] for name, layer in own.items()}, resting

    def _cut(self, found: dict[str, SavedLayer], layers: list[TrackedLayer]) -> SplitRule:
        """The cut that was said; where it is measured, the checkpoint's, so that nothing is."""
        said = self._options.split
        if not isinstance(said, str):
            return SplitRule(said)
        known = self._store.rule or SplitRule(USUAL_SPLIT)
        chosen = {
            layer.geometry: (found[layer.name].split[0], found[layer.name].split[1])
            for layer in layers
            if layer.name in found
        }
        return SplitRule(known.usual, {**known.chosen, **chosen})

    def _check_fit(self, entry: SavedLayer, place: Place) -> None:
        name, own = place.layer.name, cut_of(place)
        if tuple(entry.split) != own:
            raise StateMismatchError(
                f"The checkpoint's layer {name!r} is split into blocks of {tuple(entry.split)} "
                f"rows (of A and G), this optimizer's split={self._options.split!r} makes blocks "
                f"of {own}. Build it with the split that it was saved with."
            )
        if not entry.fits(place):
            shapes = [tuple(tensor.shape) for tensor in entry.tensors]
            raise StateMismatchError(
                f"The checkpoint's layer {name!r} has factors of shape {shapes}, which don't fit "
                "the model's. Use the same model, split and optimizer as when it was saved."
            )

    def _record(self, entry: SavedLayer) -> LayerRecord:
        """What is remembered of a layer, as far as this optimizer's own rule had said it."""
        saved, rule = self._saved, self._options.trace_rule
        if not saved.options:
            freezes = rule is not None and rule.freeze_below > 0
            return replace(entry.record, frozen=entry.record.frozen and freezes)
        same = list(saved.trace_rule) == numbers_of(rule) and self._damps_as
        return entry.record if same else replace(entry.record, frozen=False, trace=None)

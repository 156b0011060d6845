"""The layers of a model that are preconditioned, found anew where the model has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch_thor.capture.coverage import Coverage, ParameterCoverage, Treatment
from torch_thor.capture.names import own_parameters
from torch_thor.capture.outputs import OutputProbe, modules_with_weights
from torch_thor.capture.snapshot import Snapshot
from torch_thor.capture.survey import survey
from torch_thor.layers.shards import is_dtensor
from torch_thor.options.errors import require
from torch_thor.options.notices import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping

    from torch import nn

    from torch_thor.capture.selection import Selector
    from torch_thor.capture.tracked import Identity, TrackedLayer
    from torch_thor.options.update import Base


class FollowedModel:
    """A model and its layers, as they are at the step; options as in ``CurvatureOptions``.

    Attributes:
        layers: Tracked layers, in the model's order.
        candidates: These and the output layers that are left to the base rule.
        outputs: Output layers, by identity; ``None`` before they are known.
        probe: What finds them; ``None`` where nobody asks for them.
        matrices: Parameters without curvature that step as matrices do.
        asleep: Layers whose weight is frozen; they are listened to, in case it is thawed.
        layer_of: The tracked layer of each parameter of ``layers``.
    """

    def __init__(
        self,
        model: nn.Module,
        exclude: tuple[Selector, ...],
        include: tuple[Selector, ...],
        base: Base,
        *,
        stagger: bool,
    ) -> None:
        self.model = model
        self._exclude, self._include, self._stagger = exclude, include, stagger
        self._base = base
        self._chosen: frozenset[nn.Parameter] | None = None
        self.layers: list[TrackedLayer] = []
        self.candidates: list[TrackedLayer] = []
        self.asleep: list[TrackedLayer] = []
        self.outputs: frozenset[Identity] | None = None
        self.probe: OutputProbe | None = None
        self._seen: set[Identity] = set()
        self.find()

    def find(self) -> None:
        """Surveys the model; a layer that is still what it was stays, with the calls it has."""
        known = {layer.identity: layer for layer in (*self.candidates, *self.asleep)}
        chosen = self._chosen
        served = None if chosen and chosen.issuperset(self.model.parameters()) else chosen
        found = survey(self.model, self._exclude, self._include, served, self._base)
        self._coverage = found.coverage
        self._loose = found.matrices if self._base.matrices else {}
        self.candidates = [_same_or_new(known, one, one.is_as) for one in found.layers]
        # With which of its biases it will wake is not known.
        self.asleep = [_same_or_new(known, one, one.has_weight_of) for one in found.asleep]
        self._snapshot = Snapshot(self.model)
        if self._base.outputs and (self.candidates or self._loose):
            modules = modules_with_weights(self.model)
            here = {layer.identity for layer in self.candidates}
            if self.probe is None or self.probe.modules != modules or not here <= self._seen:
                self.probe = OutputProbe(modules)  # the last one may not be the last any more
            self._seen |= here
        self._leave_outputs()

    def _leave_outputs(self) -> None:
        """Takes output layers out of those that are preconditioned."""
        left = self.outputs or frozenset()
        self.layers = [layer for layer in self.candidates if layer.identity not in left]
        self.layer_of = {p: layer for layer in self.layers for p in layer.parameters}
        self.matrices = {p: m.shape for p, m in self._loose.items() if m.identity not in left}
        if self._stagger:
            # Shares follow the cost of the layers' statistics.
            total = sum(layer.weight.numel() for layer in self.layers)
            passed = 0
            for layer in self.layers:
                layer.share = passed / total
                passed += layer.weight.numel()

    @property
    def finds_outputs(self) -> bool:
        """Whether output layers are still to be found."""
        return self.probe is not None and self.probe.is_open

    @property
    def awaits_outputs(self) -> bool:
        """Whether what looks for output layers has heard no backward yet."""
        return self.probe is not None and self.probe.is_open and not self.probe.has_arrived

    def outputs_by_name(self) -> frozenset[str]:
        """The output layers, as known or as backwards have shown; none where all would be."""
        probe = self.probe
        if probe is None or not probe.is_open:
            return frozenset(self.state_dict().get("outputs", ()))
        names = {layer.name for layer in self.candidates if probe.is_output(*layer.identity)}
        if len(names) == len(self.candidates) and not self._loose:
            names.clear()
        # A head that is frozen now is one all the same once it thaws.
        names |= {layer.name for layer in self.asleep if probe.is_output(*layer.identity)}
        ends = (one for one in self._loose.values() if one.may_end)
        loose = {one.place for one in ends if probe.is_output(*one.identity)}
        return frozenset(names | loose)

    def leave_outputs(self, names: Container[str]) -> None:
        """Knows which layers are output layers, and looks for them no longer."""
        if self.probe is not None:
            self.probe.close()
            self.outputs = frozenset(one for one, name in self._places() if name in names)
        self._leave_outputs()
        for layer in set(self.candidates).difference(self.layers):
            layer.forget()
            layer.armed = False

    def require_outputs(self) -> None:
        """Knows the output layers now, or raises ``InvalidOptionError``."""
        if self.probe is not None and self.finds_outputs:
            allowed = "False, or known from a backward, to allocate before a step"
            require("Base(outputs)", self._base.outputs, self.probe.has_arrived, allowed)
            self.leave_outputs(self.outputs_by_name())

    @property
    def all_layers(self) -> list[TrackedLayer]:
        """Those that train and those that are asleep."""
        return [*self.layers, *self.asleep]

    def is_current(self) -> bool:
        """Whether the model is still what was surveyed."""
        return self._snapshot.is_current()

    def serve(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Takes the parameters that the optimizer steps; returns whether these are others."""
        chosen = frozenset(parameters)
        changed = chosen != self._chosen
        self._chosen = chosen
        return changed

    def state_dict(self) -> dict[str, dict[str, bool]]:
        """Returns the output layers by name, once they are known."""
        left = self.outputs
        if left is None:
            return {}
        return {"outputs": {name: True for one, name in self._places() if one in left}}

    def _places(self) -> Iterator[tuple[Identity, str]]:
        """Identities and names of all that may be an output layer."""
        for layer in (*self.candidates, *self.asleep):
            yield layer.identity, layer.name
        for loose in self._loose.values():
            yield loose.identity, loose.place

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the model."""
        return self._snapshot.parameters

    @property
    def is_sharded(self) -> bool:
        """Whether this rank owns shards of parameters only, whose values other ranks don't see."""
        return any(is_dtensor(parameter) for parameter in self.parameters)

    def coverage(self, reasons: Mapping[nn.Parameter, str]) -> Coverage:
        """Says for every parameter how it trains, corrected by what the hooks have seen.

        Args:
            reasons: Why parameters of tracked layers step by the base rule so far.
        """
        left = {p for layer in self.candidates for p in layer.parameters} - self.layer_of.keys()
        outputs = left | (self._loose.keys() - self.matrices.keys())
        reasons = {**reasons, **dict.fromkeys(outputs, "output layer")}
        by_name, entries = own_parameters(self.model), list(self._coverage)
        for place, entry in enumerate(self._coverage):
            parameter = by_name[entry.name]
            if parameter in reasons:
                why = reasons[parameter]
                entries[place] = replace(entry, treatment=Treatment.BASE, reason=why)
            elif parameter in self.matrices:
                why = f"matrix, by the rule {self._base.matrices!r}: {entry.reason}"
                entries[place] = replace(entry, reason=why)
        own = set(self.parameters)
        if foreign := sum(parameter not in own for parameter in self._chosen or ()):
            why = f"{foreign} parameters of the groups are not the model's"
            entries.append(ParameterCoverage("(others)", (), "", Treatment.BASE, why))
        return Coverage(tuple(entries))

    def tell_left_out(self, before: set[nn.Parameter]) -> None:
        """Says of parameters that were not in the model ``before`` that nobody trains them."""
        left = {
            p
            for p in self.parameters
            if p not in before and p.requires_grad and self._chosen and p not in self._chosen
        }
        names = [name for name, p in self.model.named_parameters() if p in left]
        if names:
            shown = ", ".join(names[:3])
            warn(
                f"{len(names)} parameters that are new in the model ({shown}) are in no parameter "
                "group, so they don't train. Call optimizer.add_param_group, or build the "
                "optimizer after the model is complete."
            )


def _same_or_new(
    known: Mapping[tuple[nn.Module, str], TrackedLayer],
    found: TrackedLayer,
    is_same: Callable[[TrackedLayer], bool],
) -> TrackedLayer:
    """The layer as it is known, with the calls it has, where it is still the same."""
    old = known.get(found.identity)
    if old is None or not is_same(old):
        return found
    old.name = found.name
    return old

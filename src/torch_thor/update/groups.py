"""What a parameter group says for itself, and what a step takes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from torch_thor.capture.survey import sparse_parameters
from torch_thor.options.checks import DAMPING, RATE, SHARE, require_number, require_type
from torch_thor.options.errors import InvalidOptionError, StateMismatchError
from torch_thor.options.notices import warn
from torch_thor.options.schedules import ScheduledFloat, value_at
from torch_thor.options.update import Update

if TYPE_CHECKING:
    from collections.abc import Mapping


ParameterGroup: TypeAlias = dict[str, Any]

OWN = "own"
RANGES = {"lr": RATE, "momentum": SHARE, "weight_decay": RATE, "damping": DAMPING}

_OPTIONS_OF_OTHERS = ("maximize", "betas", "eps", "nesterov", "dampening", "amsgrad")
_REMEDY = " Build the same model and optimizer as when it was saved."
_PARAMS = (
    "the model's parameters or groups of them (dicts with 'params'), in a list or an iterator; "
    "None takes all, and options are keywords: lr=0.1"
)


def as_groups(params: object) -> list[Any]:
    """Returns parameters, or groups of them, as a list, or raises ``InvalidOptionError``."""
    # A module, a tensor and a dict can be iterated over too, and never should be.
    single = isinstance(params, str | Tensor | nn.Module | dict)
    if single or not isinstance(params, Iterable):
        raise InvalidOptionError("params", params, _PARAMS)
    found = list(params)
    for one in found:
        named = isinstance(one, tuple) and len(one) == 2 and isinstance(one[1], Tensor)
        if not (named or isinstance(one, Tensor | dict)):
            raise InvalidOptionError("params", one, _PARAMS)
    return found


def complete(group: Any, number: int, defaults: Mapping[str, Any]) -> list[Tensor]:
    """Checks a new group and notes which options it brought, before defaults fill in the others.

    The note is plain data, so that it is saved and loaded with the group. A group that served
    another optimizer has one already. The group's parameters become a list, and are returned.
    """
    if not isinstance(group, dict) or "params" not in group:
        raise InvalidOptionError(f"group {number}", group, "a dict with 'params'")
    if not isinstance(group["params"], set):  # torch refuses these: they have no order
        given = group["params"]
        group["params"] = as_groups([given] if isinstance(given, Tensor) else given)
    check_values({**defaults, **group}, f" of group {number}")
    group.setdefault(OWN, tuple(sorted(name for name in defaults if name in group)))
    return [one[1] if isinstance(one, tuple) else one for one in group["params"]]


def check_options(update: object, **values: object) -> None:
    """Raises ``InvalidOptionError`` unless an optimizer can be built with these options.

    Args:
        update: See ``Update``.
        values: ``lr`` (which may be a schedule), ``momentum`` and ``weight_decay``.
    """
    require_type("lr", values["lr"], ScheduledFloat)
    for name, value in values.items():
        if name != "lr" or not callable(value):
            require_number(name, value, RANGES[name])
    require_type("update", update, Update)


def check_new_group(model: nn.Module, group: Any, number: int, defaults: Mapping[str, Any]) -> None:
    """Completes a new group, see ``complete``; refuses parameters whose gradients are sparse."""
    parameters = complete(group, number, defaults)
    _tell_unknown(group, number)
    sparse = sparse_parameters(model)
    for parameter in parameters:
        if parameter in sparse:
            allowed = (
                "dense: build the embedding with sparse=False, or leave it to an "
                "optimizer of its own (torch.optim.SparseAdam)"
            )
            raise InvalidOptionError("gradient of", sparse[parameter], allowed)


def _tell_unknown(group: ParameterGroup, number: int) -> None:
    """Tells of options that groups have in torch's optimizers and not here."""
    said = [name for name in _OPTIONS_OF_OTHERS if group.get(name)]
    if "maximize" in said:
        allowed = "left out, or False: call backward() on the negative loss"
        raise InvalidOptionError(f"maximize of group {number}", group["maximize"], allowed)
    if said:
        warn(
            f"Group {number} has {', '.join(said)}, which steps here don't take from groups. Say "
            "base=Base(betas=..., eps=...) and update=Update(nesterov=...), which hold for all."
        )


def tell_foreign(model: nn.Module, groups: list[ParameterGroup], *, refuses: bool) -> None:
    """Warns of parameters in some groups that the model does not have.

    Raises:
        InvalidOptionError: Where it has none of them (of another model, or replaced since), if
            that is to be refused.
    """
    own = set(model.parameters())
    given = [p for group in groups for p in group["params"]]
    foreign = sum(p not in own for p in given)
    if foreign and foreign == len(given) and refuses:
        raise InvalidOptionError(
            "params",
            f"{foreign} parameters that the model does not have",
            "parameters of the model: pass the model that holds them, or no params at all",
        )
    if foreign:
        warn(
            f"{foreign} of {len(given)} parameters in the groups are not the model's: they "
            "train by the base rule, without curvature. Pass the model that holds them, if "
            "that is not what you want."
        )


def check_values(values: Mapping[str, Any], place: str) -> None:
    """Raises ``InvalidOptionError`` unless a step can take the values of a group at a place."""
    for name, within in RANGES.items():
        value = values.get(name)
        if not (type(value) is float and within.holds(value)):
            require_number(f"{name}{place}", value, within)


def says(group: ParameterGroup, name: str) -> bool:
    """Says whether a group's value is its own; schedules and the base rule leave it then."""
    return name in group.get(OWN, ())


class ScheduledValues:
    """What schedules give to groups, step by step; a group keeps what is its own.

    Attributes:
        schedules: Of learning rate and damping, as far as these are scheduled.
    """

    def __init__(self, **values: ScheduledFloat) -> None:
        self.schedules = {name: value for name, value in values.items() if callable(value)}
        self._given: dict[int, dict[str, float]] = {}
        self._told_overruled = False

    def at(self, groups: Iterable[ParameterGroup], step: int) -> list[dict[str, float]]:
        """Returns the values of each group; changes nothing.

        Raises:
            InvalidOptionError: For a value, scheduled or a group's, that the step can't take.
        """
        given = {name: value_at(schedule, step, name) for name, schedule in self.schedules.items()}
        found = []
        for number, group in enumerate(groups):
            values = {name: value for name, value in given.items() if not says(group, name)}
            check_values({**group, **values}, f" of group {number} at step {step}")
            found.append(values)
        return found

    def give(self, groups: Iterable[ParameterGroup], values: list[dict[str, float]]) -> None:
        """Gives groups their values; warns, once, where somebody else sets what a schedule sets."""
        for group, given in zip(groups, values, strict=True):
            last = self._given.get(id(group), {})
            changed = [name for name, old in last.items() if name in given and group[name] != old]
            self._given[id(group)] = given
            if changed and not self._told_overruled:
                self._told_overruled = True
                warn(
                    f"{changed[0]}={group[changed[0]]!r} of a parameter group was set by hand or "
                    "by a scheduler, but this optimizer was built with a schedule for it, which "
                    "holds. Build it with a number, or give the group a "
                    f"{changed[0]} of its own."
                )
            group.update(given)

    def take_over(self) -> None:
        """Knows that the groups' values are others, as those of a checkpoint."""
        self._given.clear()


def check_saved(groups: list[ParameterGroup], saved: Any) -> None:
    """Raises ``StateMismatchError`` unless what ``state_dict`` returned fits these groups."""
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        raise StateMismatchError("The checkpoint holds no state of an optimizer." + _REMEDY)
    others = saved.get("param_groups")
    sizes = [len(group["params"]) for group in groups]
    try:
        found = [len(group["params"]) for group in others or ()]
        for number, group in enumerate(others or ()):
            check_values(group, f" of group {number}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"The checkpoint's groups can't be used ({type(error).__name__}: {error})."
        raise StateMismatchError(reason + _REMEDY) from error
    if found != sizes:
        reason = f"The checkpoint has groups of {found} parameters, this optimizer of {sizes}."
        raise StateMismatchError(reason + _REMEDY)
    own = [parameter for group in groups for parameter in group["params"]]
    names = [name for group in others or () for name in group["params"]]
    parameters = dict(zip(names, own, strict=True))
    for name, state in saved["state"].items():
        if name not in parameters or not isinstance(state, dict):
            reason = f"The checkpoint holds a state of {name!r}, which is no parameter here."
            raise StateMismatchError(reason + _REMEDY)
        for key, value in state.items():
            shape = () if key == "step" else tuple(parameters[name].shape)
            _check_state(f"{key} of parameter {name}", value, shape)


def _check_state(name: str, value: object, shape: tuple[int, ...]) -> None:
    fits = isinstance(value, Tensor) and tuple(value.shape) == shape
    if not fits and value is not None:
        found = tuple(value.shape) if isinstance(value, Tensor) else value
        reason = f"The checkpoint's {name} is {found!r}, this optimizer's has shape {shape}."
        raise StateMismatchError(reason + _REMEDY)

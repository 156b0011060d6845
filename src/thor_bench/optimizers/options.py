"""Settings that are options of torch_thor: its classes give names, types, ranges and defaults."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, make_dataclass, replace
from functools import partial, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from pydantic import AfterValidator, Field

from thor_bench.optimizers.peer import Training
from thor_bench.optimizers.settings import Settings

_WRITTEN: dict[Any, Any] = {
    float: Annotated[float, Field(allow_inf_nan=False)],
    torch.dtype: Literal["float32", "bfloat16"],
}


class Options:
    """Fields of a group of options, as settings.

    Args:
        usual: The group; its values are the defaults, its class says what a field takes.
        same: Fields whose settings have their names.
        unless: Setting whose None leaves out the group.
        renamed: The field behind each other setting.
    """

    def __init__(self, usual: Any, *same: str, unless: str = "", **renamed: str) -> None:
        self._usual = usual
        self._unless = unless
        self._fields = {name: name for name in same} | renamed

    def settings(self) -> Iterator[tuple[str, Any, Any]]:
        """Yields the name, the type and the default of each."""
        hints = get_type_hints(type(self._usual))
        for name, field in self._fields.items():
            hint: Any = Annotated[
                _written(hints[field]), AfterValidator(partial(self._take, field))
            ]
            default = getattr(self._usual, field)
            yield name, hint | None if name == self._unless else hint, default

    def build(self, settings: Any) -> Any:
        """Returns the group that some settings ask for, or None."""
        if self._unless and getattr(settings, self._unless) is None:
            return None
        values = {field: getattr(settings, name) for name, field in self._fields.items()}
        return replace(self._usual, **{field: _option(value) for field, value in values.items()})

    def _take(self, field: str, value: Any) -> Any:
        replace(self._usual, **{field: _option(value)})  # the class raises what it doesn't take
        return value


class Derived:
    """Settings of an optimizer of torch_thor: plain arguments, and fields of its groups of options.

    Args:
        optimizer: The optimizer.
        plain: Settings that belong to no group.
        groups: The groups, by argument of the optimizer.
        others: Defaults that are not those of the groups.
    """

    def __init__(
        self, optimizer: type, plain: type[Settings], groups: Mapping[str, Options], **others: Any
    ) -> None:
        declared = [setting for group in groups.values() for setting in group.settings()]
        self.settings: Any = make_dataclass(
            plain.__name__.lstrip("_"),
            [(name, hint, others.get(name, usual)) for name, hint, usual in declared],
            bases=(plain,),
            frozen=True,
            kw_only=True,
        )
        self._plain = {field.name for field in fields(plain)} & set(defaults(optimizer))
        self._groups = groups

    def arguments(self, training: Training, settings: Any) -> dict[str, Any]:
        """Returns the optimizer's arguments that some settings ask for."""
        found = {name: getattr(settings, name) for name in self._plain}
        found |= {name: group.build(settings) for name, group in self._groups.items()}
        found["statistics"] = replace(found["statistics"], loss_reduction=training.loss_reduction)
        if getattr(settings, "row_decay", None) is None:
            found["norm_control"] = settings.norm_control  # by name: each kind has its own limit
        return found


def defaults(optimizer: type) -> dict[str, Any]:
    """Returns the defaults of an optimizer's arguments."""
    arguments = inspect.signature(optimizer).parameters
    return {name: argument.default for name, argument in arguments.items()}


def _written(hint: Any) -> Any:
    """Returns what can be written of a type: no functions, and dtypes by their names."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return reduce(or_, (_WRITTEN.get(k, k) for k in kinds if get_origin(k) is not Callable))


def _option(value: Any) -> Any:
    return getattr(torch, value) if value in ("float32", "bfloat16") else value

"""Settings of an optimizer, and how ``--set key=value`` changes them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from thor_bench.errors import BenchError, unknown_choice
from thor_bench.records.config import SettingValue

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class OwnSettings:
    """Settings of an optimizer that finds the length of its steps by itself: none in common."""


@dataclass(frozen=True, kw_only=True)
class Settings(OwnSettings):
    """What every optimizer with a learning rate has.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Weight decay, as the optimizer understands it.
        warmup: Share of all steps over which triangle and constant rise linearly from zero.
        schedule: ``triangle``, up and down in straight lines; ``constant``, up and then level; or
            ``polynomial``, the paper's eq. 13 (eq. 14 where ``warmup_epochs`` is not 0).
        end_epoch: e_end of the polynomial; None takes the run's horizon.
        lr_power: p of the polynomial.
        warmup_epochs: e_warmup of eq. 14.
        warmup_lr: α_warmup of eq. 14.
    """

    lr: Positive = 0.1
    weight_decay: NonNegative = 5e-4
    warmup: Fraction = 0.15
    schedule: Literal["triangle", "constant", "polynomial"] = "triangle"
    end_epoch: Positive | None = None
    lr_power: Positive = 6.0
    warmup_epochs: NonNegative = 0.0
    warmup_lr: NonNegative = 0.0


S = TypeVar("S", bound=OwnSettings)
_adapter = cache(TypeAdapter)  # one takes milliseconds to build


def to_values(settings: OwnSettings) -> dict[str, SettingValue]:
    """Returns settings as plain values by name."""
    return asdict(settings)


def from_values(kind: type[S], values: Mapping[str, Any], usual: S | None = None) -> S:
    """Builds settings from values by name, numbers possibly written as text.

    Raises:
        BenchError: A name is unknown, or a value is not allowed; ``usual`` has the usual one.
    """
    names = [field.name for field in fields(kind)]
    for key in values:
        if key not in names:
            raise unknown_choice("--set", key, names)
    try:
        settings: S = _adapter(kind).validate_python(dict(values))  # type: ignore[arg-type] # it is hashable
    except ValidationError as error:
        raise _bad_value(kind, error, to_values(usual or kind())) from error
    return settings


def override(base: S, changes: Sequence[str]) -> S:
    """Returns settings with ``key=value`` changes; of two for one key the later holds.

    Raises:
        BenchError: A text has no ``=``, its key is unknown or its value not allowed.
    """
    values: dict[str, Any] = dict(to_values(base))
    for change in changes:
        key, equals, value = (part.strip() for part in change.partition("="))
        if not equals:
            message = f"--set {change!r} has no '='; write key=value, such as lr=0.1"
            raise BenchError(f"{message}; keys: {', '.join(to_values(base))}")
        name, dot, own = key.rpartition(".")
        if dot and own in values:
            message = (
                f"--set {change!r} is a setting of {name} alone, as where several are compared"
            )
            raise BenchError(f"{message}; write --set {own}={value}")
        values[key] = None if value.lower() == "none" else value
    return from_values(type(base), values, usual=base)


def _bad_value(
    kind: type[OwnSettings], error: ValidationError, usual: Mapping[str, SettingValue]
) -> BenchError:
    """Returns one line for the first field that pydantic, or the option behind it, refuses."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    told = [_told(e["msg"]) for e in error.errors() if e["loc"][0] == key]
    if type(None) in get_args(get_type_hints(kind)[key]) and "or None" not in told[0]:
        told.append("none")
    message = f"--set {key}={first['input']}: must be {' or '.join(dict.fromkeys(told))}"
    value = "none" if usual[key] is None else usual[key]
    return BenchError(f"{message}; the usual value is {key}={value}")


def _told(message: str) -> str:
    """What is allowed, from "Input should be …, unable to parse" or "Invalid …. Must be …."."""
    allowed = message.removeprefix("Input should be ").rpartition("Must be ")[2]
    # No function can be written on a command line.
    allowed = allowed.replace(" or a schedule (a function of the step)", "")
    return allowed.partition(", unable")[0].removesuffix(".")

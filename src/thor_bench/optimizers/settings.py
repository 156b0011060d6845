"""Settings of each optimizer, and how ``--set key=value`` changes them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from thor_bench.errors import BenchError, unknown_choice
from thor_bench.records.config import SettingValue

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Power = Annotated[float, Field(gt=0, le=1)]
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
DampingMode = Literal["both", "sqrt", "pi", "relative"]
BaseRule = Literal["sgd", "adamw"]
NormControlKind = Literal["kl_clip", "graft", "rms", "spectral"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every optimizer has.

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


@dataclass(frozen=True, kw_only=True)
class SGDSettings(Settings):
    """torch.optim.SGD.

    Attributes:
        momentum: Momentum.
        nesterov: Whether Nesterov's look-ahead is used.
    """

    momentum: Fraction = 0.9
    nesterov: bool = True


@dataclass(frozen=True, kw_only=True)
class AdamWSettings(Settings):
    """torch.optim.AdamW.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
    """

    lr: Positive = 3e-3
    weight_decay: NonNegative = 0.05
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    eps: Positive = 1e-8


@dataclass(frozen=True, kw_only=True)
class MuonSettings(Settings):
    """torch.optim.Muon on hidden matrices and convolutions, SGD or AdamW on the rest.

    Attributes:
        momentum: Momentum of Muon and of SGD.
        exclude_head: Whether the last linear layer belongs to the rest.
        rest: Rule of embeddings, norms, biases and the head.
        rest_lr: Their peak learning rate.
        rest_weight_decay: Their weight decay.
    """

    lr: Positive = 0.02
    weight_decay: NonNegative = 0.05
    momentum: Fraction = 0.9
    exclude_head: bool = True
    rest: BaseRule = "sgd"
    rest_lr: Positive = 0.1
    rest_weight_decay: NonNegative = 5e-4


@dataclass(frozen=True, kw_only=True)
class THORSettings(Settings):
    """torch_thor.THOR.

    Attributes:
        momentum: Momentum.
        damping: λ.
        damping_mode: How λ enters the factors.
        damping_rate: ρ of eq. 15: λ is multiplied by it every ten epochs.
        split: Block size, ``auto`` or ``per_layer`` (measured on this device), or None for whole
            factors.
        power: p of G^-p ∇W A^-p.
        interval: Steps to the second refresh.
        growth: Growth of the interval from refresh to refresh.
        update_above: ω1 of the trace rule, or None for no rule.
        freeze_below: ω2 of the trace rule.
        damped_trace: How the trace rule reads tr(F + λI).
        rule_compares: ``trace``, or ``distance``: the Frobenius rule that the trace replaces.
        norm_control: Length of each layer's step.
        row_decay: Running average of each output unit's mean square, which evens the units out;
            None leaves them as they are.
        decay: Running average of the factors.
        rows: Rows sampled per layer and refresh, or None for all.
        fisher: ``empirical``, or ``mc``: statistics of labels drawn from the model's outputs.
        nesterov: Nesterov's momentum.
        momentum_first: Whether momentum comes before preconditioning.
        decoupled_decay: Whether weight decay shrinks the weights directly, as in AdamW.
        base: Rule of all other parameters.
        base_lr_scale: Their learning rate over ``lr``.
        base_weight_decay: Their weight decay; None takes ``weight_decay``.
        exclude_head: Whether the last linear layer trains by the base rule.
        include_norms: Whether normalization layers are preconditioned too.
        stagger: Whether layers take turns inside an interval.
        inverse_dtype: Type of the stored inverses; None follows the factors.
    """

    momentum: Fraction = 0.9
    damping: Positive = 3e-4
    damping_mode: DampingMode = "relative"
    damping_rate: Positive = 1.0
    split: Count | Literal["auto", "per_layer"] | None = 72
    power: Power = 0.5
    interval: AtLeastOne = 20.0
    growth: AtLeastOne = 1.2
    update_above: NonNegative | None = None
    freeze_below: NonNegative = 0.0
    damped_trace: Literal["factors", "product"] = "factors"
    rule_compares: Literal["trace", "distance"] = "trace"
    norm_control: NormControlKind | None = "graft"
    row_decay: Fraction | None = None
    decay: Fraction = 0.8
    rows: Count | None = 1024
    fisher: Literal["empirical", "mc"] = "empirical"
    nesterov: bool = True
    momentum_first: bool = True
    decoupled_decay: bool = False
    base: BaseRule = "sgd"
    base_lr_scale: Positive = 1.0
    base_weight_decay: NonNegative | None = None
    exclude_head: bool = False
    include_norms: bool = False
    stagger: bool = True
    inverse_dtype: Literal["auto", "float32", "bfloat16"] | None = "auto"


@dataclass(frozen=True, kw_only=True)
class KFACSettings(Settings):
    """torch_thor.KFAC and torch_thor.EKFAC.

    Attributes:
        momentum: Momentum over preconditioned gradients.
        damping: λ.
        damping_mode: How λ enters the factors.
        interval: Steps between refreshes.
        norm_control: Length of each layer's step.
        decay: Running average of the factors.
        rows: Rows sampled per layer and refresh, or None for all.
    """

    momentum: Fraction = 0.9
    damping: Positive = 0.03
    damping_mode: DampingMode = "both"
    interval: Count = 20
    norm_control: NormControlKind | None = "kl_clip"
    decay: Fraction = 0.95
    rows: Count | None = None


S = TypeVar("S", bound=Settings)


def to_values(settings: Settings) -> dict[str, SettingValue]:
    """Returns settings as plain values by name."""
    return asdict(settings)


def from_values(kind: type[S], values: dict[str, Any], usual: S | None = None) -> S:
    """Builds settings from values by name, numbers possibly written as text.

    Args:
        kind: Class of the settings.
        values: Some or all of its fields.
        usual: What an error names as usual values; None takes the defaults.

    Raises:
        BenchError: A name is unknown, or a value is not allowed.
    """
    names = [field.name for field in fields(kind)]
    for key in values:
        if key not in names:
            raise unknown_choice("--set", key, names)
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise _bad_value(kind, error, to_values(usual or kind())) from error


def _bad_value(
    kind: type[Settings], error: ValidationError, usual: dict[str, SettingValue]
) -> BenchError:
    """Returns one line for the first field that pydantic refuses."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    told = [_told(e["msg"]) for e in error.errors() if e["loc"][0] == key]
    if type(None) in get_args(get_type_hints(kind)[key]):
        told.append("none")
    message = f"--set {key}={first['input']}: must be {' or '.join(dict.fromkeys(told))}"
    return BenchError(f"{message}; the usual value is {key}={_written(usual[key])}")


def _told(message: str) -> str:
    """Shortens pydantic's ``Input should be a valid number, unable to parse …``."""
    return message.removeprefix("Input should be ").partition(", unable")[0]


def _written(value: object) -> str:
    return "none" if value is None else str(value)


def override(base: S, changes: Sequence[str]) -> S:
    """Applies ``key=value`` texts to settings; ``none`` means None.

    Args:
        base: Settings to start from; not changed.
        changes: Texts as given to ``--set``; of two for one key the later holds.

    Raises:
        BenchError: A text has no ``=``, its key is unknown or its value not allowed.
    """
    values: dict[str, Any] = dict(to_values(base))
    names = list(values)
    for change in changes:
        key, equals, value = (part.strip() for part in change.partition("="))
        if not equals:
            message = f"--set {change!r} has no '='; write key=value, such as lr=0.1"
            raise BenchError(f"{message}; keys: {', '.join(names)}")
        if key not in values:
            raise unknown_choice("--set", key, names)
        values[key] = None if value.lower() == "none" else value
    return from_values(type(base), values, usual=base)

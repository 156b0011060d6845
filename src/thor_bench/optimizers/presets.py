"""The paper's hyper-parameters, row by row: ``--preset paper-256`` and its kind."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from thor_bench.optimizers.settings import KFACSettings, Settings, SGDSettings, THORSettings
from thor_bench.optimizers.variants import VARIANTS

_PAPER = {variant.name: variant.settings for variant in VARIANTS}


@dataclass(frozen=True)
class Preset:
    """A published set-up of one workload.

    Attributes:
        batch_size: Samples per step.
        epochs: Epochs that are trained.
        settings: Settings by the optimizer's name.
    """

    batch_size: int
    epochs: float
    settings: Mapping[str, Settings]


def _imagenet(
    name: str,
    *,
    target: float,
    end: float,
    damping: float,
    rate: float,
    warmup: tuple[float, float] = (0.0, 0.0),
) -> THORSettings:
    """Returns a row of the paper's ResNet-50 table; ``warmup`` is (α_warmup, e_warmup)."""
    return replace(
        _PAPER[name],
        lr=target,
        schedule="polynomial",
        end_epoch=end,
        lr_power=6.0,
        warmup_lr=warmup[0],
        warmup_epochs=warmup[1],
        damping=damping,
        damping_rate=rate,
        split=128,
    )


def _cifar() -> dict[str, Settings]:
    """Returns the CIFAR-10 set-up; the paper draws its curves without numbers: chosen here."""
    settings: dict[str, Settings] = {
        **{name: replace(variant, damping_rate=0.87) for name, variant in _PAPER.items()},
        "sgd": SGDSettings(nesterov=False),
        "kfac": KFACSettings(),
        "ekfac": KFACSettings(),
    }
    return {
        name: replace(one, lr=0.1, schedule="polynomial", lr_power=2.0)
        for name, one in settings.items()
    }


def _row_256(name: str, *, target: float, end: float) -> THORSettings:
    return _imagenet(name, target=target, end=end, damping=0.03, rate=0.87)


PRESETS: dict[tuple[str, str], Preset] = {
    ("cifar10-resnet18", "paper"): Preset(128, 90, _cifar()),
    ("imagenet-resnet50", "paper-256"): Preset(
        256,
        45,
        {
            "paper-thor": _row_256("paper-thor", target=0.045, end=70),
            "paper-thor-stop": _row_256("paper-thor-stop", target=0.050, end=70),
            "paper-thor-nt": _row_256("paper-thor-nt", target=0.045, end=72),
        },
    ),
    ("imagenet-resnet50", "paper-4096"): Preset(
        4096,
        45,
        {
            "paper-thor": _imagenet(
                "paper-thor", target=0.45, end=55, damping=0.3, rate=0.2, warmup=(0.005, 5.0)
            )
        },
    ),
    ("imagenet-resnet50", "paper-8192"): Preset(
        8192,
        45,
        {
            "paper-thor": _imagenet(
                "paper-thor", target=0.8, end=48, damping=0.6, rate=0.3, warmup=(0.01, 5.0)
            )
        },
    ),
}

"""The paper's own times of ResNet-50 on many devices beside the model's."""

from dataclasses import dataclass

from thor_bench.report.tables import TextTable
from thor_bench.scaling.model import Assumptions, Network, Profile, step_time

_IMAGES = 1_281_167  # ImageNet's training set
_SGD_EPOCH = 90.0  # Table 4: seconds on 8 Ascend 910 at batch 256
_THOR_EPOCH = 102.15
_DEVICES = 8
_THOR_SECONDS = 4083.2  # Table 4: to 75.9 %


@dataclass(frozen=True)
class _Row:
    """A row of Table 5: devices, batch and minutes to 75.9 %."""

    devices: int
    batch: int
    minutes: float


_TABLE_5 = (_Row(8, 256, 66.7), _Row(128, 4096, 4.1), _Row(256, 8192, 2.7))


def like_ascend(profile: Profile, network: Network, assumptions: Assumptions) -> Profile:
    """Scales a measured profile so that SGD on 8 devices takes the paper's 90 s per epoch.

    Args:
        profile: ResNet-50 at 32 images a device.
        network: What connects the devices.
        assumptions: As everywhere.
    """
    aim = _SGD_EPOCH / (_IMAGES // (_DEVICES * profile.batch))
    low, high = 0.0, aim / (profile.forward + profile.backward)
    for _ in range(60):  # halving: the step grows with the factor
        middle = (low + high) / 2
        step = step_time(profile.times(middle), "sgd", network, _DEVICES, assumptions)
        low, high = (middle, high) if step.total < aim else (low, middle)
    return profile.times(high)


def paper_table(profile: Profile, network: Network, assumptions: Assumptions) -> TextTable:
    """Returns the paper's Table 5 beside the model's times.

    The paper gives no epochs for its large batches: the table says how many its minutes would be
    at the model's step, and what its own THOR at batch 256 needed (Table 4) would take.

    Args:
        profile: ResNet-50 at 32 images a device, of any speed.
        network: What connects the devices.
        assumptions: As everywhere.
    """
    scaled = like_ascend(profile, network, assumptions)
    epochs = _THOR_SECONDS / _THOR_EPOCH
    rows = []
    for row in _TABLE_5:
        step = step_time(scaled, "thor", network, row.devices, assumptions).total
        epoch = step * (_IMAGES // row.batch)
        rows.append(
            (
                str(row.devices),
                str(row.batch),
                f"{1e3 * step:.2f}",
                f"{epoch:.2f}",
                f"{epochs * epoch / 60:.1f}",
                f"{row.minutes:.1f}",
                f"{60 * row.minutes / epoch:.1f}",
            )
        )
    headings = (
        "devices", "batch", "THOR step, ms", "epoch, s", f"{epochs:.0f} epochs, min",
        "the paper, min", "epochs in the paper's time",
    )  # fmt: skip
    return TextTable(headings, tuple(rows))

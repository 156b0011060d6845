"""Schedule-free AdamW of pytorch_optimizer: an average of the weights takes the place of decay."""

from dataclasses import dataclass
from typing import Literal

from thor_bench.optimizers.peer import Peer, over_parameters
from thor_bench.optimizers.settings import Fraction, NonNegative, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeSettings(Settings):
    """Share of the average where gradients are taken, and decay of the second moment."""

    lr: Positive = 5e-3
    weight_decay: NonNegative = 0.01
    schedule: Literal["constant", "triangle", "polynomial"] = "constant"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99


# The schedule gives its warm-up. Some versions' groups lack what their step reads.
_BUILD = over_parameters("pytorch_optimizer.ScheduleFreeAdamW", group={"warmup_steps": 0})
_TITLE = "schedule-free AdamW (pytorch-optimizer)"
PEERS = (
    Peer(
        "schedule-free",
        _TITLE,
        ScheduleFreeSettings(),
        _BUILD,
        "beta1",
        first_order=True,
        untuned="lr=0.0025 beta2=0.999 weight_decay=0",  # facebookresearch/schedule_free
    ),
)

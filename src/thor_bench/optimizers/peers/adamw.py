"""torch.optim.AdamW."""

from dataclasses import dataclass

from thor_bench.optimizers.peer import Peer, Recipe, over_parameters
from thor_bench.optimizers.settings import Fraction, NonNegative, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class AdamWSettings(Settings):
    """Decays of both moments, and what is added to the root of the second."""

    lr: Positive = 3e-3
    weight_decay: NonNegative = 0.05
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    eps: Positive = 1e-8


_EQUATION = Recipe("lr=0.01 weight_decay=0 beta2=0.999", 160)
_TABULAR = "lr=0.0045 beta1=0.57 beta2=0.92 weight_decay=0.29 warmup=0.03"

PEERS = (
    Peer(
        "adamw",
        "AdamW",
        AdamWSettings(),
        over_parameters("torch.optim.AdamW", "eps"),
        own="beta2",
        first_order=True,
        untuned="lr=0.001 beta2=0.999 weight_decay=0.01",  # as torch has it
        recipes={
            "digits": Recipe("lr=0.003", 5),
            "tabular": Recipe(_TABULAR, 8.75, 128),  # at the batch that its search found best
            "fashion": Recipe("lr=0.01", 6),
            "fashion-autoencoder": Recipe("lr=0.002 weight_decay=0", 10),
            "text-gpt": Recipe("lr=0.003", 6),
            **dict.fromkeys(("poisson-2d", "poisson-5d", "heat"), _EQUATION),
        },
    ),
)

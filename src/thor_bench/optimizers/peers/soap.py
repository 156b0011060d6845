"""SOAP of pytorch_optimizer."""

from dataclasses import dataclass

from thor_bench.optimizers.peer import Peer, Recipe, over_parameters
from thor_bench.optimizers.settings import Count, Fraction, NonNegative, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class SOAPSettings(Settings):
    """Decays, steps between renewals of the eigenbasis, the longest side that is rotated."""

    lr: Positive = 3e-3
    weight_decay: NonNegative = 0.01
    beta1: Fraction = 0.95
    beta2: Fraction = 0.95
    interval: Count = 10
    largest: Count = 2048


_BUILD = over_parameters(
    "pytorch_optimizer.SOAP", precondition_frequency="interval", max_precondition_dim="largest"
)
_RECIPES = {
    "fashion": Recipe("lr=0.01 warmup=0.05", 3),
    "poisson-2d": Recipe("lr=0.003 weight_decay=0", 160),
    "poisson-5d": Recipe("lr=0.01 weight_decay=0", 160),
    "heat": Recipe("lr=0.003 weight_decay=0", 160),
}
PEERS = (
    Peer("soap", "SOAP (pytorch-optimizer)", SOAPSettings(), _BUILD, "beta2", recipes=_RECIPES),
)

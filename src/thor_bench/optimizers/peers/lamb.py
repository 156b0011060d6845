"""LAMB of pytorch_optimizer."""

from dataclasses import dataclass

from thor_bench.optimizers.peer import Peer, over_parameters
from thor_bench.optimizers.settings import Fraction, NonNegative, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class LAMBSettings(Settings):
    """Decays of both moments."""

    lr: Positive = 0.01
    weight_decay: NonNegative = 0.02
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99


_BUILD = over_parameters("pytorch_optimizer.Lamb")
PEERS = (
    Peer("lamb", "LAMB (pytorch-optimizer)", LAMBSettings(), _BUILD, "beta2", first_order=True),
)

"""LARS of pytorch_optimizer."""

from dataclasses import dataclass

from thor_bench.optimizers.peer import Peer, over_parameters
from thor_bench.optimizers.settings import Fraction, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class LARSSettings(Settings):
    """Momentum and the trust coefficient."""

    lr: Positive = 1.0
    momentum: Fraction = 0.9
    trust: Positive = 0.01


_BUILD = over_parameters("pytorch_optimizer.LARS", "momentum", trust_coefficient="trust")
PEERS = (
    Peer("lars", "LARS (pytorch-optimizer)", LARSSettings(), _BUILD, "trust", first_order=True),
)

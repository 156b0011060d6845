"""Scalable Shampoo of pytorch_optimizer, grafted to SGD."""

from dataclasses import dataclass

from thor_bench.optimizers.peer import Peer, over_parameters
from thor_bench.optimizers.settings import Count, Fraction, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class ShampooSettings(Settings):
    """Momentum, decay of the factors, steps between inverse roots, block size of the factors."""

    lr: Positive = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    interval: Count = 20
    block: Count = 128


_BUILD = over_parameters(
    "pytorch_optimizer.ScalableShampoo",
    start_preconditioning_step="interval",
    preconditioning_compute_steps="interval",
    block_size="block",
)
PEERS = (Peer("shampoo", "Shampoo (pytorch-optimizer)", ShampooSettings(), _BUILD, "beta2"),)

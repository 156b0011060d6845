"""SPlus of pytorch_optimizer: matrices whitened, then signed; all others by the sign alone.

What is evaluated is its average of the weights, as its authors ask for (Frans et al. 2025).
"""

from dataclasses import dataclass

from thor_bench.optimizers.peer import Peer, over_parameters
from thor_bench.optimizers.settings import Count, Fraction, NonNegative, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class SPlusSettings(Settings):
    """Decays of momentum, factors and average (0: none), and steps between eigenbases.

    The defaults are those of kvfrans/splus.
    """

    lr: Positive = 0.1
    weight_decay: NonNegative = 0.01
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    average: Fraction = 0.999
    interval: Count = 100


_BUILD = over_parameters("pytorch_optimizer.SPlus", ema_rate="average", inverse_steps="interval")
PEERS = (Peer("splus", "SPlus (pytorch-optimizer)", SPlusSettings(), _BUILD, "beta2"),)

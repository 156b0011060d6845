"""torch.optim.SGD."""

from dataclasses import dataclass

from thor_bench.optimizers.peer import Peer, Recipe, over_parameters
from thor_bench.optimizers.settings import Fraction, Settings


@dataclass(frozen=True, kw_only=True)
class SGDSettings(Settings):
    """Momentum, and whether Nesterov's look-ahead is used."""

    momentum: Fraction = 0.9
    nesterov: bool = True

    @property
    def looks_ahead(self) -> bool:
        """Whether there is a momentum to look ahead by."""
        return self.nesterov and self.momentum > 0


PEERS = (
    Peer(
        "sgd",
        "SGD with Nesterov momentum",
        SGDSettings(),
        over_parameters("torch.optim.SGD", "momentum", nesterov="looks_ahead"),
        own="momentum",
        first_order=True,
        recipes={
            "digits": Recipe("lr=0.05", 4),
            # at the batch that its search found best
            "tabular": Recipe("lr=0.47 momentum=0.82 weight_decay=6e-4 warmup=0.07", 6.75, 96),
            "fashion": Recipe("lr=0.4", 6),
            "fashion-autoencoder": Recipe("lr=0.01 weight_decay=0", 10),
            "text-gpt": Recipe("lr=0.2", 6),
            # the paper draws its curves without numbers: chosen here
            "cifar10-resnet18/paper": Recipe(
                "nesterov=no lr=0.1 schedule=polynomial lr_power=2", 90, 128
            ),
        },
    ),
)

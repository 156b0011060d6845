"""torch.optim.LBFGS with a line search by the strong Wolfe conditions."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.optim import LBFGS, Optimizer

from thor_bench.optimizers.peer import Peer, Recipe, Takes, Training
from thor_bench.optimizers.settings import Count, OwnSettings


@dataclass(frozen=True, kw_only=True)
class LBFGSSettings(OwnSettings):
    """Iterations of a step, and how many of the latest make its picture of the curvature."""

    iterations: Count = 10
    history: Count = 50


def build(training: Training, settings: LBFGSSettings) -> Sequence[Optimizer]:
    """Builds it for all parameters."""
    return [
        LBFGS(
            training.model.parameters(),
            max_iter=settings.iterations,
            history_size=settings.history,
            line_search_fn="strong_wolfe",
        )
    ]


PEERS = (
    Peer(
        "lbfgs",
        "L-BFGS, strong Wolfe; all its steps are on the first batch",
        LBFGSSettings(),
        build,
        takes=Takes.LOSSES,
        own="history",
        recipes={
            "poisson-2d": Recipe("", 8, 256),
            "poisson-5d": Recipe("", 16, 512),
            "heat": Recipe("", 16, 256),
        },
    ),
)

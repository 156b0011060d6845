"""torch_thor.GaussNewton, for tasks whose loss is a sum of squares."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from torch.optim import Optimizer

from thor_bench.optimizers.peer import Peer, Recipe, Takes, Training
from thor_bench.optimizers.settings import Count, OwnSettings, Positive
from torch_thor import GaussNewton


@dataclass(frozen=True, kw_only=True)
class GaussNewtonSettings(OwnSettings):
    """Arguments of ``GaussNewton``."""

    damping: Positive = 1e-3
    adaptive: bool = True
    curvature: Literal["exact", "kronecker"] = "exact"
    line_search: bool = True
    momentum: bool = True
    trust_region: Positive | None = None
    interval: Count = 1
    seed: int = 0


def build(training: Training, settings: GaussNewtonSettings) -> Sequence[Optimizer]:
    """Builds it for all parameters."""
    arguments = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return [GaussNewton(training.model, **arguments)]


PEERS = (
    Peer(
        "gauss-newton",
        "Gauss-Newton, λ by trust; for tasks whose loss is Squares(residuals)",
        GaussNewtonSettings(),
        build,
        takes=Takes.RESIDUALS,
        ours=True,
        recipes={
            "poisson-2d": Recipe("", 4, 128),
            "poisson-5d": Recipe("", 12, 256),
            "heat": Recipe("", 4, 128),
        },
    ),
)

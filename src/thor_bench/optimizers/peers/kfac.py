"""torch_thor.KFAC and torch_thor.EKFAC: unsplit, at a fixed interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import Optimizer

from thor_bench.optimizers.options import Derived, Options, defaults
from thor_bench.optimizers.peer import Peer, Recipe, Training
from thor_bench.optimizers.settings import Count, Fraction, Settings
from torch_thor import EKFAC, KFAC, Damping, NormControl

_DEFAULTS = defaults(KFAC)
_GROUPS = {
    "damping": Options(Damping(_DEFAULTS["damping"], "both"), damping="value", damping_mode="mode"),
    "norm_control": Options(NormControl("kl_clip"), unless="norm_control", norm_control="kind"),
    "statistics": Options(_DEFAULTS["statistics"], "decay", "rows"),
}


@dataclass(frozen=True, kw_only=True)
class _KFACSettings(Settings):
    """Arguments that are no group; factors and inverses have one interval."""

    momentum: Fraction = _DEFAULTS["momentum"]
    interval: Count = _DEFAULTS["factor_interval"]


_DERIVED = Derived(KFAC, _KFACSettings, _GROUPS)
KFACSettings = _DERIVED.settings


def build(kind: type[KFAC], training: Training, settings: Any) -> Sequence[Optimizer]:
    """Builds one of both."""
    arguments = _DERIVED.arguments(training, settings)
    every = settings.interval
    intervals = {"factor_interval": every, "inverse_interval": every}
    return [kind(training.model, exclude=training.exclude, **intervals, **arguments)]


_RECIPES = {
    "digits": Recipe("lr=0.05 norm_control=graft", 5),
    "fashion": Recipe("lr=0.15 damping=0.1 interval=50 norm_control=none rows=4096", 4),
    # the paper draws its curves without numbers: chosen here
    "cifar10-resnet18/paper": Recipe("lr=0.1 schedule=polynomial lr_power=2", 90, 128),
}
PEERS = tuple(
    Peer(name, description, KFACSettings(), partial(build, kind), ours=True, recipes=_RECIPES)
    for name, description, kind in (
        ("kfac", "K-FAC: unsplit, fixed interval", KFAC),
        ("ekfac", "K-FAC, eigenvalues corrected", EKFAC),
    )
)

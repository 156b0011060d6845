"""Promise: a change that costs convergence does not pass unseen.

The curves in ``tests/golden/digits.json`` were recorded with explicit options, so that a change of
a default does not touch them. Where a change of the mathematics is meant, record them again with
``pytest tests/contracts/test_golden_curves.py --record-golden`` and say why in the changelog.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from digits import train_on_digits
from torch_thor import (
    EKFAC,
    KFAC,
    THOR,
    Damping,
    NormControl,
    Refresh,
    Statistics,
    TraceRule,
    Update,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn, optim

pytestmark = pytest.mark.cpu  # another device draws other weights

GOLDEN = Path(__file__).parents[1] / "golden" / "digits.json"
# Other processors differ by 5e-7 after 96 steps in float64; a lost factor by far more than this.
TOLERANCE = 1e-3

RECIPES: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "half power, fixed rms, split": lambda model: THOR(
        model,
        lr=0.05,
        momentum=0.9,
        weight_decay=0.05,
        damping=Damping(3e-4, "relative"),
        split=32,
        power=0.5,
        interval=10,
        norm_control=NormControl("rms"),
        update=Update(nesterov=True, momentum_first=True, decoupled_decay=True),
        statistics=Statistics(decay=0.8, rows=None),
        refresh=Refresh(),
        base="sgd",
    ),
    "paper's power, graft, trace rule": lambda model: THOR(
        model,
        lr=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        damping=Damping(0.03, "both"),
        split=32,
        power=1.0,
        interval=10,
        trace_rule=TraceRule(update_above=0.01, freeze_below=0.0),
        norm_control=NormControl("graft"),
        update=Update(nesterov=False, momentum_first=False, decoupled_decay=False),
        statistics=Statistics(decay=0.0, rows=None),
    ),
    "K-FAC with KL clip": lambda model: KFAC(
        model,
        lr=0.05,
        damping=Damping(0.03, "pi"),
        factor_interval=5,
        inverse_interval=10,
        norm_control=NormControl("kl_clip", 1e-2),
    ),
    "EKFAC with graft": lambda model: EKFAC(
        model,
        lr=0.05,
        damping=Damping(0.03, "both"),
        factor_interval=5,
        inverse_interval=10,
        norm_control=NormControl("graft"),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_training_losses_follow_the_recorded_curve(name: str, *, record_golden: bool) -> None:
    """Case 44."""
    found = [round(loss, 6) for loss in train_on_digits(RECIPES[name], seed=0).losses]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if record_golden:
        GOLDEN.write_text(json.dumps({**golden, name: found}, indent=2, sort_keys=True) + "\n")
        return
    assert found == pytest.approx(golden[name], rel=TOLERANCE)

"""The paper's own variants, by the letter of its equations, and the rule that THOR replaces.

``paper-thor`` and its relatives take eq. 6 as printed: inverses (not roots), λ on both factors, no
control of lengths, momentum over preconditioned gradients, the last batch's factors over all rows.
``thor`` is the recipe that trains best here.
"""

from dataclasses import dataclass, replace

from thor_bench.optimizers.settings import THORSettings

OMEGA1, OMEGA2 = 0.01, 0.001  # the thresholds that the paper recommends
STALE = 0.1  # α of Osawa et al. 2019: statistics that moved by less are stale


@dataclass(frozen=True)
class Variant:
    """A named way to run THOR.

    Attributes:
        name: Its name.
        description: One line.
        settings: Its settings.
    """

    name: str
    description: str
    settings: THORSettings


PLAIN = THORSettings(
    lr=0.05,
    damping=0.03,
    damping_mode="both",
    split=None,
    power=1.0,
    interval=20,
    growth=1.0,
    damped_trace="product",
    norm_control=None,
    decay=0.0,
    rows=None,
    nesterov=False,
    momentum_first=False,
    decoupled_decay=False,
    stagger=False,
    inverse_dtype=None,
)
_NT = replace(PLAIN, split=72, growth=1.2)

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "paper-thor",
        "the paper's THOR: eq. 6, trace rule, split, growing intervals",
        replace(_NT, update_above=OMEGA1),
    ),
    Variant(
        "paper-thor-stop",
        "the paper's THOR_stop: layers freeze below ω2",
        replace(_NT, update_above=OMEGA1, freeze_below=OMEGA2),
    ),
    Variant("paper-thor-nt", "the paper's THOR_NT: no trace rule", _NT),
    Variant(
        "paper-thor-tr",
        "ablation: K-FAC with the trace rule",
        replace(PLAIN, update_above=OMEGA1),
    ),
    Variant("paper-thor-fre", "ablation: K-FAC at growing intervals", replace(PLAIN, growth=1.2)),
    Variant("paper-thor-sp", "ablation: K-FAC on split factors", replace(PLAIN, split=72)),
    Variant("paper-kfac", "the paper's baseline: K-FAC, interval 20", PLAIN),
    Variant(
        "sp-ngd",
        "SP-NGD: stale statistics by Frobenius distance, norms included",
        replace(
            PLAIN,
            damping_mode="pi",
            decay=0.9,
            include_norms=True,
            update_above=STALE,
            rule_compares="distance",
        ),
    ),
)

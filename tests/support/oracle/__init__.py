"""A float64 reference for curvature, written from the definitions with literal loops.

It shares no code with ``torch_thor`` and never imports it: whatever the product does with hooks,
unfolds, stacks and batched products is compared with per-sample autograd, patches cut out one by
one, and ``inv(kron(G, A))``.
"""

from oracle.curvature import (
    blocks_only,
    damped,
    dense_fisher,
    direction,
    factors,
    inverse_power,
    vector,
)
from oracle.geometry import conv_patches, linear_rows
from oracle.rules import (
    EvenedRows,
    RunningAverage,
    ekfac_direction,
    grafted,
    kl_clip_factor,
    relative_change,
    with_rms,
)
from oracle.samples import Observed, observe

__all__ = [
    "EvenedRows",
    "Observed",
    "RunningAverage",
    "blocks_only",
    "conv_patches",
    "damped",
    "dense_fisher",
    "direction",
    "ekfac_direction",
    "factors",
    "grafted",
    "inverse_power",
    "kl_clip_factor",
    "linear_rows",
    "observe",
    "relative_change",
    "vector",
    "with_rms",
]

"""Inverse square roots by products alone: batched, on any device, at the hardware's full speed.

The coupled iteration Y → M^1/2, Z → M^-1/2 starts at Y = M, Z = I and goes on by Y ← Y p(T),
Z ← p(T) Z with T = Z Y, whose eigenvalues x² it brings to 1 by x ← x p(x²) (Higham, Functions of
Matrices, chapter 6). Newton and Schulz take p = (3 - T) / 2 in every step; here each p is the best
of its degree for what the steps before have left (Amsel et al. 2025, "The Polar Express").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rung:
    """One step x ← x (a + b x² + c x⁴), the minimax polynomial of 1 on [lower, upper].

    It maps that interval to the next rung's, which lies around 1.
    """

    lower: float
    upper: float
    a: float
    b: float
    c: float

    @property
    def condition(self) -> float:
        """Largest ratio of eigenvalues x² that may enter here."""
        return (self.upper / self.lower) ** 2


# By Remez' exchange in float64, from lower = 2^-10 on; the last one leaves an error of 7e-10.
LADDER = (
    Rung(9.765625e-4, 1.0, 8.471354460566324, -25.1121252869935, 18.63249804272425),
    Rung(8.2727837e-3, 1.9917272163, 4.184539476473823, -3.109885881836164, 0.5807418053263689),
    Rung(3.46160293e-2, 1.9653839707, 3.9681853107564695, -2.9585240958720527, 0.5634844495506474),
    Rung(0.1372401292, 1.8627598708, 3.3024857763225377, -2.476601521961038, 0.5087028454485101),
    Rung(0.4468565799, 1.5531434201, 2.2870129876066705, -1.6566394918184197, 0.41748277777155596),
    Rung(0.8815854425, 1.1184145575, 1.8899571935564667, -1.2665205661774965, 0.3766558583940276),
    Rung(0.9989574314, 1.0010425686, 1.8750011463777403, -1.2500012737390611, 0.3750001273618747),
)
# In float32 a step without a product, Newton's and Schulz', does for the last: it leaves 2e-6.
_LAST_OF_FLOAT32 = replace(LADDER[-1], a=1.5, b=-0.5, c=0.0)
# Taylor's step at 1: it takes an error of 1e-9 to nothing in float64.
_LAST = Rung(1 - 1e-8, 1 + 1e-8, 1.875, -1.25, 0.375)
_CONVERGED = 1e-2  # of an entry of Z Y - I before the last step, which squares it
_CACHED_BYTES = 384 << 10  # of a stack whose iteration stays in a CPU's caches
_MANY_BYTES = 4 << 20  # from which that is worth more calls


def rungs_for(condition: float, dtype: torch.dtype) -> list[Rung]:
    """Returns the steps for matrices of a type and bound on the condition, the fewest that do.

    What the type can't resolve is not counted.
    """
    condition = min(condition, 0.1 / torch.finfo(dtype).eps)
    start = max((n for n, rung in enumerate(LADDER) if condition <= rung.condition), default=0)
    rungs = list(LADDER[start:])
    first, second = LADDER[:2]
    # Scaled back to [0, 1], the first step can be repeated; it raises small values by this much.
    gain = first.a / second.upper
    missing = math.log(condition / first.condition) / (2 * math.log(gain))
    scaled = (value / second.upper for value in (first.a, first.b, first.c))
    repeated = Rung(first.lower / gain, first.upper, *scaled)
    rungs = [repeated] * max(math.ceil(missing), 0) + rungs
    return [*rungs[:-1], _LAST_OF_FLOAT32] if dtype == torch.float32 else [*rungs, _LAST]


def inverse_square_root(matrices: Tensor, condition: float) -> tuple[Tensor, Tensor]:
    """M^-1/2 of symmetric positive definite ``[..., n, n]``, and a mask of where it converged."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    rungs = rungs_for(condition, matrices.dtype)
    count = len(flat)
    if flat.device.type == "cpu" and flat.nbytes > _MANY_BYTES:
        count = max(1, count * _CACHED_BYTES // flat.nbytes)
    found = [_root(part, rungs) for part in flat.split(count)]
    roots, good = (torch.cat(own) if len(own) > 1 else own[0] for own in zip(*found, strict=True))
    return roots.view_as(matrices), good.view(matrices.shape[:-2])


def _root(flat: Tensor, rungs: list[Rung]) -> tuple[Tensor, Tensor]:
    # The largest row sum bounds the spectral radius more tightly than the trace does.
    bound = flat.abs().sum(-1).amax(-1).clamp_min(torch.finfo(flat.dtype).tiny)
    scale = rungs[0].upper * bound.rsqrt()
    product = root = flat * scale.square().view(-1, 1, 1)
    inverse = step = _polynomial(product, rungs[0])
    for rung in rungs[1:]:
        root = torch.bmm(root, step)
        product = torch.bmm(inverse, root)
        step = _polynomial(product, rung)
        inverse = torch.bmm(step, inverse)
    product.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    good = product.abs().flatten(1).amax(1) < _CONVERGED
    roots = inverse * scale.view(-1, 1, 1)
    return (roots + roots.mT).mul_(0.5), good


def _polynomial(products: Tensor, rung: Rung) -> Tensor:
    if rung.c == 0:
        result = products * rung.b
    else:
        result = torch.baddbmm(products, products, products, beta=rung.b, alpha=rung.c)
    result.diagonal(dim1=-2, dim2=-1).add_(rung.a)
    return result

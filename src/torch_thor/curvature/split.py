"""Choice of the block size: information kept against measured speed (eq. 10–12)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor import linalg
from torch_thor.capture.statistics import batch_of
from torch_thor.linalg.partition import Partition
from torch_thor.linalg.timing import affordable, free_memory, inversion_times
from torch_thor.options.errors import InvalidOptionError, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.layers import Geometry
    from torch_thor.options.curvature import Statistics

TOLERATED_LOSS = 0.01
_ROUNDING = 1e-9  # of a log det, for each row of the factor


@dataclass(frozen=True)
class SplitCurves:
    """The two curves of the paper's Figure 5 over the candidates.

    Args:
        sizes: Candidate block sizes, increasing.
        kept: Share of the factors that lose less than 1 % at each size ("normalized loss").
        speed: Inversion time at the first size ÷ time at each size (eq. 12).
    """

    sizes: tuple[int, ...]
    kept: tuple[float, ...]
    speed: tuple[float, ...]

    def __post_init__(self) -> None:
        require("sizes", self.sizes, len(self.sizes) >= 1, "at least one candidate")
        increasing = all(a < b for a, b in zip(self.sizes, self.sizes[1:], strict=False))
        require("sizes", self.sizes, increasing, "increasing")
        if not len(self.sizes) == len(self.kept) == len(self.speed):
            raise InvalidOptionError("kept", self.kept, "one value per candidate size")

    @classmethod
    def of(
        cls, sizes: tuple[int, ...], losses: Sequence[Sequence[float]], seconds: Sequence[float]
    ) -> Self:
        """Returns both curves from each factor's L, and the time of an inversion, at each size."""
        kept = tuple(count / max(len(losses), 1) for count in almost_whole(losses, len(sizes)))
        return cls(sizes, kept, tuple(seconds[0] / time for time in seconds))

    def crossing(self) -> tuple[float, float]:
        """Returns (size, height) where the curves cross, linear between candidates.

        Curves that never cross answer with the end at which they come closest.
        """
        gaps = [k - s for k, s in zip(self.kept, self.speed, strict=True)]
        for i in range(len(gaps) - 1):
            if gaps[i] < 0 <= gaps[i + 1]:
                t = -gaps[i] / (gaps[i + 1] - gaps[i])
                size = self.sizes[i] + t * (self.sizes[i + 1] - self.sizes[i])
                return size, self.kept[i] + t * (self.kept[i + 1] - self.kept[i])
        end = 0 if gaps[0] >= 0 else -1
        return float(self.sizes[end]), self.kept[end]

    def choice(self) -> int:
        """Returns the candidate nearest to the crossing."""
        crossing, _ = self.crossing()
        return min(self.sizes, key=lambda size: abs(size - crossing))


def almost_whole(losses: Sequence[Sequence[float]], sizes: int) -> tuple[int, ...]:
    """How many factors lose less than 1 % at each of so many sizes (Table 1)."""
    return tuple(sum(of_factor[n] < TOLERATED_LOSS for of_factor in losses) for n in range(sizes))


def candidate_sizes(geometries: Sequence[Geometry]) -> tuple[int, ...]:
    """Candidates: 1, then doublings of the model's commonest kernel up to its widest factor.

    Multiples of the kernel's taps keep a channel's taps in one block (9, 18, 36, … for
    3×3 kernels); a model without kernels gets powers of two from 16.
    """
    taps = Counter[int]()
    for geometry in geometries:
        taps[geometry.taps] += geometry.outputs * geometry.columns * geometry.matrices
    unit = taps.most_common(1)[0][0]
    size = unit if unit > 1 else 16
    widest = max(max(g.widest_input_block, g.outputs) for g in geometries)
    sizes = [1]
    while size < widest:
        sizes.append(size)
        size *= 2
    return (*sizes, size)


def information_loss(rows: Tensor, block: int) -> Tensor:
    """L of eq. 11 for the factors of rows ``[k, r, d]``, cut into blocks: ``[k]``, 0 to 1.

    √(λmax(Â Âᵀ) / λmax(A Aᵀ)) = λmax(Â) / λmax(A), because both are symmetric and
    positive semidefinite. A factor that is all zeros loses nothing.
    """
    whole = linalg.largest_eigenvalue(rows)
    tiles = _tiles(rows, Partition.of(rows.shape[-1], block))
    parts = linalg.largest_eigenvalue(tiles).amax(-1)
    # Power iteration ends slightly low; a block can't hold more than the whole.
    return torch.where(whole > 0, 1.0 - (parts / whole), 0.0).clamp(0.0, 1.0)


def log_det_divergences(rows: Tensor, blocks: Sequence[int], damping: float) -> tuple[float, ...]:
    """Log det of the cut factor − log det of the whole one, in nats, for each block size.

    The mean over the matrices of rows ``[k, r, d]``. Both are damped by λ times the mean
    eigenvalue. tr(Â⁻¹A) = d, because Â holds A's own blocks, so this is the whole of the log-det
    (Burg) divergence.
    """
    table = rows.double()
    width = table.shape[-1]
    mean = linalg.sum_of_squares(table) / width
    shift = torch.where(mean > 0, mean, 1.0) * damping
    whole = _log_det(table.unsqueeze(1), shift)
    found = []
    for block in blocks:
        cut = Partition.of(width, block)
        # Columns of padding are zeros: each adds log λ.
        parts = _log_det(_tiles(table, cut), shift) - cut.padding * shift.log()
        gap = parts - whole
        found.append(float(gap.masked_fill(gap < _ROUNDING * width, 0.0).mean()))
    return tuple(found)


def _log_det(tiles: Tensor, shift: Tensor) -> Tensor:
    """Log det of the blocks tilesᵀ tiles + shift · I, summed: ``[k, n, r, s]`` to ``[k]``."""
    count, size = tiles.shape[-2:]
    # det(λI + XᵀX) = λ^(s−r) det(λI + XXᵀ): the smaller of the two is formed.
    gram = tiles.mT @ tiles if size <= count else tiles @ tiles.mT
    damped = linalg.add_to_diagonal(gram, shift[:, None].expand(gram.shape[:2]))
    # By Cholesky: a batch of LU factorizations never ends under some builds with several threads.
    triangles, info = torch.linalg.cholesky_ex(damped)
    parts = 2.0 * triangles.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    parts = torch.where(info == 0, parts, torch.nan)
    return (parts + max(size - count, 0) * shift.log()[:, None]).sum(-1)


def _tiles(rows: Tensor, cut: Partition) -> Tensor:
    """Rows ``[k, r, d]`` as those of the blocks, padded with zeros: ``[k, n, r, s]``."""
    padded = pad(rows, (0, cut.padding)) if cut.padding else rows
    return padded.view(*rows.shape[:-1], cut.count, cut.block).transpose(1, 2)


def trade_gains(
    divergence: Sequence[float], seconds: Sequence[float], diagonal: float
) -> tuple[float, ...]:
    """Share of the information that each size keeps − its share of the longest time.

    Information is the divergence that a diagonal factor would have; larger blocks are
    worth their time as long as they bring more of it per microsecond than the whole
    factor does on average.
    """
    longest = max(seconds)
    return tuple(
        (1.0 - lost / diagonal) - time / longest
        for lost, time in zip(divergence, seconds, strict=True)
    )


def split_curves(
    layers: Sequence[TrackedLayer], statistics: Statistics, power: float
) -> SplitCurves:
    """Measures both curves on the input factors A, as the paper's Table 1, after one backward."""
    device = layers[0].weight.device
    sizes = _that_fit(candidates_on(device, layers), layers, device)
    times = inversion_times(sizes, device, power)
    losses = [information_losses(rows, sizes) for _, rows in input_rows(layers, statistics)]
    return SplitCurves.of(sizes, losses, times)


def candidates_on(device: torch.device, layers: Sequence[TrackedLayer]) -> tuple[int, ...]:
    """Those candidates for some layers that a device can measure."""
    return affordable(candidate_sizes([layer.geometry for layer in layers]), device)


def held_entries(geometry: Geometry, sizes: tuple[int, int]) -> int:
    """Entries of the factors and inverses of one matrix at the sizes of (A, G)."""
    cuts = map(Partition.of, (geometry.columns, geometry.outputs), sizes)
    return 2 * sum(cut.count * cut.block**2 for cut in cuts)


def _that_fit(
    sizes: tuple[int, ...], layers: Sequence[TrackedLayer], device: torch.device
) -> tuple[int, ...]:
    """Those sizes with which the whole model's curvature takes at most half of the free memory."""
    free = free_memory(device)
    if free is None:
        return sizes

    def needed(size: int) -> int:
        return sum(
            layer.geometry.matrices
            * held_entries(layer.geometry, (layer.geometry.structure.input_block or size, size))
            * max(layer.weight.element_size(), 4)
            for layer in layers
        )

    return (*sizes[:1], *(size for size in sizes[1:] if needed(size) <= free / 2))


def input_rows(
    layers: Sequence[TrackedLayer], statistics: Statistics
) -> list[tuple[TrackedLayer, Tensor]]:
    """Rows ``[k, r, d]`` of every layer's A; a diagonal factor loses nothing at any size."""
    cut = [layer for layer in layers if layer.geometry.structure.input_block is None]
    batches = [(layer, batch_of(layer, statistics)) for layer in cut]
    return [(layer, batch[0].rows[0].float()) for layer, batch in batches if batch is not None]


def information_losses(rows: Tensor, sizes: Sequence[int]) -> tuple[float, ...]:
    """Mean L over the matrices of a layer, at each size."""
    return tuple(float(information_loss(rows, size).mean()) for size in sizes)

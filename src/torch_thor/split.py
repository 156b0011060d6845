"""Choice of the block size: information kept against measured speed (eq. 10–12)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from torch_thor import linalg
from torch_thor.capture import Capture
from torch_thor.coverage import survey
from torch_thor.errors import InvalidOptionError, require
from torch_thor.hardware import inversion_times
from torch_thor.options import Statistics
from torch_thor.partition import Partition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from torch_thor.capture import TrackedLayer
    from torch_thor.layers import Geometry

TOLERATED_LOSS = 0.01


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
        """Validates the curves."""
        require("sizes", self.sizes, len(self.sizes) >= 1, "at least one candidate")
        increasing = all(a < b for a, b in zip(self.sizes, self.sizes[1:], strict=False))
        require("sizes", self.sizes, increasing, "increasing")
        if not len(self.sizes) == len(self.kept) == len(self.speed):
            raise InvalidOptionError("kept", self.kept, "one value per candidate size")

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
    widest = max(max(1 if g.one_hot else g.columns, g.outputs) for g in geometries)
    sizes = [1]
    while size < widest:
        sizes.append(size)
        size *= 2
    return (*sizes, size)


def information_loss(rows: Tensor, block: int) -> Tensor:
    """L of eq. 11 for the factor rowsᵀ rows cut into blocks.

    √(λmax(Â Âᵀ) / λmax(A Aᵀ)) = λmax(Â) / λmax(A), because both are symmetric and
    positive semidefinite.

    Args:
        rows: ``[k, r, d]``.
        block: Block size.

    Returns:
        ``[k]``, 0 (nothing lost) to 1; 0 for a factor that is all zeros.
    """
    whole = linalg.largest_eigenvalue(rows)
    cut = Partition.of(rows.shape[-1], block)
    padded = pad(rows, (0, cut.padding))
    tiles = padded.view(*rows.shape[:-1], cut.count, cut.block).transpose(1, 2)
    parts = linalg.largest_eigenvalue(tiles).amax(-1)
    # Power iteration ends slightly low; a block can't hold more than the whole.
    return torch.where(whole > 0, 1.0 - (parts / whole), 0.0).clamp(0.0, 1.0)


def choose_split(
    split: int | Literal["auto"] | None, layers: Sequence[TrackedLayer], capture: Capture
) -> int | None:
    """Turns the ``split`` argument into a block size; ``"auto"`` measures device and factors.

    Args:
        split: See ``THOR``.
        layers: All tracked layers.
        capture: Holds the first batch's rows, on which ``"auto"`` measures the loss.
    """
    return split_curves(layers, capture, power=1.0).choice() if split == "auto" else split


def split_curves(layers: Sequence[TrackedLayer], capture: Capture, power: float) -> SplitCurves:
    """Measures both curves for a model that has seen one backward.

    The loss is counted over the input factors A, as in the paper's Table 1.
    """
    sizes = candidate_sizes([layer.geometry for layer in layers])
    times = inversion_times(sizes, layers[0].weight.device, power)
    losses = [_losses(rows, sizes) for _, rows in _input_rows(layers, capture)]
    return _curves(sizes, losses, [time.seconds for time in times])


def _curves(
    sizes: tuple[int, ...], losses: Sequence[Sequence[float]], seconds: Sequence[float]
) -> SplitCurves:
    kept = [
        sum(of_layer[n] < TOLERATED_LOSS for of_layer in losses) / max(len(losses), 1)
        for n in range(len(sizes))
    ]
    return SplitCurves(sizes, tuple(kept), tuple(seconds[0] / time for time in seconds))


def _input_rows(
    layers: Sequence[TrackedLayer], capture: Capture
) -> list[tuple[TrackedLayer, Tensor]]:
    """Rows ``[k, r, d]`` of every layer's A; a diagonal factor loses nothing at any size."""
    cut = [layer for layer in layers if not layer.geometry.one_hot]
    batches = [(layer, capture.batch(layer)) for layer in cut]
    return [(layer, batch[0].rows[0].float()) for layer, batch in batches if batch is not None]


def _losses(rows: Tensor, sizes: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(information_loss(rows, size).mean()) for size in sizes)


@dataclass(frozen=True)
class LayerSplit:
    """What cutting one layer's input factor A costs and saves at each candidate size.

    Args:
        layer: Qualified name of the module.
        columns: Rows of A.
        loss: L of eq. 11.
        divergence: log det of the cut factor − log det of the whole one, both damped: twice
            the Kullback–Leibler divergence between zero-mean Gaussians of these covariances,
            in nats. Unlike eq. 11 it sees every eigenvalue. 0 for a factor left whole.
        seconds: Time to invert all blocks of A, by the measured time of one.
    """

    layer: str
    columns: int
    loss: tuple[float, ...]
    divergence: tuple[float, ...]
    seconds: tuple[float, ...]

    def choice(self, sizes: Sequence[int]) -> int:
        """Returns the size whose kept information most exceeds its share of the time.

        Information is the divergence that a diagonal factor would have; larger blocks are
        worth their time as long as they bring more of it per microsecond than the whole
        factor does on average.
        """
        worst, longest = max(self.divergence), max(self.seconds)
        if worst <= 0.0:
            return sizes[0]
        gains = [
            (1.0 - lost / worst) - time / longest
            for lost, time in zip(self.divergence, self.seconds, strict=True)
        ]
        return sizes[max(range(len(gains)), key=gains.__getitem__)]


@dataclass(frozen=True)
class SplitMeasurement:
    """What ``measure_split`` found.

    Args:
        sizes: Candidate block sizes.
        seconds: Measured time to invert one matrix of each size.
        layers: One entry per layer whose A can be cut.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    layers: tuple[LayerSplit, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many factors lose less than 1 % at each size (Table 1)."""
        return tuple(
            sum(layer.loss[n] < TOLERATED_LOSS for layer in self.layers)
            for n in range(len(self.sizes))
        )

    @property
    def curves(self) -> SplitCurves:
        """The paper's two curves."""
        return _curves(self.sizes, [layer.loss for layer in self.layers], self.seconds)


def measure_split(
    model: nn.Module,
    backward: Callable[[], object],
    *,
    damping: float = 3e-4,
    rows: int | None = 4096,
    power: float = 1.0,
) -> SplitMeasurement:
    """Measures what each block size loses of a model's factors and costs on its device.

    Times are kept in the cache that ``split="auto"`` reads.

    Args:
        model: The model; its hooks are gone when this returns.
        backward: Runs one forward and backward of the model.
        damping: λ of the divergence, times the factor's mean eigenvalue.
        rows: Rows taken per layer; ``None`` takes all.
        power: 1 measures inverses (eq. 12), 1/2 inverse square roots.

    Raises:
        InvalidOptionError: Where the backward reached no layer that can be split.
    """
    layers, _ = survey(model, ())
    capture = Capture(Statistics(rows=rows))
    capture.attach(layers)
    try:
        capture.arm(layers, set(layers), seed=0)
        backward()
        found = _input_rows(layers, capture)
    finally:
        capture.remove()
    if not found:
        raise InvalidOptionError("model", type(model).__name__, "one with a layer to split")
    sizes = candidate_sizes([layer.geometry for layer in layers])
    times = inversion_times(sizes, found[0][0].weight.device, power)
    seconds = tuple(time.seconds for time in times)
    return SplitMeasurement(
        sizes,
        seconds,
        tuple(_layer_split(layer.name, table, sizes, seconds, damping) for layer, table in found),
    )


def _layer_split(
    name: str, rows: Tensor, sizes: tuple[int, ...], seconds: tuple[float, ...], damping: float
) -> LayerSplit:
    columns = rows.shape[-1]
    blocks = [min(size, columns) for size in sizes]
    counts = [-(-columns // block) for block in blocks]
    time_of = dict(zip(sizes, seconds, strict=True))
    nearest = [min(sizes, key=lambda size, b=block: abs(size - b)) for block in blocks]  # type: ignore[misc]
    return LayerSplit(
        name,
        columns,
        _losses(rows, sizes),
        tuple(log_det_divergence(rows, block, damping) for block in blocks),
        tuple(count * time_of[size] for count, size in zip(counts, nearest, strict=True)),
    )


def log_det_divergence(rows: Tensor, block: int, damping: float) -> float:
    """Log det of the cut factor − log det of the whole one, mean over the matrices.

    Both are damped by λ times the mean eigenvalue. tr(Â⁻¹A) = d, because Â holds A's own
    blocks, so this is the whole of the log-det (Burg) divergence.

    Args:
        rows: ``[k, r, d]``.
        block: Block size.
        damping: λ.
    """
    table = rows.double()
    width = table.shape[-1]
    mean = table.square().sum((1, 2)) / width
    mean = torch.where(mean > 0, mean, 1.0)
    whole = _log_det(linalg.diagonal_blocks(table, width), mean * damping)
    cut = Partition.of(width, block)
    padded = pad(table, (0, cut.padding))
    parts = _log_det(linalg.diagonal_blocks(padded, cut.block), mean * damping)
    # Columns of padding are zeros: each adds log λ.
    parts = parts - cut.padding * (mean * damping).log()
    return float((parts - whole).clamp_min(0.0).mean())


def _log_det(blocks: Tensor, shift: Tensor) -> Tensor:
    """Log det of block-diagonal ``[k, n, s, s]`` plus shift · I: ``[k]``."""
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    damped = blocks + shift[:, None, None, None] * eye
    parts: Tensor = torch.linalg.slogdet(damped).logabsdet
    return parts.sum(-1)

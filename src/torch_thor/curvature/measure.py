"""What each block size loses of a model's factors and costs, layer by layer, by two criteria."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_thor.capture.capture import Capture
from torch_thor.capture.survey import survey
from torch_thor.curvature.split import (
    SplitCurves,
    almost_whole,
    candidates_on,
    information_losses,
    input_rows,
    log_det_divergences,
    trade_gains,
)
from torch_thor.linalg.timing import inversion_times
from torch_thor.options.curvature import Statistics
from torch_thor.options.errors import InvalidOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn


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
        """Returns the size whose kept information most exceeds its share of the time."""
        worst = max(self.divergence)
        if worst <= 0.0:
            return sizes[0]
        gains = trade_gains(self.divergence, self.seconds, worst)
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
        return almost_whole([layer.loss for layer in self.layers], len(self.sizes))

    @property
    def curves(self) -> SplitCurves:
        """The paper's two curves."""
        return SplitCurves.of(self.sizes, [layer.loss for layer in self.layers], self.seconds)


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
    layers = survey(model, ()).layers
    statistics = Statistics(rows=rows)
    capture = Capture(statistics)
    capture.hooks.attach(layers)
    try:
        capture.arm(layers, set(layers), seed=0)
        backward()
        found = input_rows(layers, statistics)
    finally:
        capture.hooks.remove()
    if not found:
        raise InvalidOptionError("model", type(model).__name__, "one with a layer to split")
    device = found[0][0].weight.device
    sizes = candidates_on(device, layers)
    seconds = inversion_times(sizes, device, power)
    splits = [_layer_split(layer.name, table, sizes, seconds, damping) for layer, table in found]
    return SplitMeasurement(sizes, seconds, tuple(splits))


def _layer_split(
    name: str, rows: Tensor, sizes: tuple[int, ...], seconds: tuple[float, ...], damping: float
) -> LayerSplit:
    columns = rows.shape[-1]
    blocks = [min(size, columns) for size in sizes]

    def time_of_all(block: int) -> float:
        _, nearest = min(zip(sizes, seconds, strict=True), key=lambda one: abs(one[0] - block))
        return -(-columns // block) * nearest

    loss, divergence = information_losses(rows, sizes), log_det_divergences(rows, blocks, damping)
    return LayerSplit(name, columns, loss, divergence, tuple(map(time_of_all, blocks)))

"""What is known of a due layer before its covariances are formed: by one rank, or by all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_thor.capture.statistics import FactorBatch

Batch = tuple["FactorBatch", "FactorBatch"]
# Entries of a message besides those of the k matrices.
_FLAGS = 3


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one due layer since the last step, and what they say at once.

    Args:
        name: The layer's.
        batch: Statistics (A, G) of this rank; without rows where it has none. Once pooled,
            they are scaled so that the sum over ranks is the statistics of all samples.
        traces: (tr A, tr G), each ``[k]``, of this rank, or of all ranks once pooled.
        seen: Whether there are statistics.
        called: Whether the layer's forward ran.
        graded: Whether its weight has a gradient.
    """

    name: str
    batch: Batch
    traces: tuple[Tensor, Tensor]
    seen: bool
    called: bool
    graded: bool

    @property
    def entries(self) -> int:
        """Numbers that this layer adds to the message."""
        return 3 * self.traces[0].numel() + _FLAGS

    def counts(self) -> Tensor:
        """Rows behind A of each matrix, and samples behind G: ``[k + 1]``, float64."""
        rows, samples = self.batch[0].count, self.batch[1].count
        matrices = self.traces[0].numel()
        each = rows if isinstance(rows, tuple) else (rows,) * matrices
        return torch.tensor([*each, samples], dtype=torch.float64, device="cpu")


def write(statistics: Sequence[LayerStatistics], device: torch.device) -> Tensor:
    """Lays the ranks' sums out as one float64 vector: traces times counts, counts, flags."""
    parts = []
    for one in statistics:
        counts = one.counts().to(device)
        trace_a, trace_g = (trace.to(device, torch.float64) for trace in one.traces)
        flags = torch.tensor([one.called, one.graded], dtype=torch.float64, device=device)
        parts += [trace_a * counts[:-1], trace_g * counts[-1], counts, flags]
    return torch.cat(parts)


def read(statistics: Sequence[LayerStatistics], total: Tensor) -> list[LayerStatistics]:
    """Turns the sum of all ranks' vectors into what all of them know.

    Args:
        statistics: This rank's own.
        total: Sum of the vectors, on the CPU.
    """
    pooled = []
    for one, part in zip(
        statistics, torch.split(total, [e.entries for e in statistics]), strict=True
    ):
        matrices = one.traces[0].numel()
        sums_a, sums_g, counts, flags = torch.split(part, [matrices, matrices, matrices + 1, 2])
        shares = one.counts() / counts.clamp_min(1.0)
        like = one.traces[0]
        traces = (sums_a / counts[:-1].clamp_min(1.0), sums_g / counts[-1].clamp_min(1.0))
        a, g = one.batch
        pooled.append(
            replace(
                one,
                batch=(a.scaled(shares[:-1].to(like)), g.scaled(float(shares[-1]))),
                traces=(traces[0].to(like), traces[1].to(like)),
                seen=bool(counts[-1] > 0),
                called=bool(flags[0] > 0),
                graded=bool(flags[1] > 0),
            )
        )
    return pooled

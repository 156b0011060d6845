"""PSGD-Kron of pytorch_optimizer (Li 2015, Walters 2024), convolutions as matrices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.backends import opt_einsum
from torch.optim import Optimizer

from thor_bench.errors import BenchError
from thor_bench.optimizers.flattened import flattened
from thor_bench.optimizers.peer import Peer, Training, imported
from thor_bench.optimizers.settings import Count, Fraction, NonNegative, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class KronSettings(Settings):
    """Momentum, and the longest side whose factor is a triangle."""

    lr: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    momentum: Fraction = 0.9
    largest: Count = 8192


def lacks() -> str | None:
    """Says what is missing; without a path its products need a layer's size squared."""
    return None if opt_einsum.is_available() else "needs opt_einsum; pip install opt_einsum"


def build(training: Training, settings: KronSettings) -> Sequence[Optimizer]:
    """Builds it for all parameters.

    Raises:
        BenchError: Products would find no path.
    """
    if lacking := lacks():
        raise BenchError(f"--optimizer kron {lacking}, or name another optimizer")

    class Resumable(flattened(imported("pytorch_optimizer.Kron"))):  # type: ignore[misc] # known at run time only
        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            """Loads, with the names of products as they were: torch takes text apart."""
            super().load_state_dict(state_dict)
            groups = zip(self.param_groups, state_dict["param_groups"], strict=True)
            for mine, saved in groups:
                for parameter, number in zip(mine["params"], saved["params"], strict=True):
                    if number in state_dict["state"]:
                        told = state_dict["state"][number]["expressions"]
                        self.state[parameter]["expressions"] = told

    optimizer: Optimizer = Resumable(
        training.model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        max_size_triangular=settings.largest,
        balance_prob=0.0,  # draws from NumPy, which no seed of ours reaches; steps do not need it
    )
    return [optimizer]


PEERS = (
    Peer(
        "kron",
        "PSGD-Kron (pytorch-optimizer)",
        KronSettings(),
        build,
        own="momentum",
        lacks=lacks,
        untuned="lr=3e-4",  # evanatyourservice/kron_torch, a third of Adam's
    ),
)

"""Who is compared on equations and fits, each with as many settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_optimizer import SOAP
from torch import Tensor, nn

from thor_bench.optimizers.peer import Training
from thor_bench.optimizers.peers import muon
from thor_bench.optimizers.peers.muon import MuonSettings
from torch_thor import THOR, GaussNewton, NormControl

Step = Callable[[Callable[[], tuple[Tensor, ...]], float], None]  # closure, share of time left
Start = Callable[[nn.Module], Step]


@dataclass(frozen=True)
class Setting:
    """An optimizer with one of its settings.

    Attributes:
        name: The optimizer.
        said: The setting, in words.
        start: Begins a run of a network.
        size: Which of a problem's numbers of points a step takes.
        draws: Whether each step has points of its own.
        dtype: Of everything.
    """

    name: str
    said: str
    start: Start
    size: int
    draws: bool
    dtype: torch.dtype
    decays: bool = False  # whether its rate falls over the time that it has


def loss_of(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack([0.5 * term.square().sum() / len(term) for term in terms]).sum()


def first_order(
    build: Callable[[nn.Module, float], list[torch.optim.Optimizer]], lr: float
) -> Start:
    """Steps of one or more optimizers, whose rate falls linearly to a hundredth."""

    def start(net: nn.Module) -> Step:
        optimizers = build(net, lr)
        groups = [g for one in optimizers for g in one.param_groups]
        rates = [g["lr"] for g in groups]

        def step(closure: Callable[[], tuple[Tensor, ...]], left: float) -> None:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * max(left, 0.01)
            net.zero_grad()
            loss_of(closure()).backward()
            for one in optimizers:
                one.step()

        return step

    return start


def lbfgs(net: nn.Module) -> Step:
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=10, history_size=50, line_search_fn="strong_wolfe"
    )

    def step(closure: Callable[[], tuple[Tensor, ...]], _left: float) -> None:
        def loss() -> Tensor:
            optimizer.zero_grad()
            value = loss_of(closure())
            value.backward()
            return value

        optimizer.step(loss)

    return step


def gauss_newton(**options: Any) -> Start:
    def start(net: nn.Module) -> Step:
        optimizer = GaussNewton(net, **options)
        return lambda closure, _left: optimizer.step(closure) and None

    return start


def _adam(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(net.parameters(), lr=lr)]


def _soap(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    return [SOAP(net.parameters(), lr=lr, weight_decay=0.0, precondition_frequency=10)]


def _muon(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for p in net.parameters() if p.dim() == 2 and min(p.shape) > 3]
    rest = [p for p in net.parameters() if all(p is not m for m in matrices)]
    kind: Any = torch.optim.Muon
    return [kind(matrices, lr=lr, weight_decay=0.0), torch.optim.Adam(rest, lr=0.1 * lr)]


def _normuon(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    chosen = MuonSettings(
        lr=lr, momentum=0.95, weight_decay=0.0, row_decay=0.95,
        rest="adamw", rest_lr=0.1 * lr, rest_weight_decay=0.0,
    )  # fmt: skip
    return list(muon.build(Training(net, 1), chosen))


def _thor(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    return [THOR(net, lr=lr, weight_decay=0.0)]


def _thor_inverse(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    return [
        THOR(
            net,
            lr=lr,
            norm_control=NormControl("rms", row_decay=0.95),
            power=1.0,
            split=None,
            damping=0.1,
            interval=20,
            weight_decay=0.0,
        )
    ]


THOR_INVERSE = first_order(_thor_inverse, 0.02)


def settings(*, image: bool) -> Iterator[Setting]:
    """As many of each optimizer."""
    single, double = torch.float32, torch.float64
    rates: dict[Any, tuple[str, tuple[float, ...]]] = {
        _adam: ("Adam", (1e-3, 3e-3, 1e-2)),
        _soap: ("SOAP", (1e-3, 3e-3, 1e-2)),
        _muon: ("Muon", (3e-3, 1e-2, 3e-2)),
    }
    if image:
        rates[_normuon] = ("NorMuon", (3e-3, 1e-2, 3e-2))
        rates[_thor] = ("THOR, default", (0.015, 0.03, 0.06))
        rates[_thor_inverse] = ("THOR, power 1", (0.01, 0.02, 0.04))
    for build, (name, choices) in rates.items():
        for lr in choices:
            yield Setting(
                name,
                f"lr={lr:g}",
                first_order(build, lr),
                0 if image else 1,
                draws=True,
                dtype=single,
                decays=True,
            )
    for size in range(3):
        yield Setting(
            "L-BFGS",
            f"points {size + 1} of 3",
            lbfgs,
            size,
            draws=False,
            dtype=single if image else double,
        )
    if not image:
        for size, dtype in ((0, single), (1, single), (1, double)):
            said = f"points {size + 1} of 3, {str(dtype)[6:]}"
            yield Setting("GaussNewton", said, gauss_newton(), size, draws=True, dtype=dtype)

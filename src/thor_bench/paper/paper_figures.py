"""The paper's figures that a comparison lacks: factors, schedules, the effect of α and p."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.optimizers.learning_rates import factor
from thor_bench.records.config import DataSource
from thor_bench.records.reading import Run
from thor_bench.report.style import Theme, legend, new_figure
from thor_bench.tasks import Metric
from thor_bench.tasks.digits import load
from torch_thor import GrowingInterval

_WIDTH, _BLOCK, _STEPS, _POINTS = 20, 10, 100, 400


def small_factors() -> tuple[Tensor, Tensor]:
    """Returns A and G (20×20) of a middle layer of an MLP 64-20-20-10, trained for 100 steps."""
    torch.manual_seed(0)
    train = load(DataSource()).train
    middle = nn.Linear(_WIDTH, _WIDTH, bias=False)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, _WIDTH), nn.Tanh(), middle, nn.Tanh(), nn.Linear(_WIDTH, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    seen: dict[str, Tensor] = {}
    middle.register_forward_hook(lambda _, inputs, output: _watch(seen, inputs[0], output))
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(train.inputs), train.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    samples = len(train.targets)
    inputs, gradients = seen["inputs"], seen["gradients"] * samples
    return inputs.T @ inputs / samples, gradients.T @ gradients / samples


def _watch(seen: dict[str, Tensor], inputs: Tensor, output: Tensor) -> None:
    seen["inputs"] = inputs.detach()

    def keep(gradient: Tensor) -> None:
        seen["gradients"] = gradient.detach()

    output.register_hook(keep)  # type: ignore[no-untyped-call]


def draw_factors(theme: Theme) -> Figure:
    """Draws |A ⊗ G| of a layer, the same of split factors, and their difference (Figure 4)."""
    a, g = small_factors()
    mask = torch.kron(torch.eye(_WIDTH // _BLOCK), torch.ones(_BLOCK, _BLOCK))
    whole, cut = torch.kron(a, g), torch.kron(a * mask, g * mask)
    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    top = float(whole.abs().quantile(0.995))
    for number, (title, block) in enumerate(
        (("KFAC", whole), (f"split {_BLOCK}", cut), ("difference", whole - cut)), start=1
    ):
        axes = figure.add_subplot(1, 3, number)
        axes.imshow(block.abs().numpy(), cmap="magma", vmax=top)
        axes.set(title=title, xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    kept = float(cut.norm() / whole.norm())
    figure.text(
        0.5, -0.04, f"400×400, norm kept by the split: {100 * kept:.0f} %", ha="center",
        color=theme.ink, fontsize=8.5,
    )  # fmt: skip
    return figure


def draw_schedules(
    _theme: Theme, *, settings: Mapping[str, Any], epochs: float, steps: int, title: str
) -> Figure:
    """Draws learning rate, damping and interval over the epochs (Figures 6 and 8).

    Args:
        settings: THOR's settings by their label.
        epochs: Horizon.
        steps: Steps in one epoch.
        title: Heading.
    """
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    panels = [figure.add_subplot(1, 3, number) for number in (1, 2, 3)]
    at = np.linspace(0, epochs * steps, _POINTS, endpoint=False).astype(int)
    for label, one in settings.items():
        rate = factor(one, steps_per_epoch=steps, epochs=epochs)
        interval = GrowingInterval(one.interval, one.growth)
        panels[0].plot(at / steps, [one.lr * rate(int(step)) for step in at], label=label)
        damping = one.damping * one.damping_rate ** (at / steps / 10)
        panels[1].plot(at / steps, damping, label=label)
        panels[2].plot(at / steps, _intervals(interval, at.tolist()), label=label)
    for axes, name in zip(panels, ("learning rate α", "damping λ", "interval, steps"), strict=True):
        axes.set(xlabel="epoch", title=name)
        axes.set_ylim(bottom=0)
        axes.title.set_fontsize(9.5)
    legend(figure)
    return figure


def _intervals(interval: GrowingInterval, at: Sequence[int]) -> list[float]:
    """Returns the interval that holds at each step: constant from refresh to refresh."""
    values: list[float] = []
    begun = 0
    for step in at:
        while step >= begun + round(interval(begun)):
            begun += round(interval(begun))
        values.append(round(interval(begun)))
    return values


def draw_effects(_theme: Theme, *, runs: Mapping[str, Run], metric: Metric) -> Figure:
    """Draws the test metric over the epochs for each α_target and p (Figure 9)."""
    figure, axes = new_figure("Effect of α_target and p")
    for label, run in runs.items():
        points = [(record.epoch, record.test_metric) for record in run.evaluations]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o", markersize=3)
    axes.set(xlabel="epoch", ylabel=f"test {metric.name}, {metric.unit}".rstrip(", "))
    legend(figure)
    return figure

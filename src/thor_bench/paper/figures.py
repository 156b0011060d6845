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
from thor_bench.records.task_card import Measure
from thor_bench.report.style import Theme, legend, new_figure
from thor_bench.tasks.digits import load
from torch_thor import GrowingInterval

_WIDTH, _BLOCK, _STEPS, _POINTS = 20, 10, 100, 400


def small_factors() -> tuple[Tensor, Tensor]:
    """Returns A and G (20×20) of a middle layer of an MLP 64-20-20-10, trained for 100 steps."""
    torch.manual_seed(0)
    train = load(DataSource()).train
    middle = nn.Linear(_WIDTH, _WIDTH, bias=False)
    model = nn.ModuleList([nn.Linear(64, _WIDTH), middle, nn.Linear(_WIDTH, 10)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        inputs = model[0](train.inputs.flatten(1)).tanh()
        outputs = middle(inputs)
        loss = functional.cross_entropy(model[2](outputs.tanh()), train.targets)
        (gradients,) = torch.autograd.grad(loss, outputs, retain_graph=True)
        loss.backward()
        optimizer.step()
    samples = len(train.targets)
    inputs, gradients = inputs.detach(), gradients * samples
    return inputs.T @ inputs / samples, gradients.T @ gradients / samples


def draw_factors(theme: Theme) -> Figure:
    """Draws |A ⊗ G| of a layer, the same of split factors, and their difference (Figure 4)."""
    a, g = small_factors()
    mask = torch.kron(torch.eye(_WIDTH // _BLOCK), torch.ones(_BLOCK, _BLOCK))
    whole, cut = torch.kron(a, g), torch.kron(a * mask, g * mask)
    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    top = float(whole.abs().quantile(0.995))
    blocks = {"KFAC": whole, f"split {_BLOCK}": cut, "difference": whole - cut}
    for axes, (title, block) in zip(figure.subplots(1, 3), blocks.items(), strict=True):
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
    """Draws learning rate, damping and interval over the epochs, each of some steps (6 and 8)."""
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    rates, dampings, intervals = panels = figure.subplots(1, 3)
    at = np.linspace(0, epochs * steps, _POINTS, endpoint=False).astype(int)
    for label, one in settings.items():
        rate = factor(one, steps_per_epoch=steps, epochs=epochs)
        interval = GrowingInterval(one.interval, one.growth)
        rates.plot(at / steps, [one.lr * rate(int(step)) for step in at], label=label)
        dampings.plot(at / steps, one.damping * one.damping_rate ** (at / steps / 10), label=label)
        intervals.plot(at / steps, _intervals(interval, at.tolist()), label=label)
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


def draw_effects(_theme: Theme, *, runs: Mapping[str, Run], metric: Measure) -> Figure:
    """Draws the test metric over the epochs for each α_target and p (Figure 9)."""
    figure, axes = new_figure("Effect of α_target and p")
    for label, run in runs.items():
        points = [(record.epoch, record.test_metric) for record in run.evaluations]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o", markersize=3)
    axes.set(xlabel="epoch", ylabel=f"test {metric.name}, {metric.unit}".rstrip(", "))
    legend(figure)
    return figure

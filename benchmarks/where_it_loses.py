"""Two kinds of task on which ``THOR(model)`` loses, and what wins there: a game, and few images.

    python benchmarks/where_it_loses.py gan --steps 300 --seeds 0,1
    python benchmarks/where_it_loses.py finetune --steps 100 --seeds 0,1,2

A DCGAN of Fashion-MNIST is measured by Fréchet's distance of a small classifier's features, ÷ the
variance of real images'. Fine-tuning begins at a convnet that tells five classes apart, with 200
images of the five others. Rates are constant, as in loops as people write them.
"""

from __future__ import annotations

import argparse
import copy
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits as score
from torch.optim import SGD, Adam, AdamW, Optimizer

from thor_bench.records.config import DataSource
from thor_bench.report.tables import TextTable
from thor_bench.tasks import fashion
from torch_thor import THOR, Base

if TYPE_CHECKING:
    from collections.abc import Callable

    Build = Callable[[nn.Module], Optimizer]

_NOISE, _WIDTH, _BATCH = 32, 32, 64
_KNOWN, _NEW = (0, 1, 3, 5, 8), (2, 4, 6, 7, 9)  # classes
_IMAGES = 200


class Images(NamedTuple):
    """Pixels ``[N, 1, 28, 28]`` and classes ``[N]``."""

    pixels: Tensor
    classes: Tensor

    def of(self, classes: tuple[int, ...]) -> Images:
        chosen = torch.tensor(classes)
        inside = (self.classes[:, None] == chosen).any(1)
        return Images(self.pixels[inside], torch.searchsorted(chosen, self.classes[inside]))


def read(scaled: Callable[[Tensor], Tensor]) -> tuple[Images, Images]:
    """Training and test images, their pixels as floats ``scaled``."""
    train, test = (
        Images(scaled(pixels.unsqueeze(1).float()), classes)
        for pixels, classes in fashion.read(DataSource())
    )
    return train, test


@cache
def of_game() -> tuple[Images, Images]:
    """Pixels in -1 … 1, as tanh makes them."""
    return read(lambda pixels: pixels / 127.5 - 1)


@cache
def of_start() -> tuple[Images, Images]:
    """Pixels of mean 0 and variance 1."""
    return read(lambda pixels: (pixels / 255 - 0.286) / 0.353)


def in_a_game(betas: tuple[float, float], momentum: float) -> Build:
    """THOR with short steps; what is no matrix takes those of the usual Adam, 2e-4."""
    rest = Base("adamw", lr_scale=0.02, betas=betas, weight_decay=0.0, outputs=True, biases=True)
    return partial(THOR, lr=0.01, momentum=momentum, base=rest)


GAMES: dict[str, Build] = {
    "Adam, 2e-4, β₁ = 0.5": lambda net: Adam(net.parameters(), 2e-4, (0.5, 0.999)),
    "`THOR(net)`": THOR,
    "`THOR(net, lr=0.01)`": partial(THOR, lr=0.01),
    "`lr=0.01`, the rest at 2e-4": in_a_game((0.9, 0.95), 0.9),
    "the same, `momentum=0.5`": in_a_game((0.9, 0.95), 0.5),
    "the same, `betas=(0.5, 0.999)`": in_a_game((0.5, 0.999), 0.5),
}
STARTS: dict[str, Build] = {
    "SGD, 0.01, momentum 0.9": lambda net: SGD(net.parameters(), 0.01, 0.9),
    "AdamW, 1e-3": lambda net: AdamW(net.parameters(), 1e-3),
    "`THOR(model)`, at 0.03": THOR,
    "`THOR(model, lr=0.01)`": partial(THOR, lr=0.01),
    "`THOR(model, lr=0.003)`": partial(THOR, lr=0.003),
    '`THOR(model, lr=0.01, norm_control="graft")`': partial(THOR, lr=0.01, norm_control="graft"),
}


def generator() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(_NOISE, 2 * _WIDTH * 49, bias=False), nn.Unflatten(1, (2 * _WIDTH, 7, 7)),
        nn.BatchNorm2d(2 * _WIDTH), nn.ReLU(),
        nn.ConvTranspose2d(2 * _WIDTH, _WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(_WIDTH),
        nn.ReLU(), nn.ConvTranspose2d(_WIDTH, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def critic() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, _WIDTH, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(_WIDTH, 2 * _WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * _WIDTH),
        nn.LeakyReLU(0.2), nn.Conv2d(2 * _WIDTH, 1, 7), nn.Flatten(),
    )  # fmt: skip


@cache
def features() -> nn.Module:
    """The layers below the head of a classifier that was trained for 600 steps."""
    images, _ = of_game()
    torch.manual_seed(0)
    below = nn.Sequential(
        nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(48 * 49, 64), nn.ReLU(),
    )  # fmt: skip
    model = nn.Sequential(below, nn.Linear(64, 10))
    optimizer = AdamW(model.parameters(), 3e-3)
    for _ in range(600):
        descend(model, optimizer, images, 128)
    return below.eval()


@torch.no_grad()
def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of features."""
    found = features()(images).double()
    return found.mean(0), torch.cov(found.T)


def distance(fake: Tensor) -> float:
    """Fréchet's, from 5,000 test images, ÷ the trace of their covariance."""
    (mean, spread), (other, spreads) = moments(of_game()[1].pixels[:5000]), moments(fake)
    roots = torch.linalg.eigvals(spreads @ spread).real.clamp_min(0).sqrt().sum()
    apart = (mean - other).square().sum() + spread.trace() + spreads.trace() - 2 * roots
    return float(apart / spread.trace())


def play(build: Build, steps: int, seed: int) -> float:
    """Trains a DCGAN and returns the distance of its images from real ones."""
    torch.manual_seed(seed)
    makes, tells = generator(), critic()
    for layer in [*makes, *tells]:
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
    of_maker, of_critic = build(makes), build(tells)
    images, stream = of_game()[0].pixels, torch.Generator().manual_seed(seed)
    noise = torch.randn(2000, _NOISE, generator=torch.Generator().manual_seed(9))
    for _ in range(steps):
        real = images[torch.randint(len(images), (_BATCH,), generator=stream)]
        fake = makes(torch.randn(_BATCH, _NOISE, generator=stream))
        says, told = tells(real), tells(fake.detach())
        of_critic.zero_grad()
        (score(says, torch.ones_like(says)) + score(told, torch.zeros_like(told))).backward()
        of_critic.step()
        of_maker.zero_grad()
        told = tells(fake)
        score(told, torch.ones_like(told)).backward()
        of_maker.step()
    with torch.no_grad():
        return distance(makes(noise))


def convnet() -> nn.Sequential:
    widths = (1, 16, 32, 32, 64, 64)
    blocks = [
        nn.Sequential(
            nn.Conv2d(before, after, 3, 2 - number % 2, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )
        for number, (before, after) in enumerate(pairwise(widths))
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))


def descend(model: nn.Module, optimizer: Optimizer, images: Images, batch: int) -> None:
    picks = torch.randint(len(images.pixels), (batch,))
    loss = functional.cross_entropy(model(images.pixels[picks]), images.classes[picks])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@cache
def trained() -> nn.Sequential:
    """A convnet that knows five classes."""
    images = of_start()[0].of(_KNOWN)
    torch.manual_seed(0)
    model = convnet()
    optimizer = AdamW(model.parameters(), 3e-3)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 400)
        descend(model, optimizer, images, 128)
    return model


def finetune(build: Build, steps: int, seed: int) -> float:
    """Trains a new head and all layers; returns the accuracy on the new classes, %."""
    start = trained()
    train, test = (images.of(_NEW) for images in of_start())
    torch.manual_seed(seed)
    model = copy.deepcopy(start)
    model[-1] = nn.Linear(64, 5)
    few = torch.randperm(len(train.pixels))[:_IMAGES]
    images, optimizer = Images(train.pixels[few], train.classes[few]), build(model)
    for _ in range(steps):
        descend(model, optimizer, images, 32)
    model.eval()
    with torch.no_grad():
        right = model(test.pixels[:2500]).argmax(1) == test.classes[:2500]
    return 100 * right.float().mean().item()


def main() -> None:
    """Parses the command line, measures, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["gan", "finetune"])
    parser.add_argument("--steps", type=int, help="gan: 300, finetune: 100")
    parser.add_argument("--seeds", default="0")
    said = parser.parse_args()
    torch.set_flush_denormal(True)
    seeds = [int(seed) for seed in said.seeds.split(",")]
    if said.kind == "gan":
        steps, run, builds, column, digits = said.steps or 300, play, GAMES, "distance", 3
    else:
        steps, run, builds, column, digits = said.steps or 100, finetune, STARTS, "accuracy, %", 1
    rows = (
        (name, *(f"{run(build, steps, seed):.{digits}f}" for seed in seeds))
        for name, build in builds.items()
    )
    headings = ("optimizer", *(f"{column}, seed {seed}" for seed in seeds))
    Console().print(TextTable(headings, tuple(rows)).to_markdown(), soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()

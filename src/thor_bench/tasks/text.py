"""A small GPT on the text of Python's own help topics, character by character."""

from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional

from thor_bench.records.config import DataSource
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.gpt import GPT
from thor_bench.tasks.pairs import Pairs
from thor_bench.tasks.task import Metric, Task

CONTEXT = 128
TRAIN_SHARE = 0.9


def read_text() -> str:
    """Returns the help topics that ship with this Python, one after the other."""
    return "\n".join(topics.values())


def alphabet(text: str) -> str:
    """Returns the characters of a text in the order of their codes."""
    return "".join(sorted(set(text)))


def load(_source: DataSource) -> TrainTest[TensorSplit]:
    """Cuts the text into windows; the targets are the inputs one character later.

    The first 90 % of the windows are for training, the last 10 % for the test. They differ with
    the version of Python, so results compare within one version only.
    """
    text = read_text()
    numbers = {character: number for number, character in enumerate(alphabet(text))}
    codes = torch.tensor([numbers[character] for character in text])
    count = (len(codes) - 1) // CONTEXT
    inputs = codes[: count * CONTEXT].view(count, CONTEXT)
    targets = codes[1 : count * CONTEXT + 1].view(count, CONTEXT)
    border = int(TRAIN_SHARE * count)
    parts = (slice(None, border), slice(border, None))
    return TrainTest(*(TensorSplit(inputs[part], targets[part]) for part in parts))


def build_model() -> nn.Module:
    """Returns the GPT: 4 blocks, width 128, 4 heads (0.83 million parameters)."""
    return GPT(symbols=len(alphabet(read_text())), context=CONTEXT, width=128, blocks=4, heads=4)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over samples and positions, from logits ``[N, T, symbols]``."""
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def loss_per_window(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy of each window: ``[N]``."""
    losses = functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
    return losses.mean(dim=1)


CHARACTERS = Pairs(cross_entropy, loss_per_window)

CROSS_ENTROPY = Metric(
    name="cross-entropy",
    unit="nats",
    higher_is_better=False,
    score=CHARACTERS.judge,
    low=0.0,
    high=10.0,
    digits=4,
)

TEXT_GPT = Task(
    name="text-gpt",
    description="characters of Python's help topics, GPT of 4 blocks of width 128",
    input_summary="465 thousand characters in windows of 128, shipped with Python",
    load=load,
    model=build_model,
    loss=CHARACTERS.loss,
    loss_reduction="positions_mean",
    metric=CROSS_ENTROPY,
    target=1.43,
    epochs=6,
    batch_size=32,
)

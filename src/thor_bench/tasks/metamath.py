"""A small GPT on Metamath's set.mm: proofs as text, the same with every Python."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from thor_bench.errors import BenchError, readable
from thor_bench.records.config import DataSource
from thor_bench.tasks import text
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.files import FileSet
from thor_bench.tasks.gpt import GPT
from thor_bench.tasks.task import Task

FILES = FileSet(
    workload="metamath",
    names=("set.mm",),
    folder="metamath",
    system=Path("/usr/share/metamath/databases"),
    remedy="apt install metamath-databases, or name a folder that has it with --data-dir DIR",
)

SYMBOLS = 128  # Metamath is written in ASCII
_TRAINED, _JUDGED = 9_600, 500  # windows


def load(source: DataSource) -> TrainTest[TensorSplit]:
    """Cuts the file into windows and takes some, evenly over its length.

    Training takes them from the first 90 %, the test from the last 10 %.

    Raises:
        BenchError: The file is missing, or no text of Metamath.
    """
    (path,) = FILES.find(source)
    with readable(path, "database of Metamath", "fetch it again"):
        codes = torch.from_numpy(np.fromfile(path, np.uint8))
        if not len(codes) or codes.max() >= SYMBOLS:
            raise ValueError("it is empty or has other characters than ASCII's")
    border = int(text.TRAIN_SHARE * len(codes))
    parts = (_windows(codes[:border], _TRAINED), _windows(codes[border:], _JUDGED))
    if not all(map(len, parts)):
        raise BenchError(f"{path} is shorter than 20 windows of {text.CONTEXT}; fetch it again")
    return TrainTest(*parts)


def _windows(codes: Tensor, most: int) -> TensorSplit:
    count = max(len(codes) - 1, 0) // text.CONTEXT
    taken = torch.linspace(0, count - 1, min(most, count)).long()
    places = taken[:, None] * text.CONTEXT + torch.arange(text.CONTEXT)
    return TensorSplit(codes[places].long(), codes[places + 1].long())


def build_model() -> nn.Module:
    """Returns the GPT of ``text-gpt``: 4 blocks, width 128, 4 heads."""
    return GPT(symbols=SYMBOLS, context=text.CONTEXT, width=128, blocks=4, heads=4)


METAMATH = Task(
    name="metamath",
    description="characters of Metamath's set.mm, GPT of 4 blocks of width 128",
    input_summary="9,600 + 500 windows of 128 characters of a text of 41 MB",
    load=load,
    model=build_model,
    loss=text.CHARACTERS.loss,
    loss_reduction="positions_mean",
    metric=text.CROSS_ENTROPY,
    target=2.48,
    epochs=1,
    batch_size=32,
)

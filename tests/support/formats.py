"""Tiny data sets in the formats that the real ones have on disk."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


def write_cifar10(directory: Path, *, per_batch: int = 16) -> None:
    """Writes the six pickles of cifar-10-python.tar.gz, by Python 2's protocol."""
    folder = directory / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        labels = [int(label) for label in random.integers(0, 10, per_batch)]
        content = {
            "batch_label": name,
            "labels": labels,
            "data": random.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            "filenames": [f"{n}.png" for n in range(per_batch)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def write_imagenet(directory: Path, *, per_class: int = 4, classes: int = 2) -> None:
    """Writes a tree of small JPEG and PNG files, one folder per class, one image in grey."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(classes):
            folder = directory / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(per_class):
                pixels = random.integers(0, 256, (40, 56, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                if number == 0:
                    image.convert("L").save(folder / "grey.png")
                else:
                    image.save(folder / f"{number}.JPEG")

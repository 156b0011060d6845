"""Tiny data sets in the formats that the real ones have on disk."""

from __future__ import annotations

import gzip
import pickle
import struct
from typing import TYPE_CHECKING

import numpy as np
import torch
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


CODES = {"images": (2051, 3), "labels": (2049, 1)}  # magic numbers of IDX, and dimensions


def write_idx(path: Path, values: torch.Tensor) -> None:
    """Writes bytes in the IDX format: magic number, sizes (big-endian), values; maybe gzipped."""
    magic = CODES["images" if values.dim() == 3 else "labels"][0]
    header = struct.pack(f">{1 + values.dim()}i", magic, *values.shape)
    content = header + bytes(values.to(torch.uint8).flatten().tolist())
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion(directory: Path, *, ending: str = ".gz", train: int = 6, test: int = 4) -> None:
    for stem, count in (("train", train), ("t10k", test)):
        images = torch.arange(count * 28 * 28).reshape(count, 28, 28) % 256
        write_idx(directory / f"{stem}-images-idx3-ubyte{ending}", images)
        write_idx(directory / f"{stem}-labels-idx1-ubyte{ending}", torch.arange(count) % 10)

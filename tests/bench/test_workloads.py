"""The built-in workloads: their data as found on disk, their models, their metric."""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING

import pytest
import torch

from torch_thor.bench.config import DataSource
from torch_thor.bench.errors import BenchError
from torch_thor.bench.workloads import ACCURACY, WORKLOADS, find_workload
from torch_thor.bench.workloads import fashion as fashion_module

if TYPE_CHECKING:
    from pathlib import Path

    from torch_thor.bench.workloads import Workload

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


@pytest.mark.parametrize("ending", [".gz", ""])
def test_fashion_reads_the_files_that_packages_ship(tmp_path: Path, ending: str) -> None:
    write_fashion(tmp_path, ending=ending)
    data = fashion_module.load(DataSource(tmp_path))
    assert data.train.inputs.shape == (6, 1, 28, 28)
    assert data.test.targets.tolist() == [0, 1, 2, 3]
    pixels = data.train.inputs[0].flatten()[:256] * 0.3530 + 0.2860
    assert torch.allclose(pixels, torch.arange(256) / 255, atol=1e-6)


def test_fashion_looks_in_the_system_folder_without_data_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fashion(tmp_path)
    monkeypatch.setattr(fashion_module, "SYSTEM_DIRECTORY", tmp_path)
    assert len(fashion_module.load(DataSource()).train.targets) == 6


@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_an_incomplete_set_is_refused(tmp_path: Path, missing: str) -> None:
    write_fashion(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(BenchError, match="no complete set"):
        fashion_module.load(DataSource(tmp_path))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BenchError, match=r"train-images-idx3-ubyte\.gz is no readable IDX file"):
        fashion_module.load(DataSource(tmp_path))


def test_images_and_labels_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", torch.arange(5))
    with pytest.raises(BenchError, match="do not belong together"):
        fashion_module.load(DataSource(tmp_path))


def test_digits_are_divided_alike_every_time_and_by_class() -> None:
    digits = find_workload("digits")
    first, second = (digits.load(DataSource()) for _ in range(2))
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert (len(first.train.targets), len(first.test.targets)) == (1078, 719)
    shares = torch.bincount(first.test.targets) / torch.bincount(
        torch.cat([first.train.targets, first.test.targets])
    )
    assert torch.allclose(shares, torch.tensor(0.4), atol=0.01)
    assert first.train.inputs.min() == -1
    assert first.train.inputs.max() == 1


@pytest.mark.parametrize(("name", "shape"), [("digits", (2, 1, 8, 8)), ("fashion", (2, 1, 28, 28))])
def test_models_map_images_to_ten_classes(name: str, shape: tuple[int, ...]) -> None:
    model = find_workload(name).build_model()
    assert model(torch.randn(shape)).shape == (2, 10)


def test_every_workload_has_a_target_within_its_metric() -> None:
    for workload in WORKLOADS.values():
        assert workload.metric.low < workload.target < workload.metric.high


def test_accuracy_is_a_percentage() -> None:
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
    scores = ACCURACY.score(outputs, torch.tensor([0, 1, 1, 0]))
    assert scores.mean() == 75
    assert ACCURACY.reaches(75.0, 75.0)
    assert not ACCURACY.reaches(74.9, 75.0)
    assert (ACCURACY.format(75.0), ACCURACY.goal(91.5)) == ("75.00 %", "91.5 %")


def test_an_unknown_workload_is_refused(tiny: Workload) -> None:
    with pytest.raises(BenchError, match=r"allowed: .*digits, fashion, .*, tiny"):
        find_workload(tiny.name.upper())

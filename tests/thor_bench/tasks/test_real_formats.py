"""CIFAR-10 and ImageNet pipelines, on tiny data sets in the real formats."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from formats import write_cifar10, write_imagenet
from thor_bench.errors import BenchError
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.records.config import DataSource
from thor_bench.records.reading import read_run
from thor_bench.tasks import WORKLOADS, Task, find_task
from thor_bench.tasks import cifar10 as cifar10_module
from thor_bench.tasks.batches import Data
from thor_bench.tasks.models import small_resnet
from thor_bench.training.train import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRITERS: dict[str, Callable[[Path], None]] = {
    "cifar10-resnet18": write_cifar10,
    "imagenet-resnet50": write_imagenet,
}


def small_model() -> nn.Module:
    return small_resnet(channels_in=3, widths=(16, 32), blocks=1, classes=10)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "preset"), [("cifar10-resnet18", "paper"), ("imagenet-resnet50", "paper-256")]
)
def test_the_published_set_ups_train_end_to_end(
    name: str,
    preset: str,
    dtype: torch.dtype | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    WRITERS[name](tmp_path / "data")
    # Emulated where it has to be: that it works is what is tested.
    monkeypatch.setattr("thor_bench.training.precision.multiplies_bfloat16", lambda _device: True)
    # The pipeline is what is tested: a small network in the place of the large one.
    workload = replace(find_task(name), autocast=dtype, model=small_model)
    monkeypatch.setitem(WORKLOADS, name, workload)
    options = RunOptions(epochs=1, batch_size=4, preset=preset)
    config = plan_run(workload, "paper-thor", seed=0, options=options)
    source = DataSource(tmp_path / "data", workers=0)
    result = train(config, tmp_path / "run", source=source)
    run = read_run(tmp_path / "run")
    assert 0 <= result.final_metric <= 100
    assert run.steps
    assert run.epochs[0].wait_seconds > 0
    assert run.epochs[0].wait_seconds < run.epochs[0].epoch_seconds


def test_the_networks_are_the_published_ones() -> None:
    parameters = {
        name: sum(p.numel() for p in find_task(name).build().parameters()) for name in WRITERS
    }
    # He et al. 2016: ResNet-18 with a 3×3 stem and ten classes, and ResNet-50
    assert parameters == {"cifar10-resnet18": 11_173_962, "imagenet-resnet50": 25_557_032}
    resnet50 = find_task("imagenet-resnet50").build()
    last = [value for key, value in resnet50.named_parameters() if key.endswith("bn3.weight")]
    assert len(last) == 16
    assert all(not gamma.any() for gamma in last)


def test_cifar10_pixels_and_labels_come_back(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    data = cifar10_module.load(DataSource(tmp_path))
    assert data.train.inputs.shape == (80, 3, 32, 32)
    assert data.test.inputs.shape == (16, 3, 32, 32)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    content = pickle.loads(path.read_bytes())
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    pixels = (data.train.inputs[0] * std[:, None, None] + mean[:, None, None]) * 255
    assert pixels.round().flatten().tolist() == content["data"][0].tolist()
    assert data.train.targets[:16].tolist() == content["labels"]


def test_the_folder_itself_may_be_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    assert len(cifar10_module.load(DataSource(tmp_path / "cifar-10-batches-py")).test.targets) == 16


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "cifar10-resnet18",
            ("data_batch_1", "test_batch", "cifar-10-python.tar.gz", "--download"),
        ),
        ("imagenet-resnet50", ("train", "val", "ILSVRC2012", "--data-dir")),
    ],
)
def test_missing_files_are_named_with_the_remedy(
    name: str, told: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(BenchError) as caught:
        find_task(name).data(DataSource(tmp_path))
    message = str(caught.value)
    assert all(text in message for text in (*told, str(tmp_path)))
    assert "\n" not in message


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this pickle was run",))


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps({"data": [[1]]}), pickle.dumps(Evil())]
)
def test_a_broken_or_hostile_pickle_is_refused_and_not_run(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(BenchError, match="data_batch_3 is no readable CIFAR-10 batch"):
        cifar10_module.load(DataSource(tmp_path))
    assert capsys.readouterr().out == ""


@pytest.fixture
def imagenet(tmp_path: Path) -> Task:
    write_imagenet(tmp_path)
    return find_task("imagenet-resnet50")


def loader(workload: Task, directory: Path, workers: int, seed: int = 0) -> Data:
    splits = workload.data(DataSource(directory, workers=workers))
    return Data(splits, batch_size=2, seed=seed)


def test_batches_do_not_depend_on_workers_and_go_on_anywhere(
    imagenet: Task, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    alone = list(loader(imagenet, tmp_path, 0).batches(1))
    helped = list(loader(imagenet, tmp_path, 2).batches(1))
    late = list(loader(imagenet, tmp_path, 0).batches(1, first=3))
    other = list(loader(imagenet, tmp_path, 0, seed=1).batches(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert [x.shape for x, _ in alone] == [(2, 3, 224, 224)] * 4
    for here, there in zip(alone, helped, strict=True):
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])
    assert torch.equal(late[0][0], alone[3][0])
    assert not torch.equal(other[0][0], alone[0][0])


def test_the_test_images_come_whole_and_in_order(imagenet: Task, tmp_path: Path) -> None:
    targets = torch.cat([y for _, y in loader(imagenet, tmp_path, 0).test_batches()])
    assert targets.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line(workers: int, imagenet: Task, tmp_path: Path) -> None:
    broken = tmp_path / "val" / "n00000001" / "2.JPEG"
    broken.write_bytes(b"\xff\xd8 no image")
    with pytest.raises(BenchError) as caught:
        list(loader(imagenet, tmp_path, workers).test_batches())
    message = str(caught.value)
    assert message.startswith(f"{broken} is no readable image")
    assert "\n" not in message


def test_classes_that_differ_are_refused(imagenet: Task, tmp_path: Path) -> None:
    (tmp_path / "val" / "n00000001").rename(tmp_path / "val" / "n00000007")
    with pytest.raises(BenchError, match="2 classes in train, 2 in val"):
        imagenet.data(DataSource(tmp_path))


def test_a_batch_size_beyond_the_data_is_refused(imagenet: Task, tmp_path: Path) -> None:
    config = plan_run(imagenet, "sgd", seed=0, options=RunOptions(batch_size=9))
    with pytest.raises(BenchError, match=r"--batch-size: batch_size=9 must be in 1 … 8"):
        train(config, tmp_path / "run", source=DataSource(tmp_path))

"""The built-in workloads: their data as found on disk, their models, their metric."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from formats import write_fashion, write_idx
from thor_bench.errors import BenchError
from thor_bench.records.config import DataSource
from thor_bench.tasks import ACCURACY, WORKLOADS, find_task
from thor_bench.tasks import fashion as fashion_module
from thor_bench.tasks import text as text_module
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.gpt import GPT
from thor_bench.tasks.pairs import percent_right

if TYPE_CHECKING:
    from thor_bench.tasks import Task


def judged(task: Task, outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    """Loss and scores of outputs."""
    assert task.metric.score is not None
    return task.metric.score(lambda batch: batch, (outputs, targets))


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
    monkeypatch.setattr(fashion_module, "FILES", replace(fashion_module.FILES, system=tmp_path))
    assert len(fashion_module.load(DataSource()).train.targets) == 6


def test_a_download_goes_where_the_next_search_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(root: str, *, download: bool) -> None:
        assert download
        raw = Path(root) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        write_fashion(raw, ending="")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fetch)
    assert len(fashion_module.load(DataSource(tmp_path, download=True)).train) == 6
    assert len(fashion_module.load(DataSource(tmp_path)).test) == 4


@pytest.mark.parametrize(
    ("modules", "told"),
    [({"torchvision.datasets": None}, r"torch-thor\[vision\]"), ({}, "--download of FashionMNIST")],
)
def test_a_download_that_fails_says_what_to_do(
    modules: dict[str, None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(BenchError, match=told):
        fashion_module.load(DataSource(tmp_path, download=True))


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


def in_memory(name: str, source: DataSource) -> TrainTest[TensorSplit]:
    data = find_task(name).data(source)
    assert isinstance(data.train, TensorSplit)
    assert isinstance(data.test, TensorSplit)
    return TrainTest(data.train, data.test)


def test_digits_are_divided_alike_every_time_and_by_class() -> None:
    first, second = (in_memory("digits", DataSource()) for _ in range(2))
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert (len(first.train.targets), len(first.test.targets)) == (1078, 719)
    shares = torch.bincount(first.test.targets) / torch.bincount(
        torch.cat([first.train.targets, first.test.targets])
    )
    assert torch.allclose(shares, torch.tensor(0.4), atol=0.01)
    assert first.train.inputs.min() == -1
    assert first.train.inputs.max() == 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [("digits", (2, 1, 8, 8)), ("fashion", (2, 1, 28, 28)), ("tabular", (2, 64))],
)
def test_models_map_samples_to_ten_classes(name: str, shape: tuple[int, ...]) -> None:
    model = find_task(name).build()
    assert model(torch.randn(shape)).shape == (2, 10)


def test_the_autoencoder_is_asked_for_its_input(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    workload = find_task("fashion-autoencoder")
    data = in_memory(workload.name, DataSource(tmp_path))
    assert torch.equal(data.train.inputs, data.train.targets)
    assert torch.allclose(data.train.inputs[0, :256], torch.arange(256) / 255)
    assert (data.train.inputs.shape, data.test.inputs.shape) == ((6, 784), (4, 784))
    model = workload.build()
    assert model(data.test.inputs).shape == (4, 784)
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    assert widths == [1000, 500, 250, 30, 250, 500, 1000, 784]
    assert sum(isinstance(module, nn.Tanh) for module in model.modules()) == 6


def test_the_autoencoder_is_judged_by_the_error_of_whole_images() -> None:
    workload = find_task("fashion-autoencoder")
    logits = torch.logit(torch.tensor([[0.5, 0.25], [0.2, 0.9]]))
    pixels = torch.tensor([[1.0, 0.25], [0.0, 0.5]])
    loss, errors = judged(workload, logits, pixels)
    assert errors.tolist() == pytest.approx([0.25, 0.04 + 0.16])
    by_hand = -math.log(0.5) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    by_hand += -math.log(0.8) - 0.5 * math.log(0.9) - 0.5 * math.log(0.1)
    assert loss.item() == pytest.approx(by_hand / 2)
    assert workload.metric.reaches(8.9, 9.0)
    assert not workload.metric.reaches(9.1, 9.0)


def test_text_is_asked_for_the_next_character_and_kept_apart_from_its_test() -> None:
    data = text_module.load(DataSource())
    letters = text_module.alphabet(text_module.read_text())

    def spelled(codes: torch.Tensor) -> str:
        return "".join(letters[code] for code in codes.flatten().tolist())

    whole = text_module.read_text()
    read = spelled(data.train.inputs)
    assert whole.startswith(read)
    assert whole[1:].startswith(spelled(data.train.targets))
    assert whole[len(read) :].startswith(spelled(data.test.inputs))
    assert 0.88 < len(data.train.inputs) / (len(data.train.inputs) + len(data.test.inputs)) < 0.92


def test_the_gpt_sees_nothing_that_comes_later() -> None:
    torch.manual_seed(0)
    model = GPT(symbols=11, context=8, width=16, blocks=2, heads=2)
    symbols = torch.randint(11, (3, 8))
    changed = symbols.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(symbols), model(changed)
    assert before.shape == (3, 8, 11)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-6)


def test_text_is_judged_by_its_mean_over_positions() -> None:
    workload = find_task("text-gpt")
    outputs, targets = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    chances = torch.softmax(outputs, dim=-1)
    by_hand = [sum(-math.log(chances[n, t, targets[n, t]]) for t in range(5)) / 5 for n in range(3)]
    loss, scores = judged(workload, outputs, targets)
    assert scores.tolist() == pytest.approx(by_hand)
    assert loss.item() == pytest.approx(sum(by_hand) / 3)
    assert workload.metric.format(1.43) == "1.4300 nats"


def test_columns_of_the_table_are_standardized_by_what_may_be_seen() -> None:
    data = in_memory("tabular", DataSource())
    spread = data.train.inputs.std(dim=0)
    varies = spread > 0
    assert torch.allclose(spread[varies], torch.ones(int(varies.sum())), atol=1e-5)
    assert torch.allclose(data.train.inputs.mean(dim=0), torch.zeros(64), atol=1e-5)
    assert data.test.inputs.isfinite().all()
    assert data.train.inputs.shape == (1078, 64)


def test_every_workload_has_a_target_within_its_metric() -> None:
    for workload in WORKLOADS.values():
        low, high = workload.metric.range
        assert workload.target is not None
        assert low < workload.target < high


def test_accuracy_is_a_percentage() -> None:
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]])
    scores = percent_right(outputs, torch.tensor([0, 1, 1, 0]))
    assert scores.mean() == 75
    assert ACCURACY.reaches(75.0, 75.0)
    assert not ACCURACY.reaches(74.9, 75.0)
    assert (ACCURACY.format(75.0), ACCURACY.goal(91.5)) == ("75.00 %", "91.5 %")


def test_an_unknown_workload_is_refused(tiny: Task) -> None:
    with pytest.raises(BenchError, match=r"allowed: .*digits, fashion, .*, tiny"):
        find_task(tiny.name.upper())

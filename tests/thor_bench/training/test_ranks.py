"""Training under torchrun, through real processes: shares, records, stops, faults, restarts."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import on_ranks
from formats import write_cifar10, write_imagenet
from thor_bench.cli.commands import app
from thor_bench.errors import BenchError, RankError
from thor_bench.records.reading import read_run
from thor_bench.records.records import RunFinished
from thor_bench.tasks import WORKLOADS
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.ranks import Ranks, TorchrunRanks

if TYPE_CHECKING:
    from thor_bench.records.reading import Run

SCRIPT = Path(on_ranks.__file__)


def torchrun(*words: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command on two ranks and returns what they told."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--max-restarts", str(restarts), *words]
    here = [str(SCRIPT.parents[1]), *sys.path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(here)}
    return subprocess.run(  # noqa: S603
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two ranks have trained everything that ``on_ranks.py`` knows."""
    folder = tmp_path_factory.mktemp("ranks")
    write_cifar10(folder / "data" / "cifar10-resnet18")
    write_imagenet(folder / "data" / "imagenet-resnet50")
    done = torchrun(str(SCRIPT), "whole", str(folder), restarts=1)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def workloads_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes back what ``on_ranks`` registers."""
    for name, _ in on_ranks.PUBLISHED:
        monkeypatch.setitem(WORKLOADS, name, WORKLOADS[name])


def losses(run: Run) -> list[float]:
    train = [record.loss for record in run.steps]
    return train + [record.test_loss or math.nan for record in run.evaluations]


def trajectory(run: Run) -> list[object]:
    same_clock = [replace(record, seconds=0.0) for record in (*run.steps, *run.evaluations)]
    return [*same_clock, *run.decisions]


@pytest.mark.usefixtures("workloads_kept")
def test_two_ranks_train_as_one_process_does(folder: Path, tmp_path: Path) -> None:
    on_ranks.train_published(folder / "data", tmp_path, Ranks())
    for name, _ in on_ranks.PUBLISHED:
        one, two = (read_run(where / f"{name}-fp32") for where in (tmp_path, folder / "two"))
        assert len(two.steps) == {"cifar10-resnet18": 20, "imagenet-resnet50": 2}[name]
        assert (one.started.ranks, two.started.ranks) == (1, 2)
        assert losses(two) == pytest.approx(losses(one), rel=1e-4)
        # An image on the border between two classes may fall either way: one of eight or more.
        image = 100 / 8
        assert abs(two.evaluations[0].test_metric - one.evaluations[0].test_metric) <= image


def test_a_task_file_trains_on_two_ranks_as_on_one(folder: Path, tmp_path: Path) -> None:
    on_ranks.train_own(tmp_path, Ranks())
    one, two = (read_run(where / "own") for where in (tmp_path, folder / "two"))
    assert (one.started.ranks, two.started.ranks, len(two.steps)) == (1, 2, 5)
    theirs, own = ([step.loss for step in run.steps] for run in (two, one))
    assert theirs[0] == pytest.approx(own[0], rel=1e-6)
    assert theirs == pytest.approx(own, rel=2e-3)  # gradients are summed in another order
    values = [run.evaluations[-1].test_metric for run in (one, two)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_the_published_set_ups_train_under_bf16_on_two_ranks(folder: Path) -> None:
    for name, _ in on_ranks.PUBLISHED:
        run = read_run(folder / "two" / f"{name}-bf16")
        assert isinstance(run.end, RunFinished)
        assert all(torch.tensor(losses(run)).isfinite())
        assert run.decisions


def test_a_stop_on_one_rank_stops_all_and_resume_is_bit_exact(folder: Path) -> None:
    told = {(folder / f"told-{rank}").read_text() for rank in (0, 1)}
    assert len(told) == 1
    command = "go on with: torchrun --nproc-per-node 2 -m thor_bench.cli train clouds"
    assert command in told.pop()
    whole, cut = read_run(folder / "whole"), read_run(folder / "cut")
    assert trajectory(cut) == trajectory(whole)
    assert '"kind":"resumed"' in (folder / "cut" / "records.jsonl").read_text()
    states = [
        torch.load(folder / name / CHECKPOINT_FILE, weights_only=True) for name in ("whole", "cut")
    ]
    assert all(
        torch.equal(states[0]["model"][key], states[1]["model"][key]) for key in states[0]["model"]
    )
    assert torch.equal(states[0]["random"], states[1]["random"])
    assert not torch.equal(states[0]["random"][0], states[0]["random"][1])


def test_a_killed_rank_is_restarted_and_the_run_goes_on_by_itself(folder: Path) -> None:
    killed = read_run(folder / "killed")
    assert '"kind":"resumed"' in (folder / "killed" / "records.jsonl").read_text()
    assert trajectory(killed) == trajectory(read_run(folder / "whole"))


def test_a_fault_of_one_rank_ends_all_with_one_line(tmp_path: Path) -> None:
    write_imagenet(tmp_path / "broken")
    # The last sample of the first batch is the second rank's.
    victim = tmp_path / "broken" / "train" / "n00000001" / "2.JPEG"
    victim.write_bytes(b"\xff\xd8 no image")
    done = torchrun(str(SCRIPT), "broken", str(tmp_path))
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("thor: ")]
    assert len(told) == 1
    assert "2.JPEG is no readable image" in told[0]
    assert "Traceback" not in done.stderr.partition("torch/distributed/elastic")[0]


class Words:
    """A store in a dictionary."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, key: str, amount: int) -> int:
        self._counts[key] = self._counts.get(key, 0) + amount
        return self._counts[key]


def test_one_gpu_for_several_ranks_is_refused() -> None:
    with pytest.raises(BenchError, match=r"--device cuda:0 would put 2 ranks on one GPU"):
        TorchrunRanks(Words(), 0, 2).device("cuda:0")


def test_only_the_first_fault_is_told_and_lost_contact_is_explained() -> None:
    words = Words()
    first, second = TorchrunRanks(words, 0, 2), TorchrunRanks(words, 1, 2)
    told = r"^rank 1 of 2 lost contact .*--resume"
    with pytest.raises(RankError, match=told), second.failing_together():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")
    for fault in (BenchError("mine"), RuntimeError("[gloo/…] Connection closed by peer")):
        with pytest.raises(RankError, match=r"^$"), first.failing_together():
            raise fault


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), TorchrunRanks(Words(), 0, 2).failing_together():
        raise KeyError("a defect")


def test_other_commands_refuse_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        app(["compare", "digits"])
    told = capsys.readouterr().err
    assert told.startswith("thor: thor compare is for one process, torchrun started 2;")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        app(["compare", "digits"])
    assert capsys.readouterr().err == ""

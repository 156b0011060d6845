"""Whole runs under torchrun: the example, and one that loses a rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_thor
from sharded import WORKS_HERE

pytestmark = pytest.mark.cpu  # ranks talk over gloo

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = str(Path(torch_thor.__file__).parents[1])


def torchrun(script: Path, *arguments: object, restarts: int = 0) -> str:
    """Runs a script on two ranks and returns what it printed."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
        *("--max-restarts", str(restarts), "--monitor-interval", "0.1"),
        *(str(script), *map(str, arguments)),
    ]
    environment = os.environ | {
        "PYTHONPATH": SOURCES,
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",  # says where a rank was that is killed by a signal
        # A store of its own for each attempt: gloo finds addresses of dead ranks in a shared one.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    done = subprocess.run(  # noqa: S603 - our own scripts
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_example_trains_on_two_ranks(tmp_path: Path) -> None:
    printed = torchrun(ROOT / "examples" / "ddp.py", tmp_path / "digits.pt")
    assert "2 ranks" in printed
    accuracy = float(printed.partition("accuracy ")[2].partition("%")[0])
    assert accuracy > 90
    assert (tmp_path / "digits.pt").exists()


@pytest.mark.skipif(not WORKS_HERE, reason="this torch can't shard on a CPU")
def test_the_sharded_example_trains_and_goes_on(tmp_path: Path) -> None:
    for printed in (torchrun(ROOT / "examples" / "fsdp.py", tmp_path / "digits") for _ in range(2)):
        accuracy = float(printed.partition("accuracy ")[2].partition("%")[0])
        assert accuracy > 90


def test_a_run_that_loses_a_rank_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    lossy, calm = tmp_path / "lossy", tmp_path / "calm"
    lossy.mkdir()
    calm.mkdir()
    torchrun(HERE / "elastic.py", lossy, 7, restarts=1)
    torchrun(HERE / "elastic.py", calm)
    for rank in range(2):
        assert (lossy / f"begins-{rank}").read_text().split() == ["0", "6"]
        ends = [torch.load(run / f"end-{rank}.pt", weights_only=True) for run in (lossy, calm)]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

"""Promise: the bench works with every torch that the optimizer works with (2.6 and newer)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cpu  # the command's own device is not the tests'

ROOT = Path(__file__).parents[2]
# A torch without what came later, and all commands in one process.
SCRIPT = """
import json, runpy, sys
import torch
if hasattr(torch.optim, "Muon"):
    del torch.optim.Muon, torch.optim._muon
    sys.modules.pop("torch.optim._muon")
out, benchmarks = sys.argv[1:]
sys.path.insert(0, benchmarks)
from typer.testing import CliRunner
from thor_bench.cli.commands import app
few = ["--seeds", "1", "--epochs", "0.2"]
commands = {
    "optimizers": ["optimizers", "digits"],
    "train": ["train", "digits", "--epochs", "0.2", "--out", f"{out}/train"],
    "muon": ["train", "digits", "--optimizer", "muon", "--out", f"{out}/muon"],
    "compare": ["compare", "digits", "--optimizers", "sgd,muon", *few, "--out", f"{out}/compare"],
    "none": ["compare", "digits", "--optimizers", "muon", *few, "--out", f"{out}/none"],
    "tune": ["tune", "digits", "--optimizers", "sgd,muon", "--trials", "1", "--seeds", "1",
             "--target", "20", "--out", f"{out}/tune"],
}
found = {}
for name, words in commands.items():
    result = CliRunner().invoke(app, words)
    found[name] = [result.exit_code, result.stdout, result.stderr, repr(result.exception)]
for name, words in {
    "step_cost": ["small-resnet", "--optimizers", "sgd,muon", "--steps", "1", "--warm-up", "0"],
    "recipe_cost": ["digits", "--optimizers", "sgd,muon", "--steps", "10"],
}.items():
    sys.argv[1:] = words
    print("=", name, flush=True)
    runpy.run_path(f"{benchmarks}/{name}.py", run_name="__main__")
print("=", "found", flush=True)
print(json.dumps(found))
"""
LACKS = "needs torch >= 2.9"


@cache
def ended(out: str) -> tuple[dict[str, list[Any]], str]:
    """How each command ended under an older torch, and what the benchmarks printed."""
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", SCRIPT, out, str(ROOT / "benchmarks")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed, _, found = done.stdout.rpartition("= found\n")
    return json.loads(found), printed


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("older"))


def test_what_does_not_need_it_runs(out: str) -> None:
    """Case 57."""
    found, _ = ended(out)
    assert found["optimizers"][0] == 0, found["optimizers"]
    assert LACKS in " ".join(found["optimizers"][1].split())
    assert found["train"][0] == 0, found["train"]


def test_a_run_of_muon_is_refused_in_one_line(out: str) -> None:
    """Case 57."""
    code, _, told, _ = ended(out)[0]["muon"]
    assert code == 2
    assert told.count("\n") == 1
    assert f"--optimizer muon {LACKS}" in told
    assert not (Path(out) / "muon" / "records.jsonl").exists()


def test_a_comparison_runs_all_others_and_says_why_one_has_no_run(out: str) -> None:
    """Case 57."""
    found, _ = ended(out)
    assert found["compare"][0] == 0, found["compare"]
    rows = (Path(out) / "compare" / "table.md").read_text(encoding="utf-8").splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| sgd", "| muon"]
    assert LACKS in rows[3]
    code, _, told, _ = found["none"]
    assert (code, LACKS in told) == (2, True)
    assert found["tune"][0] == 0, found["tune"]
    assert LACKS in found["tune"][1]


def test_benchmarks_measure_all_others_and_say_so(out: str) -> None:
    """Case 57."""
    tables = re.split("^= ", ended(out)[1], flags=re.MULTILINE)[1:]
    assert len(tables) == 2
    for table in tables:
        names = [line for line in table.splitlines() if line.startswith(("| sgd", "| muon"))]
        assert len(names) == 2, table
        assert LACKS in names[1]

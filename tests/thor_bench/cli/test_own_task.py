"""A task of one's own: begun with ``thor new``, trained, compared, stopped, changed, reported."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.errors import RunInterruptedError
from thor_bench.optimizers.recipes import plan_run
from thor_bench.records.reading import find_runs, read_run
from thor_bench.records.records import RunFinished
from thor_bench.tasks import find_task
from thor_bench.tasks.taskfile import load_task
from thor_bench.training.checkpoint import CHECKPOINT_FILE
from thor_bench.training.train import train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thor_bench.records.records import Record

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "tasks"
THREE = "thor,muon,adamw"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; what a file leaves in Python is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    load_task.cache_clear()  # a command has a process of its own
    yield tmp_path
    for name in [one for one in sys.modules if one.startswith("thor_task_")]:
        del sys.modules[name]


def run(*words: object, code: int = 0) -> Any:
    load_task.cache_clear()
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_two_commands_lead_to_a_page(folder: Path) -> None:
    told = run("new", "my_task.py").output
    assert "thor compare my_task.py" in told
    result = run("compare", "my_task.py", "--optimizers", THREE, "--seeds", 1, "--epochs", 1)
    assert "nothing is tuned for it" in result.output
    page = (folder / "runs" / "compare-my_task" / "report.html").read_text(encoding="utf-8")
    assert "my_task.py" in page
    assert "Nobody set a target" in page
    runs = {one.config.optimizer: one for one in find_runs(folder / "runs")}
    assert set(runs) == {"thor", "muon", "adamw"}
    assert runs["thor"].config.settings["norm_control"] == "spectral"
    assert (runs["adamw"].config.settings["lr"], runs["adamw"].config.settings["beta2"]) == (
        0.001,
        0.999,
    )
    for file in ("my_task.py", "report.html"):  # the records are enough for another page
        next(folder.rglob(file)).unlink()
    assert "accuracy" in run("report", "runs/compare-my_task").output


def test_new_spares_what_is_there(folder: Path) -> None:
    (folder / "a.py").write_text("mine", encoding="utf-8")
    assert "a.py is there already" in run("new", "a.py", code=2).stderr
    assert (folder / "a.py").read_text(encoding="utf-8") == "mine"
    assert "must end in .py; try: thor new a.py" in run("new", "a", code=2).stderr
    assert "cannot be written" in run("new", "no/a.py", code=2).stderr


def test_a_changed_file_is_not_mixed_with_older_records(folder: Path) -> None:
    file = folder / "tensors.py"
    shutil.copy(EXAMPLES / "tensors.py", file)
    compare = ("compare", file, "--seeds", 1, "--epochs", 0.1, "--optimizers", "sgd")
    single = ("train", file, "--epochs", 0.1, "--optimizer")
    for name in ("sgd", "adamw"):
        run(*single, name)
        run(*single, name, "--out", f"runs/compare-tensors/{name}-seed0")
    changed(file, "nn.Linear(2, 64)", "nn.Linear(2,  64)")
    line = run(*compare, code=2).stderr
    assert "as it was before a change; begin anew with --overwrite" in line
    assert "as it was before a change" in run("train", file, "--resume", "--optimizer", "sgd",
                                               code=2).stderr  # fmt: skip
    run(*single, "sgd", "--overwrite")
    run(*compare, "--overwrite")
    (made,) = find_runs(folder / "runs" / "compare-tensors")
    assert made.config.content == find_task(str(file)).origin.content  # type: ignore[union-attr]


def test_a_page_of_two_states_of_a_file_is_refused(folder: Path) -> None:
    file = folder / "tensors.py"
    shutil.copy(EXAMPLES / "tensors.py", file)
    words = ("train", file, "--epochs", 0.1, "--optimizer")
    run(*words, "sgd", "--out", "runs/a")
    changed(file, "nn.Linear(2, 64)", "nn.Linear(2,  64)")
    run(*words, "adamw", "--out", "runs/b")
    told = run("report", "runs", code=2).stderr
    assert "before and after it was changed; make them again with --overwrite" in told


class StopsAt:
    """Asks a run to stop after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def observe(self, record: Record) -> None:
        if getattr(record, "kind", "") == "step" and getattr(record, "step", 0) == self._step:
            signal.raise_signal(signal.SIGINT)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "data",
    [
        "(inputs[:2000], targets[:2000])",
        "DataLoader(TensorDataset(inputs[:800], targets[:800]), batch_size=50, shuffle=True)",
        "lambda: ((x, x.sum(1, keepdim=True)) for x in torch.rand(8, 50, 2))",
    ],
)
def test_ctrl_c_in_an_epoch_loses_nothing(data: str, folder: Path) -> None:
    file = folder / "tensors.py"
    shutil.copy(EXAMPLES / "tensors.py", file)
    changed(file, "from torch.nn import", "from torch.utils.data import *\nfrom torch.nn import")
    changed(file, "train=(inputs[:2000], targets[:2000])", f"train={data}, steps_per_epoch=8")
    changed(file, "import torch\n", "import random\nimport numpy\nimport torch\n")
    noise = "1 + 0.1 * random.gauss() + 0.1 * numpy.random.randn() + 0.1 * torch.randn(())"
    changed(file, "(model(inputs), targets)", f"(model(inputs), targets) * ({noise})")
    task = find_task(str(file))
    config = plan_run(task, "thor", seed=1, changes=["interval=3"])
    config = type(config)(**(vars(config) | {"epochs": 2.5, "record_every": 1}))
    train(config, folder / "whole")
    with pytest.raises(RunInterruptedError, match=rf"thor train {file} .*--resume"):
        train(config, folder / "cut", observers=[StopsAt(11)])
    end = train(config, folder / "cut", resume=True)
    assert (end.step, end.ended) == (20, None)
    whole, cut = read_run(folder / "whole"), read_run(folder / "cut")
    assert [one.loss for one in cut.steps] == [one.loss for one in whole.steps]
    assert [e.test_metric for e in cut.evaluations] == [e.test_metric for e in whole.evaluations]
    weights = [
        torch.load(folder / name / CHECKPOINT_FILE, weights_only=True)["model"]
        for name in ("cut", "whole")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_a_fault_late_in_a_run_keeps_its_checkpoint(folder: Path) -> None:
    file = folder / "tensors.py"
    shutil.copy(EXAMPLES / "tensors.py", file)
    fault = (
        '    if Path("broken").exists() and next(COUNT) == 30:\n        raise OSError("a disk")\n'
    )
    changed(file, "import torch\n", "import torch\nfrom itertools import count\n"
            "from pathlib import Path\nCOUNT = count()\n")  # fmt: skip
    changed(file, "    inputs, targets = batch\n", fault + "    inputs, targets = batch\n")
    (folder / "broken").touch()
    words = ("train", file, "--optimizer", "sgd", "--epochs", 3, "--out", "run")
    told = run(*words, code=2).stderr
    assert "tensors.py:20: the loss of a batch: OSError: a disk" in told
    (folder / "broken").unlink()
    run(*words, "--resume")
    assert isinstance(read_run(folder / "run").end, RunFinished)


def test_a_model_made_in_task_is_fresh_for_every_seed(folder: Path) -> None:
    file = folder / "tensors.py"
    shutil.copy(EXAMPLES / "tensors.py", file)
    changed(file, "model=lambda: nn.Sequential", "model=nn.Sequential")
    task = find_task(str(file))
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(next(task.build().parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("is_function", [True, False])
def test_a_model_that_was_trained_is_no_fresh_one(is_function: bool, folder: Path) -> None:
    file = folder / "tensors.py"
    shutil.copy(EXAMPLES / "tensors.py", file)
    changed(file, "def task", "BODY = nn.Linear(2, 1)\n\n\ndef task")
    text = file.read_text(encoding="utf-8")
    before, after = text.index("model=lambda"), text.index("        loss=loss")
    net = "nn.Sequential(BODY, nn.Tanh())"
    model = f"lambda: {net}" if is_function else net
    file.write_text(f"{text[:before]}model={model},\n{text[after:]}", encoding="utf-8")
    words = ("compare", file, "--optimizers", "sgd", "--epochs", 1, "--seeds", 2, "--out", "two")
    told = run(*words, code=2).stderr
    assert "the model has a Linear that an earlier run has trained; make all of it anew" in told
    changed(file, "BODY = nn.Linear(2, 1)", "BODY = nn.Linear(2, 1).requires_grad_(False)")
    changed(file, "nn.Tanh()", "nn.Tanh(), nn.Linear(1, 1)")
    run(*words, "--overwrite")  # what is frozen may be shared


def test_a_task_of_a_file_is_tuned_and_raced(folder: Path) -> None:
    file = folder / "tensors.py"
    shutil.copy(EXAMPLES / "tensors.py", file)
    changed(file, "epochs=10", "epochs=0.25, target=0.2")
    words = ("tune", file, "--optimizers", "sgd,adamw", "--trials", 2, "--seeds", 1)
    run(*words, "--out", "tune", "--evals-per-epoch", 4)
    assert (folder / "tune" / "tensors" / "winners" / "report.html").exists()
    run("league", "--tasks", file, "--optimizers", "sgd,adamw", "--seeds", 1, "--out", "league")
    assert (folder / "league" / "tensors").is_dir()
    changed(file, ", target=0.2", "")
    told = run("league", "--tasks", file, "--optimizers", "sgd", code=2).stderr
    assert "it has no target; set one in its Task" in told


@pytest.mark.parametrize("name", ["tensors", "images", "language", "equation"])
def test_the_examples_train(name: str, folder: Path) -> None:
    if name == "language":
        pytest.importorskip("transformers", reason="install the group 'integrations'")
    words = ("--optimizer", "thor", "--epochs", 0.1, "--out", "run")
    run("train", EXAMPLES / f"{name}.py", *words)
    one = read_run(folder / "run")
    assert isinstance(one.end, RunFinished)
    assert one.started.task is not None
    assert one.started.task.name.endswith(f"{name}.py")


RESIDUALS = """
import torch
from torch import nn
from thor_bench import Squares, Task
from torch_thor import derivatives


def residuals(model, points):
    u = derivatives(model, points)
    return u.laplacian + 1, 10 * model(points.round())


def task():
    points = torch.rand(200, 2)
    return Task(
        model=lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)),
        loss=Squares(residuals),
        train=points,
        test=points,
        batch_size=40,
        epochs=1,
    )
"""


def test_the_equation_is_solved_by_its_residuals(folder: Path) -> None:
    words = ("--optimizer", "gauss-newton", "--epochs", 0.8, "--out", "run")
    run("train", EXAMPLES / "equation.py", *words)
    end = read_run(folder / "run").end
    assert isinstance(end, RunFinished)
    assert end.final_metric < 0.02


def test_residuals_of_a_file_are_trained_by_gauss_newton_and_the_others(folder: Path) -> None:
    file = folder / "own.py"
    file.write_text(RESIDUALS, encoding="utf-8")
    words = ("compare", file, "--optimizers", "gauss-newton,lbfgs,adamw", "--seeds", 1)
    told = run(*words).output
    assert "gauss-newton" in told
    runs = {one.config.optimizer: one for one in find_runs(folder / "runs")}
    final = {name: one.end.final_metric for name, one in runs.items()}  # type: ignore[union-attr]
    assert final["gauss-newton"] < final["adamw"]
    assert (folder / "runs" / "compare-own" / "report.html").exists()


def test_mistakes_in_residuals_are_told_with_their_line(folder: Path) -> None:
    file = folder / "own.py"
    file.write_text(RESIDUALS, encoding="utf-8")
    words = ("train", file, "--optimizer", "gauss-newton", "--out", "run", "--overwrite")
    changed(file, "return u.laplacian + 1, 10 * model(points.round())", "return None")
    told = run(*words, code=2).stderr
    assert "own.py:8: the loss of a batch: residuals returned None; return" in told
    changed(file, "return None", "return model(points).cumsum(0)")
    told = run(*words, code=2).stderr
    assert "own.py:8: a step by residuals: The rows of the residuals are not" in told
    changed(file, "model(points).cumsum(0)", "model(points).double().half()")
    told = run(*words, code=2).stderr
    assert "gauss-newton on " in told
    assert "of float32 or float64" in told
    changed(file, "loss=Squares(residuals)", "loss=lambda model, points: model(points).mean()")
    told = run(*words, code=2).stderr
    assert "--optimizer gauss-newton takes residuals, and" in told

"""Mistakes in a task file: each is one line, with the user's own file and line in it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from thor_bench.cli.commands import app
from thor_bench.records.records import RECORDS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = """\
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from thor_bench import Metric, Task

inputs, labels = torch.randn(40, 4), torch.arange(40) % 2
pairs = list(zip(inputs, labels))

def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)  # LOSS

def right(model, batch):
    x, y = batch
    return (model(x).argmax(1) == y).float()  # SCORE

def task():
    model = lambda: nn.Linear(4, 2)  # MODEL
    train = test = (inputs, labels)
    more = {}
    # HERE
    return Task(
        model=model, loss=loss, train=train, test=test, epochs=1,
        metric=Metric(name="right", score=right, higher_is_better=True), **more
    )
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in; what a file leaves in Python is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [one for one in sys.modules if one.startswith(("thor_task_", "net_beside"))]:
        del sys.modules[name]


def run(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def written(folder: Path, *changes: tuple[str, str], name: str = "my_task.py") -> str:
    """Writes the file, changed; returns its path."""
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def mistake(file: str, *words: object, code: int = 2) -> str:
    result = run("train", file, "--optimizer", "sgd", *words)
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert "Traceback" not in result.output
    return str(line)


@pytest.mark.parametrize("name", ["[bold] a [/x]", "$\\\\foo{$ of $x^$"])
def test_names_and_units_are_shown_as_they_are(name: str, folder: Path) -> None:
    """Brackets are no markup of a terminal, dollars no formula of a figure."""
    file = written(folder, ('name="right"', f'name="{name}", unit="[$/s]"'))
    for words in (("train", file, "--out", "a run"), ("report", "a run")):
        result = run(*words)
        assert result.exit_code == 0, result.output
        assert name.replace("\\\\", "\\") in result.output
        assert "[$/s]" in result.output
    assert "thor report 'a run'" in run("train", file, "--out", "a run", "--overwrite").output


def test_a_file_that_leaves_the_folder_is_refused(folder: Path) -> None:
    leaves = "os.chdir('/')"
    for old, new in {
        "import torch\n": f"import os, torch; {leaves}\n",
        "# HERE": f"import os; {leaves}",
        "lambda: nn": "lambda: __import__('os').chdir('/') or nn",
        "    x, y = batch\n    return F": f"    import os; {leaves}; x, y = batch\n    return F",
    }.items():
        assert "changes the working folder to /" in mistake(written(folder, (old, new)))
        assert folder.cwd() == folder


def test_it_trains(folder: Path) -> None:
    result = run("train", written(folder), "--optimizer", "thor")
    assert result.exit_code == 0, result.output
    assert "nothing is tuned for it" in result.output


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("import torch\n", "import toch\n", 1, "reading the file: ModuleNotFoundError: No module"),
        ("def loss(model, batch):", "def loss(model, batch)", 10, "reading the file: SyntaxError"),
        ("# HERE", "return {}", 18, "task(): it returned an object of type dict; it must return"),
        ("# HERE", "return None", 18, "task(): it returned None"),
        ("# HERE", "1 / 0", 22, "task(): ZeroDivisionError: division by zero"),
        ("# HERE", "exit(3)", 22, "task(): SystemExit: 3"),
        (
            "loss=loss, ",
            "",
            23,
            "task(): TypeError: Task.__init__() missing 1 required keyword-only",
        ),
        ("train=train, ", "", 23, "task(): train is missing; give tensors, a data set"),
        ("metric=Metric(", "metric=dict(", 23, "metric is an object of type dict; it must be a"),
        (", higher_is_better=True", "", 25, "missing 1 required keyword-only argument: 'higher_is"),
        ("epochs=1", "epochs=0", 23, "epochs=0 must be above 0"),
        ("# HERE", "more = {'batch_size': '64'}", 23, "batch_size is '64'; it must be a whole"),
        ("# LOSS", "+ None", 12, "the loss of a batch: TypeError: unsupported operand"),
        ("model(x), y)  # LOSS", "model(x[:, :3]), y)", 12, "mat1 and mat2 shapes cannot be mult"),
        ("# LOSS", " * torch.ones(3)", 10, "loss returned a tensor of shape [3]; it must be one"),
        ("y)  # LOSS", "y).item()", 10, "loss returned an object of type float; it must be one"),
        ("# LOSS", ".detach()", 10, "loss returned a number without a gradient"),
        ("return (model(x)", "return (model(x) / no", 16, "NameError: name 'no' is not defined"),
        ("# SCORE", ".expand(2, -1)", 14, "metric returned a tensor of shape [2, 32]; it must ret"),
        ("return (model", "(model", 14, "metric returned None; it must return a number, the mean"),
        ("lambda: nn.Linear(4, 2)", "lambda: 'net'", 19, "model() returned an object of type str"),
        ("nn.Linear(4, 2)", "nn.Linear(4, [])", 19, "building the model: TypeError"),
        ("# HERE", "train = (inputs[:0], labels[:0])", 18, "the training data have no sample"),
        ("# HERE", "train = (inputs, labels[:9])", 18, "train has tensors of 9 and 40 samples"),
        ("# HERE", "train = (x for x in pairs)", 18, "generator, which can be read only once"),
        ("# HERE", "test = (inputs[:0], labels[:0])", 18, "the test data have no sample"),
        ("# HERE", "more = {'autocast': 'bf16'}", 23, "autocast is 'bf16'; allowed: None, torch"),
        ("# HERE", "more = {'loss_reduction': 'sum'}", 23, "allowed: 'mean', 'positions_mean'"),
        ("# HERE", "more = {'collate': 3}", 23, "collate is an object of type int; it must be a"),
        ("# HERE", "more = {'exclude': 'head'}", 23, "exclude is 'head'; it must be a tuple"),
        ("# HERE", "assert None", 22, "task(): AssertionError"),
        (
            "# HERE",
            "raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})",
            22,
            "task(): E",
        ),
        ("nn.Linear(4, 2)", "nn.Flatten()", 19, "no parameter that requires a gradient, so"),
        ("nn.Linear(4, 2)", "nn.Linear(4, 2).requires_grad_(False)", 19, "thaw some with"),
        ("nn.Linear(4, 2)", "nn.LazyLinear(2)", 19, "the model has lazy layers"),
        ("# HERE", "train = DataLoader([])", 18, "training data have no batch"),
        ("# HERE", "train = DataLoader([], batch_sampler=[])", 18, "training data have no batch"),
        ("# HERE", "train = lambda: [(inputs, labels)]", 18, "no length; set steps_per_epoch"),
        ("# HERE", "test = lambda: []", 18, "the test data have no batch"),
        ("# HERE", "train = [(x, 'a', {1}) for x in inputs]", 18, "reading the training data"),
        ("# HERE", "train = 'data.csv'", 18, "train is 'data.csv', which is text; read it, and"),
        ("# HERE", "train = ([[1.0]], [1])", 18, "that holds no tensor; make tensors of its num"),
        (
            "# HERE",
            "train = type('D', (torch.utils.data.Dataset,), {'__getitem__': lambda s, n: n})()",
            18,
            "without a length; give it a __len__",
        ),
        ("y)  # LOSS", "y) + 0j", 10, "loss returned a complex number; it must be real"),
        ("nn.Linear(4, 2)", "nn.Linear(4, 2, device='meta')", 19, "the model on its device"),
        ('name="right"', 'name=""', 23, "the metric's name is empty; name what it measures"),
        ('name="right"', 'name="a\\nb"', 23, "the metric's name is 'a\\nb'; it must be text of"),
        ('name="right"', 'name="right", unit=None', 23, "the metric's unit is None; it must be"),
        ("better=True", "better=True, digits=2.5", 23, "digits is 2.5; it must be a whole"),
        ("better=True", "better=True, digits=-1", 23, "digits is -1; it must be a whole number"),
        ("better=True", "better=True, low='0'", 23, "the metric's low is '0'; it must be a number"),
        ("better=True", "better=True, high=float('nan')", 23, "high is nan; it must be a number"),
        ("better=True", "better='max'", 23, "higher_is_better is 'max'; it must be True or False"),
        ("# HERE", "train = 3", 18, "train is an object of type int; it must be tensors, a data"),
        (
            "# HERE",
            "train, more = lambda: [(inputs, labels)], {'steps_per_epoch': 3}",
            18,
            "the training data ended after 1 of 3 batches of an epoch; set steps_per_epoch",
        ),
        (
            "def loss(model, batch):",
            "other = nn.Linear(4, 2)\ndef loss(_, batch, model=other):",
            11,
            "no parameter of the model has a gradient; compute the loss with the model",
        ),
    ],
)
def test_a_mistake_is_told_by_line(old: str, new: str, line: int, told: str, folder: Path) -> None:
    text = mistake(written(folder, (old, new)))
    assert f"my_task.py:{line}: " in text
    assert told in text


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("# SCORE", "+ torch.ones(3)", 16, "the metric of a batch of test data: RuntimeError"),
        ("# SCORE", " * float('nan')", 14, "metric returned NaN, and the loss is finite; look for"),
        (
            "nn.Linear(4, 2)  # MODEL",
            "nn.Linear(3, 2)",
            12,
            "the loss of a batch: RuntimeError: mat",
        ),
        (
            "nn.Linear(4, 2)  # MODEL",
            "nn.Sequential(nn.Linear(4, 2), nn.Flatten(0))",
            12,
            "the loss of a batch: ValueError: ",
        ),
        ("# HERE", "test = (inputs[:, :3], labels)", 16, "mat1 and mat2 shapes cannot be"),
        ("score=right", "score=None", 12, "the loss of a batch of test data: RuntimeError"),
        ("# HERE", "test = DataLoader([1, 'a'], 2)", 18, "reading the test data: TypeError"),
        ("# HERE", "test = lambda: []", 18, "reading the test data: the test data have no batch"),
        ("score=right", "score=right, of_mean=len", 18, "of_mean: object of type 'float'"),
    ],
)
def test_a_mistake_in_the_test_is_told_before_training(
    old: str, new: str, line: int, told: str, folder: Path
) -> None:
    changes = [(old, new)]
    if "None" in new:
        changes += [("# HERE", "test = (inputs[:, :3], labels)")]
    text = mistake(written(folder, *changes), "--epochs", 1000)
    assert f"my_task.py:{line}: " in text
    assert told in text
    assert not list(folder.rglob(RECORDS_FILE))


def test_an_untrained_score_may_have_no_value(folder: Path) -> None:
    """Before the first step nothing is right, and a logarithm has no value; in the end it has."""
    seen = "lambda mean: 1 / (mean - mean) if COUNT.pop() else 1.0"
    file = written(
        folder,
        ("pairs =", "COUNT = [0, 0, 1]\npairs ="),
        ("score=right", f"score=right, of_mean={seen}"),
    )
    assert run("train", file, "--optimizer", "sgd").exit_code == 0


def test_an_untrained_head_of_zeros_may_have_no_score(folder: Path) -> None:
    """A correlation with what is constant is no number, and one after a step."""
    zeros = "net = nn.Linear(4, 2); [nn.init.zeros_(one) for one in net.parameters()]"
    file = written(
        folder,
        ("def task", f"def zeros():\n    {zeros}\n    return net\n\ndef task"),
        ("lambda: nn.Linear(4, 2)  # MODEL", "zeros"),
        (
            "(model(x).argmax(1) == y).float()",
            "torch.corrcoef(torch.stack([model(x)[:, 1], y.float()]))[0, 1]",
        ),
    )
    assert run("train", file, "--optimizer", "sgd").exit_code == 0


def test_a_missing_file_and_a_missing_function_are_told(folder: Path) -> None:
    assert "nowhere.py cannot be read (No such file or directory); begin" in mistake("nowhere.py")
    file = written(folder, ("def task", "def tasks"))
    line = mistake(file)
    assert "my_task.py has no function task(); it has loss, right, tasks; write def task()" in line
    assert "my_task.py has no function other()" in mistake(f"{file}:other")
    assert "its labels is a tensor of shape [40]; write def labels()" in mistake(f"{file}:labels")
    assert run("train", f"{file}:tasks", "--optimizer", "sgd").exit_code == 0
    assert (folder / "runs" / "my_task-tasks" / "sgd-seed0").is_dir()


def test_a_file_beside_it_is_told_of_as_well(folder: Path) -> None:
    (folder / "net_beside.py").write_text("def build():\n    return 1 / 0\n", encoding="utf-8")
    file = written(folder, ("lambda: nn.Linear(4, 2)", "__import__('net_beside').build"))
    assert "net_beside.py:2: building the model: ZeroDivisionError" in mistake(file)


def test_a_worker_of_a_loader_is_told_of_by_line(folder: Path) -> None:
    data = "class Data:\n    def __len__(self): return 40\n    def __getitem__(self, i): 1 / 0\n\n"
    file = written(
        folder,
        ("def task", data + "def task"),
        ("# HERE", "train = DataLoader(Data(), num_workers=1)"),
    )
    line = mistake(file)
    assert "my_task.py:20: reading the training data: ZeroDivisionError: division by zero" in line
    changes = ("def task", data + "def task"), ("# HERE", "train = Data()")
    file = written(folder, *changes, name="b.py")
    assert "b.py:20: reading the training data: ZeroDivisionError" in mistake(file, "--workers", 1)


def test_numbers_that_are_none_end_the_run_with_a_record(folder: Path) -> None:
    line = mistake(written(folder, ("# LOSS", "* float('nan')")), code=1)
    assert "loss became nan at step 1; look at the loss and its inputs" in line
    late = " * (1.0 if COUNT.pop() else float('nan'))"
    changes = ("pairs =", "COUNT = [0, 0, 1]\npairs ="), ("# SCORE", late)
    line = mistake(written(folder, *changes, name="b.py"), code=1)
    assert "test right became nan after step" in line
    assert "the loss was" in line
    assert "look at the metric, or try a lower --set lr" in line


def test_what_no_machine_has_is_told(folder: Path) -> None:
    file = written(folder)
    assert "--seed 9223372036854775808 must be at most" in mistake(file, "--seed", 2**63)
    assert "--device 'meta' is not usable" in mistake(file, "--device", "meta")


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        (
            "model(x), y)  # LOSS",
            "(h := model(x).exp()) * h.detach().zero_(), y)",
            10,
            "RuntimeError: one of the variables",
        ),
        ("model(x), y)  # LOSS", "nn.Linear(4, 2)(x), y)", 10, "no parameter of the model"),
    ],
)
def test_a_mistake_is_told_by_the_finder_too(
    old: str, new: str, line: int, told: str, folder: Path
) -> None:
    result = run("find", written(folder, (old, new)), "--epochs", 120)
    assert result.exit_code == 2
    assert f"my_task.py:{line}: the backward pass of a loss: {told}" in result.stderr


def test_a_name_that_thor_cannot_exclude_is_told(folder: Path) -> None:
    file = written(folder, ("# HERE", "more = {'exclude': ('head',)}"))
    result = run("train", file, "--optimizer", "thor")
    assert result.exit_code == 2
    assert "--optimizer thor: Invalid exclude='head'" in result.stderr

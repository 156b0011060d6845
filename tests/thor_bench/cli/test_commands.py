"""The command line: what it prints, and one line for every mistake."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from thor_bench import cli
from thor_bench.cli.commands import app
from thor_bench.records.reading import read_run
from thor_bench.records.records import RECORDS_FILE, RunFinished
from thor_bench.training.checkpoint import CHECKPOINT_FILE

if TYPE_CHECKING:
    from pathlib import Path


def run(*words: object) -> Any:
    """Runs a command in this process; an exception that escapes fails the test."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def mistake(*words: object, code: int = 2) -> str:
    """Runs a command that must fail politely and returns its one line."""
    result = run(*words)
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    assert lines[0].startswith("thor: ")
    return str(lines[0])


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    out = tmp_path / "run"
    assert run("train", "tiny", "--optimizer", "sgd", "--out", out).exit_code == 0
    return out


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_workloads_lists_all_with_their_targets() -> None:
    result = run("workloads")
    assert result.exit_code == 0
    assert all(text in result.output for text in ("digits", "fashion", "98", "91.5"))


def test_optimizers_lists_settings() -> None:
    result = run("optimizers", "fashion")
    assert result.exit_code == 0
    assert all(text in result.output for text in ("thor", "sgd", "adamw", "muon", "lr="))


def test_train_writes_records_checkpoint_and_tensorboard(trained: Path) -> None:
    assert isinstance(read_run(trained).end, RunFinished)
    assert (trained / CHECKPOINT_FILE).stat().st_size > 0
    assert list((trained / "tensorboard").glob("events.out.tfevents.*"))


def test_train_tells_each_epoch_where_there_is_no_terminal(tmp_path: Path) -> None:
    rule = ("--set", "interval=1", "--set", "update_above=1e9")
    output = run("train", "tiny", "--epochs", 3, "--out", tmp_path / "run", *rule).output
    assert output.count("accuracy") == 4
    assert "epoch  3.00" in output
    assert "update" in output
    assert "keep" in output


def test_set_changes_what_is_recorded(tmp_path: Path) -> None:
    words = ("--set", "lr=0.3", "--set", "split=auto", "--set", "rows=none", "--set", "nesterov=no")
    assert run("train", "tiny", "--epochs", 1, *words, "--out", tmp_path).exit_code == 0
    settings = read_run(tmp_path).config.settings
    found = (settings["lr"], settings["split"], settings["rows"], settings["nesterov"])
    assert found == (0.3, "auto", None, False)


def test_compare_writes_tables_figures_and_page_and_does_not_repeat_runs(tmp_path: Path) -> None:
    words = ("compare", "tiny", "--optimizers", "sgd,thor", "--seeds", 2, "--out", tmp_path)
    first = run(*words)
    assert first.exit_code == 0
    assert "report.html" in first.output
    assert "thor" in (tmp_path / "table.md").read_text()
    records = {path: path.read_bytes() for path in tmp_path.rglob(RECORDS_FILE)}
    assert len(records) == 4
    assert "not repeated" not in first.output
    again = run(*words)
    assert again.exit_code == 0
    assert "4 of 4 runs stand in" in again.output
    assert "is first at accuracy" in again.output
    assert all(path.read_bytes() == text for path, text in records.items())


def test_runs_end_at_the_target_where_that_is_asked(tmp_path: Path) -> None:
    words = ("--optimizers", "sgd", "--seeds", 2, "--target", 60, "--evals-per-epoch", 4)
    whole = ("compare", "tiny", *words, "--out", tmp_path / "whole")
    short = ("compare", "tiny", *words, "--to-target", "--out", tmp_path / "short")
    assert run(*whole).exit_code == 0
    assert run(*short).exit_code == 0
    for seed in (0, 1):
        long, cut = (read_run(tmp_path / name / f"sgd-seed{seed}") for name in ("whole", "short"))
        values = [record.test_metric for record in cut.evaluations]
        assert values == [record.test_metric for record in long.evaluations[: len(values)]]
        assert [value >= 60 for value in values] == [False] * (len(values) - 1) + [True]
        assert isinstance(cut.end, RunFinished)
        assert cut.end.ended == "at the target"
    told = (tmp_path / "short" / "comparison.json").read_text(encoding="utf-8")
    assert "--target 60 --to-target" in told
    before = (tmp_path / "short" / "sgd-seed0" / "records.jsonl").read_bytes()
    assert run(*short).exit_code == 0  # nothing is left to do
    assert (tmp_path / "short" / "sgd-seed0" / "records.jsonl").read_bytes() == before


def test_compare_takes_horizons_and_settings_by_optimizer(tmp_path: Path) -> None:
    words = ("--horizon", "sgd=2,adamw=0.5", "--set", "sgd.lr=0.2", "--seeds", 1, "--out", tmp_path)
    assert run("compare", "tiny", "--optimizers", "sgd,adamw", *words).exit_code == 0
    sgd = read_run(tmp_path / "sgd-seed0").config
    assert (sgd.epochs, sgd.settings["lr"]) == (2, 0.2)
    assert read_run(tmp_path / "adamw-seed0").config.epochs == 0.5


def test_compare_counts_a_run_that_diverges_as_a_miss(tmp_path: Path) -> None:
    words = ("--set", "sgd.lr=1e30", "--seeds", 1, "--out", tmp_path)
    result = run("compare", "tiny", "--optimizers", "sgd,adamw", *words)
    assert result.exit_code == 0
    rows = (tmp_path / "table.md").read_text().splitlines()
    row = next(row for row in rows if row.startswith("| sgd |"))
    assert "∞" in row
    assert "1/1" in row


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "digts"), ("WORKLOAD 'digts'", "digits, fashion", "did you mean 'digits'")),
        (("train", "tiny", "--optimizer", "sgdd"), ("--optimizer 'sgdd'", "did you mean 'sgd'")),
        (("train", "tiny", "--set", "lrr=1"), ("--set 'lrr'", "weight_decay", "mean 'lr'")),
        (("train", "tiny", "--set", "thor.lr=0.1"), ("of thor alone", "write --set lr=0.1")),
        (("train", "tiny", "--set", "lr"), ("--set 'lr' has no '='", "key=value")),
        (("train", "tiny", "--set", "lr=fast"), ("--set lr=fast", "number", "lr=0.03")),
        (("train", "tiny", "--set", "lr=-1"), ("--set lr=-1", "greater than 0")),
        (("train", "tiny", "--set", "lr=nan"), ("--set lr=nan", "finite number")),
        (("train", "tiny", "--set", "split=0"), ("--set split=0", "'auto' or 'per_layer' or none")),
        (("train", "tiny", "--set", "damping_mode=x"), ("'both', 'sqrt', 'pi' or 'relative'",)),
        (
            ("train", "tiny", "--set", "update_above=0.1", "--set", "freeze_below=0.2"),
            ("--optimizer thor", "update_above=0.1", "freeze_below (0.2)"),
        ),
        (("train", "tiny", "--epochs", 0), ("--epochs 0", "above 0")),
        (("train", "tiny", "--epochs", "many"), ("--epochs", "valid number")),
        (("train", "tiny", "--seed", -1), ("--seed -1", "at least 0")),
        (("train", "tiny", "--batch-size", 65), ("--batch-size", "65", "1 … 64")),
        (("train", "tiny", "--evals-per-epoch", 0), ("--evals-per-epoch 0", "at least 1")),
        (("train", "tiny", "--device", "gpu"), ("--device 'gpu'", "--device cpu")),
        (("train", "tiny", "--resume"), ("--resume", "holds no run")),
        (("compare", "tiny", "--optimizers", "sgd,foo"), ("--optimizers 'foo'", "allowed")),
        (("compare", "tiny", "--optimizers", ","), ("--optimizers is empty",)),
        (("compare", "tiny", "--seeds", 0), ("--seeds 0", "at least 1")),
        (("compare", "tiny", "--target", 300), ("--target 300", "0 … 100 %")),
        (("compare", "tiny", "--target", 0.915), ("--target 0.915", "did you mean --target 91.5")),
        (("compare", "tiny", "--horizon", "sgd"), ("--horizon 'sgd'", "thor=3,sgd=6")),
        (("compare", "tiny", "--horizon", "sgd=nan"), ("--horizon 'sgd=nan'", "above 0")),
        (("compare", "tiny", "--horizon", "muon=3"), ("--horizon names 'muon'", "not compared")),
        (("compare", "tiny", "--set", "lr=1"), ("--set 'lr=1' names no optimizer", "thor.lr=0.1")),
        (("compare", "tiny", "--set", "muon.lr=1"), ("--set names 'muon'",)),
        (("train", "tiny", "--preset", "paper-256"), ("--preset 'paper-256'", "allowed: defaults")),
        (
            ("train", "imagenet-resnet50", "--preset", "paper-25"),
            ("--preset 'paper-25'", "did you mean 'paper-256'"),
        ),
        (
            ("train", "imagenet-resnet50", "--preset", "paper-256", "--optimizer", "sgd"),
            ("--preset paper-256 with optimizer 'sgd'", "paper-thor-stop"),
        ),
        (("train", "tiny", "--resume", "--overwrite"), ("--resume", "--overwrite", "leave one")),
        (("new", "."), ("FILE .", "must end in .py", "thor new my_task.py")),
        (("new", "/"), ("FILE /", "thor new my_task.py")),
        (("find", "tiny", "--out", "/proc/x"), ("--out /proc/x cannot be written",)),
        (("scale", "--step-ms", "nan"), ("--step-ms nan must be > 0",)),
        (("split", "digts"), ("WORKLOAD 'digts'", "did you mean 'digits'")),
        (("paper", "tiny", "--seeds", 0), ("--seeds 0", "at least 1")),
        (("report", "nowhere"), ("DIR nowhere is no folder",)),
        (("trian", "tiny"), ("'trian'", "Did you mean 'train'")),
        (("train", "tiny", "--otimizer", "sgd"), ("--otimizer",)),
        (("report",), ("DIR",)),
    ],
)
def test_a_mistake_is_told_in_one_line(
    words: tuple[object, ...],
    told: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = mistake(*words)
    assert all(text in line for text in told), line


def test_fashion_without_its_files_says_where_it_looked(tmp_path: Path) -> None:
    line = mistake("train", "fashion", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert all(
        text in line
        for text in (
            "train-images-idx3-ubyte",
            str(tmp_path),
            "dataset-fashion-mnist",
            "--download",
        )
    )
    assert not (tmp_path / "run").exists()


def test_a_broken_data_file_is_told(tmp_path: Path) -> None:
    for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{stem}-ubyte.gz").write_bytes(gzip.compress(b"no idx file"))
    line = mistake("train", "fashion", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert "train-images-idx3-ubyte.gz is no readable IDX file" in line


def test_an_existing_run_is_refused_and_left_alone(trained: Path) -> None:
    before = contents(trained)
    line = mistake("train", "tiny", "--optimizer", "sgd", "--out", trained)
    assert all(text in line for text in (str(trained), "--resume", "--overwrite"))
    assert contents(trained) == before


def test_overwrite_that_cannot_begin_leaves_the_run_alone(trained: Path) -> None:
    before = contents(trained)
    mistake("train", "tiny", "--overwrite", "--batch-size", 1000, "--out", trained)
    assert contents(trained) == before


def test_overwrite_replaces_the_run_and_nothing_else(trained: Path) -> None:
    (trained / "notes.txt").write_text("mine")
    words = ("train", "tiny", "--optimizer", "adamw", "--out", trained, "--overwrite")
    assert run(*words).exit_code == 0
    assert read_run(trained).config.optimizer == "adamw"
    assert (trained / "notes.txt").read_text() == "mine"


def test_resume_of_a_finished_run_says_so(trained: Path) -> None:
    line = mistake("train", "tiny", "--optimizer", "sgd", "--out", trained, "--resume")
    assert "has reached its horizon" in line


def test_resume_of_another_run_names_the_difference(trained: Path) -> None:
    before = contents(trained)
    words = ("train", "tiny", "--optimizer", "sgd", "--set", "lr=0.7", "--out", trained, "--resume")
    assert "lr: 0.7 here, 0.1 there" in mistake(*words)
    assert contents(trained) == before


@pytest.mark.parametrize("broken", [b"", b"PK nonsense", b"\x80\x02]q\x00."])
def test_a_broken_checkpoint_is_told_and_left_alone(trained: Path, broken: bytes) -> None:
    (trained / CHECKPOINT_FILE).write_bytes(broken)
    records = (trained / RECORDS_FILE).read_text().splitlines(keepends=True)
    (trained / RECORDS_FILE).write_text("".join(records[:-1]))
    before = contents(trained)
    line = mistake("train", "tiny", "--optimizer", "sgd", "--out", trained, "--resume")
    assert "no readable checkpoint" in line
    assert "--overwrite" in line
    assert contents(trained) == before


def test_compare_refuses_a_folder_with_other_runs(tmp_path: Path) -> None:
    words = ("compare", "tiny", "--optimizers", "sgd", "--seeds", 1, "--out", tmp_path)
    assert run(*words).exit_code == 0
    before = contents(tmp_path)
    line = mistake(*words, "--epochs", 7)
    assert "epochs: 7 here, 3 there" in line
    assert contents(tmp_path) == before


def test_a_nan_loss_is_one_line(tmp_path: Path) -> None:
    words = ("train", "tiny", "--optimizer", "sgd", "--set", "lr=1e30", "--out", tmp_path)
    line = mistake(*words, code=1)
    assert all(text in line for text in ("sgd on tiny", "loss became", "--set lr"))
    assert "failed (loss became" in mistake(*words, "--resume")


def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = mistake("train", "tiny", "--out", tmp_path / "file" / "run")
    assert "cannot be written" in line
    line = mistake("compare", "tiny", "--out", tmp_path / "file" / "run")
    assert "cannot be written" in line


def test_report_of_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    assert "thor train digits" in mistake("report", tmp_path)


def test_report_of_mixed_workloads_is_refused(trained: Path, tmp_path: Path) -> None:
    words = ("train", "digits", "--optimizer", "sgd", "--epochs", 1, "--out", tmp_path / "digits")
    assert run(*words).exit_code == 0
    assert "several workloads (digits, tiny)" in mistake("report", tmp_path)
    assert trained.exists()


def test_without_the_bench_dependencies_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "thor_bench.cli.commands", None)
    with pytest.raises(ModuleNotFoundError):
        cli.main()  # a missing module of our own is a defect and is shown as one
    monkeypatch.delitem(__import__("sys").modules, "thor_bench.cli.commands")
    monkeypatch.setitem(__import__("sys").modules, "typer", None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "pip install 'torch-thor[bench]'" in capsys.readouterr().err

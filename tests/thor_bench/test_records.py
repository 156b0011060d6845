"""Records survive the trip through their file, whatever they hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_bench.errors import BenchError
from thor_bench.records.config import RunConfig, command_line
from thor_bench.records.disk import keep, kept
from thor_bench.records.machine import Machine
from thor_bench.records.reading import read_run
from thor_bench.records.records import (
    RECORDS_FILE,
    DecisionRecord,
    EpochRecord,
    EvaluationRecord,
    Record,
    RecordWriter,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    StepRecord,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    from pathlib import Path

floats = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**40)
texts = st.text(max_size=30)
configs = st.builds(
    RunConfig,
    workload=texts,
    optimizer=texts,
    settings=st.dictionaries(texts, st.booleans() | counts | floats | texts | st.none()),
    epochs=counts,
    seed=counts,
    batch_size=counts,
    evals_per_epoch=counts,
    record_every=counts,
    device=texts,
)
machines = st.builds(
    Machine,
    cpu=texts, cores=counts, threads=counts, gpu=texts | st.none(), system=texts, python=texts,
    torch=texts, torch_thor=texts,
)  # fmt: skip
point = {"step": counts, "epoch": floats, "seconds": floats}
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        RunStarted,
        config=configs, machine=machines, steps_per_epoch=counts, parameters=counts,
        metric=texts, started=texts,
    ),
    st.builds(RunResumed, step=counts, total_steps=counts, machine=machines, resumed=texts),
    st.builds(StepRecord, **point, loss=floats, lr=floats),
    st.builds(
        EvaluationRecord, **point, train_loss=floats, test_loss=floats, test_metric=floats
    ),
    st.builds(
        EpochRecord,
        epoch=counts, step=counts, seconds=floats, epoch_seconds=floats, train_loss=floats,
        peak_memory_mb=floats,
    ),
    st.builds(
        DecisionRecord, layer=texts, step=counts, decision=texts, change=floats | st.none()
    ),
    st.builds(RunFinished, step=counts, seconds=floats, best_metric=floats, final_metric=floats),
    st.builds(RunFailed, step=counts, seconds=floats, reason=texts),
)  # fmt: skip


@given(records)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    line = to_json(record)
    assert "\n" not in line
    assert from_json(line) == record
    assert json.loads(line)["kind"] == record.kind


STARTED = RunStarted(
    config=RunConfig(
        workload="tiny", optimizer="sgd", settings={"lr": 0.1}, epochs=1, seed=0, batch_size=2
    ),
    machine=Machine(
        cpu="c", cores=1, threads=1, gpu=None, system="s", python="3", torch="2", torch_thor="0"
    ),
    steps_per_epoch=3,
    parameters=7,
    metric="accuracy",
    started="2026-01-01T00:00:00+00:00",
)


def test_a_command_line_has_what_was_asked_for() -> None:
    options = {"batch_size": 3, "seed": 0, "lr": 1e-5, "quiet": True, "loud": False, "out": None}
    assert command_line("thor", "x y", **options) == (
        "thor 'x y' --batch-size 3 --seed 0 --lr 1e-05 --quiet"
    )
    lists = command_line("thor", set=["a=1", "b=2"], names=("p", "q"), horizon={"p": 2.0}, no=())
    assert lists == "thor --set a=1 --set b=2 --names p,q --horizon p=2"


def test_runs_are_told_apart_by_what_differs() -> None:
    here = STARTED.config
    there = replace(here, settings={"lr": 0.1, "momentum": 0.9}, epochs=2.5)
    assert here.differences(here) == []
    assert here.differences(there) == [
        "epochs: 1 here, 2.5 there",
        "momentum: None here, 0.9 there",
    ]


def test_what_is_kept_comes_back_and_a_broken_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert kept(RunConfig, path, advice="try again") is None
    keep(STARTED.config, path)
    assert kept(RunConfig, path, advice="try again") == STARTED.config
    path.write_text(path.read_text()[:20])
    with pytest.raises(BenchError, match=r"config.json cannot be read \(.*\); try again$"):
        kept(RunConfig, path, advice="try again")


def test_writer_cuts_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    with RecordWriter(tmp_path) as writer:
        writer.observe(STARTED)
        length = writer.sync()
        writer.observe(RunFailed(step=1, seconds=1.0, reason="late"))
    end = RunFinished(step=3, seconds=2.0, best_metric=1.0, final_metric=1.0)
    with RecordWriter(tmp_path, keep_bytes=length) as writer:
        writer.observe(end)
    assert read_run(tmp_path).end == end


def test_writer_refuses_a_file_shorter_than_the_checkpoint_says(tmp_path: Path) -> None:
    (tmp_path / RECORDS_FILE).write_text("x")
    with pytest.raises(BenchError, match="shorter than its checkpoint says"):
        RecordWriter(tmp_path, keep_bytes=5)
    assert (tmp_path / RECORDS_FILE).read_text() == "x"


def test_a_half_written_last_line_is_skipped(tmp_path: Path) -> None:
    (tmp_path / RECORDS_FILE).write_text(to_json(STARTED) + '\n{"kind": "st')
    run = read_run(tmp_path)
    assert run.started == STARTED
    assert run.end is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with a run's start"),
        ("nonsense\n", "line 1: no record of thor"),
        ('{"kind": "step"}\n', "line 1: no record of thor"),
        (to_json(STARTED) + "\n\n", "line 2: no record of thor"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / RECORDS_FILE).write_text(text)
    with pytest.raises(BenchError, match=message) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)

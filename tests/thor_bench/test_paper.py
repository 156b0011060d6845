"""``thor paper`` and ``thor split``: every table and figure, from runs that are never repeated."""

from __future__ import annotations

import csv
import json
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from typer.testing import CliRunner

from dying import dies_at
from thor_bench.cli.commands import app
from thor_bench.paper import published
from thor_bench.paper.figures import small_factors
from thor_bench.records.reading import read_run
from thor_bench.records.records import RECORDS_FILE
from thor_bench.report.tables import TextTable
from thor_bench.training.train import train as train_run

if TYPE_CHECKING:
    from typing import Any

STEMS = [f"figure-{n}" for n in (1, 2, 3, 4, 5, 6, 8, 9)]
STEMS += [f"figure-{n}-accuracy-epoch" for n in (7, 10)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("TORCH_THOR_CACHE", str(tmp_path / "cache"))


def run(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_papers_own_rows_choose_128() -> None:
    curves = published.split_curves()
    size, height = curves.crossing()
    # The figure is annotated (106, 0.21); straight lines between candidates cross here.
    assert size == pytest.approx(104.5, abs=0.1)
    assert height == pytest.approx(0.2135, abs=1e-3)
    assert curves.choice() == 128


def test_the_papers_numbers_are_read_as_printed() -> None:
    assert published.number(published.TABLE_4, "THOR", "s/epoch") == 102.15
    assert published.times_of_thor() == [(8, 256, 66.7), (128, 4096, 4.1), (256, 8192, 2.7)]


def test_rows_name_their_cells(tmp_path: Path) -> None:
    table = TextTable.of([{"name": "a", "n": "1"}, {"n": "2", "name": "b"}])
    assert (table.headings, table.rows) == (("name", "n"), (("a", "1"), ("b", "2")))
    assert TextTable.of([]).rows == ()
    table.write(tmp_path, "plain")
    table.write(tmp_path, "precise", numbers="n\n1.5\n")
    assert (tmp_path / "plain.csv").read_text() == "name,n\na,1\nb,2\n"
    assert (tmp_path / "precise.csv").read_text() == "n\n1.5\n"
    assert (tmp_path / "plain.md").read_text() == (tmp_path / "precise.md").read_text()


def test_small_factors_are_second_moments_of_one_layer() -> None:
    a, g = small_factors()
    assert a.shape == g.shape == (20, 20)
    for factor in (a, g):
        assert torch.allclose(factor, factor.T)
        assert torch.linalg.eigvalsh(factor.double()).min() > -1e-6
    assert a.diagonal().max() <= 1.0  # outputs of tanh


def test_split_prints_table_1_and_writes_what_auto_reads(tmp_path: Path) -> None:
    result = run("split", "tiny", "--out", tmp_path / "split")
    assert result.exit_code == 0, result.output
    assert re.search(r"curves cross at .* split \d+", result.output)
    rows = list(csv.reader((tmp_path / "split" / "table-1.csv").read_text().splitlines()))
    assert [row[0] for row in rows][2:] == ["time, µs", "normalized loss", "normalized speed"]
    assert rows[4][1] == "1.0000"
    for ending in (".png", "-dark.png", ".pdf"):
        assert (tmp_path / "split" / f"figure-5{ending}").stat().st_size > 1000
    cache = json.loads((tmp_path / "cache" / "inversion_times.json").read_text())
    (times,) = cache["times"].values()
    assert [int(size) for size in times] == [int(size) for size in rows[0][1:]]


def test_paper_writes_everything_and_goes_on_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "paper"
    words = ("paper", "tiny", "--seeds", 1, "--target", 90, "--epochs", 8, "--out", out)
    trained: list[Path] = []

    def stop_in_the_fourth(config: Any, directory: Path, **options: Any) -> Any:
        trained.append(directory)
        if len(trained) == 4:
            options["observers"] = [*options["observers"], _StopsAtOnce()]
        return train_run(config, directory, **options)

    monkeypatch.setattr("thor_bench.paper.runs.train", stop_in_the_fourth)
    stopped = run(*words)
    assert stopped.exit_code == 130
    assert (
        f"go on with: thor paper tiny --seeds 1 --target 90 --epochs 8 --out {out}"
        in stopped.stderr
    )
    before = {path: path.read_bytes() for path in out.rglob(RECORDS_FILE)}
    assert len(before) == 4
    again = run(*words)
    assert again.exit_code == 0, again.output
    assert "min left" in again.output
    finished = [path for path in before if read_run(path.parent).end and path.parent != trained[3]]
    assert len(finished) == 3
    assert all(path.read_bytes() == before[path] for path in finished)
    assert len(trained) == 4 + 13  # 10 optimizers and 6 runs of Figure 9, three of them done
    _check_files(out)
    _check_claims(out)


def _check_files(out: Path) -> None:
    for stem in STEMS:
        for ending in (".png", "-dark.png", ".pdf"):
            assert (out / f"{stem}{ending}").stat().st_size > 1000, stem
    page, text = (out / "paper.html").read_text(), (out / "paper.md").read_text()
    for number in ("Table 1", "Table 2", "Ablation", "Tables 4 and 5", "Figures 7 and 10"):
        assert number in page
        assert number in text
    assert 'src="data:image/png;base64,' in page
    assert re.search(r'(src|href)="(?!data:)', page) is None  # self-contained
    assert "6569.9" in page  # the paper's own numbers stand beside
    numbers = list(csv.DictReader((out / "table-2.csv").read_text().splitlines()))
    for row in numbers:
        run = read_run(out / "runs" / f"{row['optimizer']}-seed0")
        best = max(record.test_metric for record in run.evaluations)
        assert float(row["best_metric_median"]) == best
        assert f"{row['optimizer']}-seed0" in page


@pytest.mark.slow
def test_paper_is_killed_at_any_moment_and_goes_on_with_nothing_lost(tmp_path: Path) -> None:
    out = tmp_path / "paper"
    moments = (
        (dies_at("os.rename", "checkpoint.tmp", 4 * 8 + 3), 4),  # in the fifth run
        (dies_at("open", "checkpoint.tmp", 6 + 8 + 1), 6),  # in the first epoch of the seventh
        (dies_at("open", "figure-2.png"), 16),  # while tables and figures are written
    )
    kept: dict[Path, bytes] = {}
    for moment, ended in moments:
        assert _make_paper(out, moment) == -signal.SIGKILL
        assert all(path.read_bytes() == content for path, content in kept.items())
        records = [path for path in out.rglob(RECORDS_FILE) if path.stat().st_size]
        kept = {path: path.read_bytes() for path in records if read_run(path.parent).end}
        assert len(kept) == ended
    assert _make_paper(out, "") == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    _check_files(out)


def _make_paper(out: Path, watch: str) -> int:
    """Makes the paper of the tiny workload in a process of its own and returns how that ended."""
    script = (
        f"{watch}\n"
        "import runpy; from thor_bench import cli, tasks as workloads\n"
        f"tiny = runpy.run_path({str(Path(__file__).with_name('conftest.py'))!r})['TINY']\n"
        "workloads.WORKLOADS['tiny'] = tiny\n"
        "cli.main()"
    )
    words = ["paper", "tiny", "--seeds", "1", "--epochs", "8", "--out", str(out)]
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode  # noqa: S603


def test_paper_writes_what_is_there_and_says_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "paper"
    words = ("paper", "tiny", "--seeds", 2, "--epochs", 2, "--out", out)
    empty = run(*words, "--write-only")
    assert empty.exit_code == 2
    assert "no run that has ended; make them with: thor paper tiny --seeds 2" in empty.stderr
    made = 0

    def stop_in_the_third(config: Any, directory: Path, **options: Any) -> Any:
        nonlocal made
        made += 1
        if made == 3:
            options["observers"] = [*options["observers"], _StopsAtOnce()]
        return train_run(config, directory, **options)

    monkeypatch.setattr("thor_bench.paper.runs.train", stop_in_the_third)
    run(*words)
    partial = run(*words, "--write-only")
    assert partial.exit_code == 0, partial.output
    text = (out / "paper.md").read_text()
    assert "2 of 26 runs are made so far" in text
    assert [
        line.split("|")[1].strip()
        for line in text.splitlines()
        if " 0/1 " in line or " 1/1 " in line
    ] == ["sgd", "paper-kfac"]
    assert not (out / "figure-9.png").exists()


def _check_claims(out: Path) -> None:
    """Each claim is answered from the records, whichever way."""
    rows = {
        one["claim"]: one for one in csv.DictReader((out / "claims.csv").read_text().splitlines())
    }
    assert len(rows) == 10
    medians = []
    for name in ("paper-thor-sp", "paper-kfac"):
        epochs = read_run(out / "runs" / f"{name}-seed0").epochs
        medians.append(statistics.median(one.epoch_seconds for one in epochs))
    saved = 100 * (1 - medians[0] / medians[1])
    row = rows["The split alone saves time"]
    assert float(row["here"]) == pytest.approx(saved, abs=0.006)
    assert row["verdict"] == ("holds" if saved > 0 else "does not hold")
    assert float(rows["THOR is there before K-FAC"]["paper"]) == 0.39  # 656.8 s and 1704.3 s


class _StopsAtOnce:
    _sent = False

    def observe(self, _record: object) -> None:
        if not self._sent:
            self._sent = True
            signal.raise_signal(signal.SIGINT)

    def close(self) -> None:
        pass

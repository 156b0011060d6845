"""``thor scale``: the pure model by hand and by search, measuring, and the command."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional

from thor_bench.cli.commands import app
from thor_bench.errors import BenchError
from thor_bench.records.disk import measured_once
from thor_bench.scaling import check as check_module
from thor_bench.scaling.check import check_table, fitted_network
from thor_bench.scaling.measure import count_messages, measure_profile
from thor_bench.scaling.model import (
    TOPOLOGIES,
    Assumptions,
    Messages,
    Network,
    Profile,
    Rule,
    exposed,
    step_time,
)
from thor_bench.scaling.networks import NETWORKS, find_network, parse_ranks
from thor_bench.scaling.report import like_ascend, parts_table, predict, step_table
from thor_bench.scaling.scaled_models import MODELS, ScaledModel, build_optimizer, find_model
from thor_bench.scaling.worker import Measured
from torch_thor import Intervals

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SLOW = Network(name="slow", latency=1e-3, bandwidth=1e6)
LEVELS = replace(SLOW, topology="hierarchical", node_size=4, node_latency=1e-4, node_bandwidth=1e7)
SGD = Rule(
    name="sgd", update=0.1, statistics=0.0, inversion=0.0, messages=Messages(gradients=10**6)
)
KFAC = Rule(
    name="kfac",
    update=0.2,
    statistics=1.0,
    inversion=8.0,
    messages=Messages(
        gradients=10**6, statistics=2 * 10**6, traces=1000, inverses=10**6, largest_block=0.25
    ),
)
PROFILE = Profile(
    workload="model",
    device="a device",
    batch=8,
    parameters=250_000,
    forward=1.0,
    backward=2.0,
    rules=(SGD, KFAC),
    note="by hand",
)


def test_an_all_reduce_costs_what_the_formulas_say() -> None:
    # 2 · 3 hops of 1 ms, 2 · 3/4 of a second's worth of bytes
    assert SLOW.all_reduce(10**6, 4) == pytest.approx(0.006 + 1.5)
    tree = replace(SLOW, topology="tree")
    assert tree.all_reduce(10**6, 4) == pytest.approx(0.004 + 1.5)
    assert tree.all_reduce(10**6, 5) == pytest.approx(0.006 + 1.6)
    # in a node of 4: 2 (3 · 0.1 ms + 3/4 · 0.1 s); between two: 2 (1 ms + 1/2 · 0.25 s)
    assert LEVELS.all_reduce(10**6, 8) == pytest.approx(0.1506 + 0.252)
    assert SLOW.all_gather(10**6, 4) == pytest.approx(0.003 + 0.75)
    for network in (SLOW, tree, LEVELS):
        assert network.all_reduce(10**6, 1) == network.all_gather(10**6, 1) == 0


def test_buckets_hide_behind_the_computation_all_but_the_last() -> None:
    network = Network(name="plain", latency=0.0, bandwidth=1.0)
    for hidden_by, expected in ((0.0, 4.0), (2.0, 2.5), (100.0, 1.0)):
        assert exposed(network, 4, 2, bucket=1, hidden_by=hidden_by) == pytest.approx(expected)
    assert exposed(network, 4, 1, bucket=1, hidden_by=0.0) == 0
    assert exposed(network, 0, 2, bucket=1, hidden_by=0.0) == 0


def test_a_step_adds_up() -> None:
    step = step_time(PROFILE, "kfac", SLOW, 2, Assumptions(interval=10))
    assert step.compute == pytest.approx(3.2)
    assert step.gradients == pytest.approx(0.002 + 1.0)  # one bucket: nothing hides
    # one bucket of 2 MB after 1 s of statistics, and 1 kB of traces
    assert step.statistics == pytest.approx((1.0 + 0.002 + 2.0 + 0.002 + 0.001) / 10)
    assert step.owners
    assert step.inversion == pytest.approx((4.0 + 0.001 + 0.5) / 10)
    everywhere = step_time(PROFILE, "kfac", SLOW, 2, Assumptions(interval=10, owners=False))
    assert everywhere.inversion == pytest.approx(0.8)
    # the largest block is a quarter of the work, however many ranks there are
    many = step_time(PROFILE, "kfac", SLOW, 1000, Assumptions(interval=1))
    assert many.inversion == pytest.approx(2.0 + 0.999 + 0.999)
    alone = step_time(PROFILE, "kfac", SLOW, 1, Assumptions(interval=10))
    assert alone.total == pytest.approx(3.2 + 0.1 + 0.8)
    assert alone.efficiency == 1.0
    assert step.efficiency == pytest.approx(alone.total / step.total)


networks = st.builds(
    Network,
    name=st.just("any"),
    latency=st.floats(0, 1e-2),
    bandwidth=st.floats(1e5, 1e11),
    topology=st.sampled_from(TOPOLOGIES),
    node_size=st.integers(1, 16),
    node_latency=st.floats(0, 1e-3),
    node_bandwidth=st.floats(1e5, 1e12),
)
ranks = st.integers(1, 5000)


@given(network=networks, size=st.integers(0, 10**9), n=ranks)
def test_larger_messages_over_more_ranks_take_longer(network: Network, size: int, n: int) -> None:
    slack = 1 + 1e-9
    assert network.all_reduce(size, n) <= network.all_reduce(size + 1000, n) * slack
    assert network.all_reduce(size, n) <= network.all_reduce(size, n + 1) * slack
    assert network.all_gather(size, n) <= network.all_gather(size, n + 1) * slack
    faster = replace(network, bandwidth=2 * network.bandwidth)
    assert faster.all_reduce(size, n) <= network.all_reduce(size, n) * slack


@given(network=networks, n=ranks, overlap=st.floats(0, 1))
def test_sgd_only_loses_by_more_ranks_and_gains_by_overlap(
    network: Network, n: int, overlap: float
) -> None:
    some, full = Assumptions(overlap=overlap), Assumptions(overlap=1.0)
    step = step_time(PROFILE, "sgd", network, n, some)
    assert step.total <= step_time(PROFILE, "sgd", network, n + 1, some).total * (1 + 1e-9)
    assert step_time(PROFILE, "sgd", network, n, full).total <= step.total
    assert step.total >= step_time(PROFILE, "sgd", network, 1, some).total


@given(network=networks, n=ranks)
def test_owners_and_rarer_refreshes_never_make_a_step_longer(network: Network, n: int) -> None:
    often, seldom = Assumptions(interval=5), Assumptions(interval=50)
    alike = replace(often, owners=False)
    step = step_time(PROFILE, "kfac", network, n, often)
    assert step.total <= step_time(PROFILE, "kfac", network, n, alike).total
    assert step_time(PROFILE, "kfac", network, n, seldom).total <= step.total


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"topology": "star"}, r"--topology 'star' is unknown; allowed: hierarchical"),
        ({"latency_us": -1}, r"latency=-1e-06 must be >= 0 seconds"),
        ({"gbit": 0}, r"bandwidth=0 must be > 0 bytes/s"),
        ({"node_size": 0}, r"ranks per node=0 must be >= 1"),
    ],
)
def test_impossible_networks_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BenchError, match=told):
        find_network("10GbE", **changes)


def test_a_changed_network_says_so() -> None:
    network = find_network("10GbE", gbit=8, latency_us=7, topology="tree")
    assert (network.bandwidth, network.topology) == (1e9, "tree")
    assert network.latency == pytest.approx(7e-6)
    assert network.name == "10GbE, changed"
    assert find_network("10GbE") is NETWORKS["10GbE"]
    assert parse_ranks("8, 64,2") == (1, 2, 8, 64)


def _small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


SMALL = ScaledModel(
    name="small",
    build_model=_small,
    draw=lambda samples: (torch.randn(samples, 4), torch.randint(2, (samples,))),
    loss=functional.cross_entropy,
    batch=16,
    split=4,
)


def test_messages_are_counted_from_what_the_optimizer_keeps() -> None:
    def count(name: str) -> Messages:
        model = _small()
        optimizer = build_optimizer(name, model, SMALL, Intervals(1, 1))
        inputs, targets = SMALL.draw(8)
        SMALL.loss(model(inputs), targets).backward()
        optimizer.step()
        return count_messages(model, optimizer)

    gradients = 4 * (4 * 8 + 8 + 8 * 2 + 2)
    assert count("sgd") == Messages(gradients=gradients)
    kfac = count("kfac")
    # A of 5 and 9 rows, G of 8 and 2; two traces and four counts a layer, two numbers to check
    assert kfac.statistics == 4 * (15 + 45 + 36 + 3)
    assert kfac.traces == 8 * (2 + 2 * 6)
    assert kfac.inverses == kfac.statistics + 4 * 4
    assert kfac.largest_block == pytest.approx(9**3 / (5**3 + 9**3 + 8**3 + 2**3))
    # 5 rows in two blocks of 3, 9 in three of 3, 8 in two of 4, 2 in one
    assert count("thor").statistics == 4 * (2 * 6 + 3 * 6 + 2 * 10 + 3)


def test_a_profile_is_measured_saved_and_read(tmp_path: Path) -> None:
    told: list[str] = []
    profile = measure_profile(SMALL, torch.device("cpu"), cycles=1, tell=told.append)
    assert [rule.name for rule in profile.rules] == ["sgd", "kfac", "thor"]
    assert profile.parameters == 58
    assert profile.forward > 0
    assert profile.backward > 0
    assert all(rule.update > 0 for rule in profile.rules)
    assert len(told) == 3
    path = tmp_path / "profile.json"

    def kept(found: Profile, *, again: bool = False) -> Profile:
        return measured_once(path, Profile, lambda: found, again=again, remedy="try --measure")

    other = profile.times(2.0)
    assert kept(profile) == kept(other) == profile
    assert kept(other, again=True) == kept(profile) == other
    path.write_text("{")
    with pytest.raises(BenchError, match=r"profile.json cannot be read .*; try --measure"):
        kept(profile)


def test_the_tasks_have_the_published_sizes() -> None:
    with torch.device("meta"):
        built = {name: task.build_model() for name, task in MODELS.items()}
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in built.items()}
    # Radford et al. 2019: 124 million, the head tied to the embedding, here without its bias
    assert parameters["gpt2-small"] == 124_439_808
    inputs, targets = find_model("gpt2-small").draw(2)
    assert inputs.shape == targets.shape == (2, 1024)


def test_tables_show_each_number_of_ranks() -> None:
    prediction = predict(PROFILE, SLOW, (1, 2), Assumptions(interval=10))
    table = step_table(prediction)
    assert table.headings == ("ranks", "sgd, ms", "efficiency, %", "kfac, ms", "efficiency, %")
    assert table.rows[0] == ("1", "3100.0", "100.0", "4100.0", "100.0")
    assert table.rows[1][:3] == ("2", "4102.0", "75.6")
    assert len(parts_table(prediction).rows) == 4


def test_the_paper_s_device_takes_90_seconds_for_an_epoch_of_sgd() -> None:
    profile = replace(PROFILE, batch=32)
    assumptions, network = Assumptions(), NETWORKS["ascend"]
    scaled = like_ascend(profile, network, assumptions)
    step = step_time(scaled, "sgd", network, 8, assumptions).total
    assert step * (1_281_167 // 256) == pytest.approx(90.0)


def test_a_check_fits_its_network_and_compares() -> None:
    ring = Network(name="real", latency=1e-4, bandwidth=1e9)
    run = Measured(
        ranks=4,
        messages={size: ring.all_reduce(size, 4) for size in (1000, 10**6)},
        steps={"sgd": 6.2, "kfac": 20.0},
        sent={"sgd": 0.0, "kfac": 2_001_000.0},
        profile=None,
    )
    fitted = fitted_network(run)
    assert fitted.latency == pytest.approx(1e-4)
    assert fitted.bandwidth == pytest.approx(1e9)
    sgd, row = check_table(PROFILE, [run], cores=2).rows
    # four processes take turns on two cores: all of 3.1 s twice, and the gradients' message
    assert sgd[1] == f"{1e3 * (6.2 + ring.all_reduce(10**6, 4)):.1f}"
    assert row[0] == "4 ranks, kfac"
    assert row[4:] == ("2001000", "2001000")


def test_two_real_ranks_send_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "CHECKED", (2,))
    monkeypatch.setattr(check_module, "CYCLES", 1)
    rows = check_table(*check_module.run_check()).rows
    assert [row[0] for row in rows] == ["2 ranks, sgd", "2 ranks, kfac", "2 ranks, thor"]
    assert all(row[4] == row[5] for row in rows)
    assert all(float(row[1]) > 0 < float(row[2]) for row in rows)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        app(["scale", *words], prog_name="thor")
    told = capsys.readouterr()
    return int(str(ended.value.code)), told.out, told.err


def test_the_command_writes_tables_and_figures_from_a_saved_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "imagenet-resnet50"
    thor = replace(KFAC, name="thor", statistics=0.01, inversion=0.01)
    profile = replace(PROFILE, workload=name, batch=32, rules=(SGD, KFAC, thor))
    (tmp_path / f"profile-{name}.json").write_bytes(TypeAdapter(Profile).dump_json(profile))
    words = (name, "--network", "25GbE", "--ranks", "8,256", "--step-ms", "30")
    code, out, _ = run(capsys, *words, "--out", str(tmp_path))
    assert code == 0
    assert "by hand" in out
    stem = f"{name}-25GbE-30ms"
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"{stem}.md", f"{stem}.csv", f"{stem}.png", "profiles.md", "paper.md"} <= names
    assert len((tmp_path / f"{stem}.md").read_text().splitlines()) == 2 + 3
    assert "66.7" in (tmp_path / "paper.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("cifar",), "WORKLOAD 'cifar' is unknown; allowed: cifar10-resnet18, gpt2-small"),
        (("--network", "token-ring"), "--network 'token-ring' is unknown; allowed: 100GbE"),
        (("--ranks", "0"), "--ranks '0' must be a whole number"),
        (("--interval", "0"), "--interval=0 must be >= 1 step"),
        (("--overlap", "2"), "--overlap=2 must be in 0 … 1"),
        (("--step-ms", "0"), "--step-ms 0 must be > 0 milliseconds"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_measured(
    words: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *words, "--out", str(tmp_path / "out"))
    assert code == 2
    assert told in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()

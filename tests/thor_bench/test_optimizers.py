"""Optimizers as the bench builds them: every parameter trains, schedules and views are right."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from thor_bench.errors import BenchError
from thor_bench.optimizers.flattened import as_matrix
from thor_bench.optimizers.learning_rates import factor
from thor_bench.optimizers.peer import Takes, Training
from thor_bench.optimizers.peers import muon, thor
from thor_bench.optimizers.peers.muon import FlattenedMuon, MuonSettings
from thor_bench.optimizers.peers.sgd import SGDSettings
from thor_bench.optimizers.peers.thor import THORSettings
from thor_bench.optimizers.recipes import RunOptions, plan_run
from thor_bench.optimizers.registry import OPTIMIZERS
from thor_bench.optimizers.rule import build_rule
from thor_bench.optimizers.settings import OwnSettings, from_values, override, to_values
from thor_bench.records.config import DataSource
from thor_bench.tasks import find_task
from thor_bench.tasks.data import TensorSplit, TrainTest
from thor_bench.tasks.gpt import GPT
from thor_bench.training.session import Session
from torch_thor import THOR, NormControl
from torch_thor.update.optimizer import CurvatureOptimizer

if TYPE_CHECKING:
    from thor_bench.tasks import Likelihood, Task


@pytest.mark.parametrize(
    "name", sorted(name for name, peer in OPTIMIZERS.items() if peer.takes is Takes.GRADIENTS)
)
def test_every_parameter_moves(name: str) -> None:
    if told := OPTIMIZERS[name].lacks():
        pytest.skip(told)
    workload = find_task("digits")
    config = plan_run(workload, name, seed=0)
    model = workload.build()
    before = {key: value.clone() for key, value in model.named_parameters()}
    rule = build_rule(model, config, steps_per_epoch=2)
    for _ in range(2):  # SOAP takes its basis from the first step and moves nothing in it
        loss = workload.loss_of(model, (torch.randn(16, 1, 8, 8), torch.arange(16) % 10))
        rule.zero_grad()
        loss.backward()
        rule.step()
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert still == []


@pytest.mark.parametrize("name", ["thor", "kfac", "ekfac"])
def test_curvature_learns_what_the_loss_is_a_mean_over(name: str) -> None:
    for workload, reduction in (("digits", "mean"), ("text-gpt", "positions_mean")):
        task = find_task(workload)
        rule = build_rule(task.build(), plan_run(task, name, seed=0), steps_per_epoch=2)
        (optimizer,) = rule.optimizers
        assert isinstance(optimizer, CurvatureOptimizer)
        assert optimizer.engine.options.statistics.loss_reduction == reduction


def test_muon_leaves_embeddings_and_head_to_the_rest() -> None:
    model = GPT(symbols=11, context=8, width=16, blocks=1, heads=2)
    settings = MuonSettings(rest="adamw", rest_lr=0.003)
    hidden, rest = muon.build(Training(model, 1), settings)
    assert isinstance(rest, torch.optim.AdamW)
    kept = {id(p) for group in rest.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if p.dim() >= 2 and id(p) in kept}
    assert names == {"symbols.weight", "positions.weight", "head.weight"}
    assert sum(len(group["params"]) for group in hidden.param_groups) == 4
    without = muon.build(Training(model, 1), replace(settings, exclude_head=False))[1]
    kept = {id(p) for group in without.param_groups for p in group["params"]}
    assert id(model.head.weight) not in kept


def test_thor_trains_the_rest_by_the_rule_that_is_asked_for() -> None:
    settings = THORSettings(base="adamw", base_lr_scale=0.15)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    (optimizer,) = thor.build(Training(model, 1), settings)
    model(torch.randn(5, 3)).square().sum().backward()
    weight = model.get_parameter("1.weight")
    before = weight.clone()
    optimizer.step()
    moved = (weight - before).abs()
    assert moved.tolist() == pytest.approx([0.15 * settings.lr] * 4, rel=0.05)  # Adam's first step


def test_rows_are_evened_where_the_settings_ask_for_it() -> None:
    training = Training(nn.Linear(3, 2), steps_per_epoch=4)
    (optimizer,) = thor.build(training, THORSettings(lr=0.1, norm_control="rms", row_decay=0.9))
    assert isinstance(optimizer, CurvatureOptimizer)
    assert optimizer.norm_control == NormControl("rms", row_decay=0.9)
    with pytest.raises(BenchError, match="needs a norm_control"):
        thor.build(training, THORSettings(lr=0.1, norm_control=None, row_decay=0.9))


def test_triangle_rises_to_one_and_falls_to_zero() -> None:
    triangle = factor(SGDSettings(warmup=0.15), steps_per_epoch=100, epochs=1)
    values = [triangle(step) for step in range(101)]
    assert max(values) == values[14] == pytest.approx(1.0)
    assert values[:14] == pytest.approx([(step + 1) / 15 for step in range(14)])
    falls = [a - b for a, b in pairwise(values[14:])]
    assert falls == pytest.approx([falls[0]] * len(falls))
    assert values[100] == 0.0
    assert all(0 < value <= 1 for value in values[:100])


def test_the_constant_schedule_stays_up() -> None:
    rate = factor(SGDSettings(schedule="constant", warmup=0.1), steps_per_epoch=10, epochs=10)
    assert [rate(step) for step in range(9)] == pytest.approx([(s + 1) / 10 for s in range(9)])
    assert {rate(step) for step in range(9, 100)} == {1.0}


def test_schedule_free_evaluates_the_average_of_the_weights(tiny: Task) -> None:
    config = plan_run(tiny, "schedule-free", seed=0, changes=["warmup=0", "beta1=0.5"])
    session = Session(config, tiny, DataSource())
    weight = next(session.model.parameters())
    targets = []
    for batch in session.data.batches(0):
        session.update(session.loss(batch))
        targets.append(session.rule.optimizers[0].state[weight]["z"].clone())
    training = weight.detach().clone()
    session.rule.evaluation()
    averaged = weight.detach().clone()
    # a constant rate: the plain mean of the sequence z
    assert torch.allclose(averaged, torch.stack(targets).mean(dim=0), atol=1e-6)
    session.rule.training()
    assert torch.allclose(weight, training, atol=1e-6)
    assert not torch.allclose(averaged, training, atol=1e-4)
    seen = []
    session.model.register_forward_pre_hook(lambda *_: seen.append(weight.detach().clone()))
    session.evaluate()
    assert torch.allclose(seen[0], averaged, atol=1e-6)
    assert torch.allclose(weight, training, atol=1e-6)


def _autoencoder() -> Task:
    images = torch.rand(40, 784)
    splits = TrainTest(TensorSplit(images, images), TensorSplit(images, images))
    return replace(find_task("fashion-autoencoder"), load=lambda _: splits, batch_size=20)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_statistics_of_drawn_labels(
    likelihood: str, tiny: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = tiny if likelihood == "categorical" else _autoencoder()
    asked, norms = [], []
    drawing = THOR.sample_fisher

    def noting(self: THOR, outputs: torch.Tensor, kind: Likelihood) -> None:
        asked.append(kind)
        drawing(self, outputs, kind)

    monkeypatch.setattr(THOR, "sample_fisher", noting)
    for fisher in ("empirical", "mc"):
        config = plan_run(workload, "thor", seed=0, changes=[f"fisher={fisher}"])
        session = Session(config, workload, DataSource())
        session.update(session.loss(next(session.data.batches(0))))
        (optimizer,) = session.rule.optimizers
        assert isinstance(optimizer, THOR)
        norms.append(list(optimizer.factor_norms().values()))
    assert asked == [likelihood]
    assert len(norms[0]) == len(norms[1]) > 0
    assert all(one != other for one, other in zip(*norms, strict=True))


@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.15, 0.99])
def test_triangle_is_sound_in_short_runs(total: int, warmup: float) -> None:
    triangle = factor(SGDSettings(warmup=warmup), steps_per_epoch=total, epochs=1)
    assert all(0 < triangle(step) <= 1 for step in range(total))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_flattened_muon_equals_muon_on_the_matrix(memory_format: torch.memory_format) -> None:
    weight = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=memory_format))
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    flattened = FlattenedMuon([weight], **options)
    reference = torch.optim.Muon([matrix], **options)
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3)
        weight.grad, matrix.grad = gradient, gradient.flatten(1)
        flattened.step()
        reference.step()
    # bfloat16 inside Newton–Schulz: another order of columns rounds otherwise
    assert torch.allclose(weight.flatten(1), matrix, atol=2e-2)
    flattened.zero_grad()
    assert weight.grad is None


@pytest.mark.parametrize("name", ["muon", "muon-polar", "normuon", "adamuon"])
def test_relatives_of_muon_have_their_authors_rates(name: str) -> None:
    untuned = RunOptions(preset="defaults")
    config = plan_run(find_task("text-gpt"), name, seed=0, options=untuned)
    model = GPT(symbols=11, context=8, width=16, blocks=1, heads=2)
    hidden, rest = build_rule(model, config, steps_per_epoch=10).optimizers
    assert isinstance(rest, torch.optim.AdamW)
    assert [o.param_groups[0]["initial_lr"] for o in (hidden, rest)] == [0.02, 3e-3]
    assert len(hidden.param_groups[0]["params"]) == 4  # the block's matrices
    assert (
        sum(len(group["params"]) for group in rest.param_groups) == len([*model.parameters()]) - 4
    )


def muons_step(gradient: torch.Tensor, **changes: Any) -> torch.Tensor:
    """Muon's first step on a matrix, as a multiple of the rate."""
    model = nn.Linear(gradient.shape[1], gradient.shape[0], bias=False)
    settings = MuonSettings(lr=1.0, weight_decay=0.0, exclude_head=False, **changes)
    before = model.weight.detach().clone()
    (optimizer,) = muon.build(Training(model, 1), settings)
    model.weight.grad = gradient.clone()
    optimizer.step()
    return before - model.weight.detach()


def test_polar_express_comes_closer_and_rows_are_evened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda _device: False)  # no rounding
    torch.manual_seed(0)
    gradient = torch.randn(12, 24) * torch.logspace(0, 1, 12)[:, None]
    spread = [
        torch.linalg.svdvals(muons_step(gradient, coefficients=name)).std()
        for name in ("original", "polar_express")
    ]
    assert spread[1] < 0.8 * spread[0]
    plain, even = (muons_step(gradient, row_decay=decay) for decay in (None, 0.9))
    assert even.norm(dim=1).std() < 1e-3 < plain.norm(dim=1).std()
    assert torch.isclose(even.norm(), plain.norm(), rtol=0.02)


def test_kron_takes_convolutions_as_matrices() -> None:
    if told := OPTIMIZERS["kron"].lacks():
        pytest.skip(told)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(5, 3))
    config = plan_run(find_task("digits"), "kron", seed=0)
    rule = build_rule(model, config, steps_per_epoch=2)
    model(torch.randn(4, 2, 3, 3)).square().sum().backward()
    rule.step()
    sides = [[len(q) for q in state["Q"]] for state in rule.optimizers[0].state.values()]
    assert sides == [[5, 18], [5], [3, 5], [3]]


@pytest.mark.parametrize("native", [True, False])
def test_muon_multiplies_in_the_type_that_the_processor_has(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda _device: native)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(12, 8))
    weight.grad = gradient = torch.randn(12, 8)
    FlattenedMuon([weight], lr=1.0, momentum=0.0, weight_decay=0.0).step()
    step = -weight.detach() / (12 / 8) ** 0.5  # torch's factor for tall matrices
    # Five quintic steps of Jordan et al. 2024, in float64
    x = gradient.double().T / gradient.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    error = (step.double() - x.T).abs().max().item()
    assert (error > 1e-5) is native
    assert error < 5e-2  # bfloat16 has 8 bits, and five steps pass them on


def test_as_matrix_is_a_view_in_both_layouts() -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        tensor = torch.randn(5, 4, 3, 3).to(memory_format=memory_format)
        assert as_matrix(tensor).data_ptr() == tensor.data_ptr()
        assert as_matrix(tensor).shape == (5, 36)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_settings_come_back_from_plain_values_and_from_text(name: str) -> None:
    settings: OwnSettings = OPTIMIZERS[name].settings
    assert from_values(type(settings), to_values(settings)) == settings
    texts = [f"{key}={value}" for key, value in to_values(settings).items()]
    assert override(settings, texts) == settings


def test_the_later_of_two_changes_holds() -> None:
    assert override(SGDSettings(), ["lr=1", "lr = 0.5"]).lr == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [("auto", "auto"), ("per_layer", "per_layer"), ("none", None), ("64", 64)],
)
def test_split_takes_a_number_a_word_or_none(text: str, value: object) -> None:
    assert override(THORSettings(), [f"split={text}"]).split == value

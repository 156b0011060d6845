"""Directions and steps against the float64 oracle, over every layer and option."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import (
    EXACT,
    EXACT_THOR,
    Scale,
    convnet,
    data,
    default_fused,
    gradient_matrices,
    gradient_of,
    half_square,
    mean_half_square,
    mlp,
    train,
    weights,
)
from oracle import (
    RunningAverage,
    damped,
    direction,
    ekfac_direction,
    factors,
    grafted,
    inverse_power,
    observe,
    relative_change,
    with_rms,
)
from strategies import PADDING_MODES, convolutions, linears
from torch_thor import (
    EKFAC,
    KFAC,
    THOR,
    Base,
    Damping,
    Decision,
    GrowingInterval,
    Preconditioner,
    Refresh,
    Statistics,
    TraceRule,
    Update,
)

Sharing = Literal["expand", "reduce"]
Mode = Literal["both", "sqrt", "pi", "relative"]
MODES: list[Mode] = ["both", "sqrt", "pi", "relative"]
# Literal eq. 6: whole factors, inverses, λ on each.
PAPER: dict[str, Any] = {"damping": Damping(0.1, "both"), "split": None, "power": 1.0}


def check_direction(
    layer: nn.Module,
    inputs: Tensor,
    sharing: Literal["expand", "reduce"] = "expand",
    **options: Any,
) -> None:
    """One backward, one step of the preconditioner, one comparison per weight matrix."""
    with torch.no_grad():
        targets = torch.randn_like(layer(inputs))
    seen = observe(layer, "", inputs, targets, half_square)
    statistics = Statistics(decay=0.0, rows=None, weight_sharing=sharing)
    preconditioner = Preconditioner(layer, **{**EXACT, "statistics": statistics, **options})
    mean_half_square(layer(inputs), targets).backward()
    preconditioner.step()
    damping: Damping = options["damping"]
    assert not callable(damping.value)
    for found, one in zip(gradient_matrices(layer), seen, strict=True):
        expected = direction(
            one.mean_gradient,
            *factors(one, sharing),
            damping=damping.value,
            mode=damping.mode,
            power=options["power"],
            split=options["split"],
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@given(
    convolutions(3) | linears(3),
    st.sampled_from(MODES),
    st.sampled_from([1.0, 0.5]),
    st.none() | st.integers(1, 8),
    st.sampled_from([1e-3, 0.1, 1.0]),
    st.sampled_from(["expand", "reduce"]),
)
def test_any_layer_under_any_option_matches_the_literal_kronecker_inverse(
    drawn: tuple[nn.Module, Tensor],
    mode: Mode,
    power: float,
    split: int | None,
    value: float,
    sharing: Sharing,
) -> None:
    layer, inputs = drawn
    check_direction(layer, inputs, sharing, damping=Damping(value, mode), power=power, split=split)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, (2, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("padding", ["same", "valid", (1, 2), 0])
def test_every_convolution_geometry(
    bias: bool, groups: int, stride: Any, dilation: int, mode: Any, padding: Any
) -> None:
    """Case 13: the whole grid, so that no combination waits for a lucky draw."""
    if padding == "same" and stride != 1:
        stride = 1  # torch allows no other
    layer = nn.Conv2d(
        4,
        4,
        (2, 3),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding_mode=mode,
    ).double()
    inputs = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    check_direction(layer, inputs, damping=Damping(0.1, "both"), power=1.0, split=5)


def test_a_one_by_one_convolution_equals_linear_over_positions() -> None:
    """Case 13."""
    conv, linear = nn.Conv2d(3, 2, 1).double(), nn.Linear(3, 2).double()
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    images = torch.randn(4, 3, 2, 3).double()
    targets = torch.randn(4, 2, 2, 3).double()
    for layer, x, y in (
        (conv, images, targets),
        (linear, images.permute(0, 2, 3, 1), targets.permute(0, 2, 3, 1)),
    ):
        preconditioner = Preconditioner(layer, **EXACT, **PAPER)
        mean_half_square(layer(x), y).backward()
        preconditioner.step()
    torch.testing.assert_close(next(gradient_matrices(conv)), next(gradient_matrices(linear)))


def test_every_layer_of_a_network_gets_its_own_direction() -> None:
    model = convnet().double()
    inputs, targets = data(4, 2, 6, 6, dtype=torch.float64)
    seen = {name: observe(model, name, inputs, targets, half_square) for name in ("0", "2", "5")}
    preconditioner = Preconditioner(model, **EXACT, **PAPER)
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    for name, groups in seen.items():
        found = gradient_matrices(model.get_submodule(name))
        for matrix, one in zip(found, groups, strict=True):
            expected = direction(one.mean_gradient, *factors(one), damping=0.1)
            torch.testing.assert_close(matrix, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_is_the_learning_rate_times_the_direction(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    inputs, targets = data(8, dtype=dtype)
    seen = observe(model, "0", inputs, targets, half_square)[0]
    optimizer = THOR(model, lr=0.3, momentum=0.0, weight_decay=0.0, **EXACT_THOR, **PAPER)
    weight, bias = weights(model[0])
    before = torch.cat([weight, bias[:, None]], dim=1)
    train(model, optimizer, [(inputs, targets)])
    weight, bias = weights(model[0])
    after = torch.cat([weight, bias[:, None]], dim=1)
    expected = direction(seen.mean_gradient, *factors(seen), damping=0.1).to(dtype)
    torch.testing.assert_close((before - after) / 0.3, expected, rtol=1e-3, atol=1e-5)


def test_factors_are_averaged_over_steps_with_the_first_one_unbiased() -> None:
    model = mlp().double()
    preconditioner = Preconditioner(
        model, **{**EXACT, "statistics": Statistics(decay=0.7, rows=None)}, **PAPER
    )
    averages = RunningAverage(0.7), RunningAverage(0.7)
    for _ in range(4):
        inputs, targets = data(8, dtype=torch.float64)
        seen = observe(model, "0", inputs, targets, half_square)[0]
        A, G = (mean.add(new) for mean, new in zip(averages, factors(seen), strict=True))
        model.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        preconditioner.step()
        expected = direction(seen.mean_gradient, A, G, damping=0.1)
        torch.testing.assert_close(next(gradient_matrices(model[0])), expected)


def test_between_refreshes_the_old_inverse_meets_the_new_gradient() -> None:
    model = mlp().double()
    preconditioner = Preconditioner(
        model, **{**EXACT, "factor_interval": 1, "inverse_interval": 3}, **PAPER
    )
    used: tuple[Tensor, Tensor] | None = None
    for step in range(7):
        inputs, targets = data(8, dtype=torch.float64)
        seen = observe(model, "0", inputs, targets, half_square)[0]
        if step % 3 == 0:
            used = factors(seen)
        assert used is not None
        model.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        preconditioner.step()
        expected = direction(seen.mean_gradient, *used, damping=0.1)
        torch.testing.assert_close(next(gradient_matrices(model[0])), expected)
        assert bool(preconditioner.last_decisions) == (step % 3 == 0)


def test_a_growing_interval_refreshes_less_and_less_often() -> None:
    model = mlp()
    preconditioner = Preconditioner(
        model, factor_interval=GrowingInterval(2, growth=2.0), refresh=Refresh(stagger=False)
    )
    refreshed = []
    for step in range(31):
        inputs, targets = data(8)
        model.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        preconditioner.step()
        if preconditioner.last_decisions:
            refreshed.append(step)
            assert [d.layer for d in preconditioner.last_decisions] == ["0", "2"]
            assert {d.step for d in preconditioner.last_decisions} == {step}
    assert refreshed == [0, 2, 6, 14, 30]


def test_staggering_refreshes_every_layer_once_a_cycle_but_not_all_at_once() -> None:
    model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(4)], nn.Linear(5, 3))
    optimizer = THOR(
        model, norm_control="graft", lr=1e-4, interval=10, refresh=Refresh(stagger=True)
    )
    seen: dict[str, list[int]] = {}
    for step in range(30):
        train(model, optimizer, [data(8)])
        for decision in optimizer.last_decisions:
            seen.setdefault(decision.layer, []).append(step)
    assert {steps[0] for steps in seen.values()} == {0}, "no layer can wait for its first inverse"
    assert all([step // 10 for step in steps] == [0, 1, 2] for steps in seen.values())
    assert len({steps[1] for steps in seen.values()}) > 1


@pytest.mark.parametrize("reading", ["factors", "product"])
@pytest.mark.parametrize("value", [0.05, 2.0])
def test_change_is_eq_8_on_the_factors_in_use(
    reading: Literal["factors", "product"], value: float
) -> None:
    model = nn.Linear(5, 3).double()
    preconditioner = Preconditioner(
        model,
        **{
            **EXACT,
            "trace_rule": TraceRule(0.0, 0.0, damped_trace=reading),
        },
        **{**PAPER, "damping": Damping(value, "both")},
    )
    before: tuple[Tensor, Tensor] | None = None
    for _ in range(4):
        inputs, targets = data(8, dtype=torch.float64)
        now = factors(observe(model, "", inputs, targets, half_square)[0])
        model.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        preconditioner.step()
        (decision,) = preconditioner.last_decisions
        if before is None:
            assert decision.change == float("inf")
        elif reading == "product":
            assert decision.change == pytest.approx(relative_change(before, now, value))
        else:
            old, new = (damped(*pair, value, "both") for pair in (before, now))
            assert decision.change == pytest.approx(relative_change(old, new, 0.0))
        assert decision.decision is Decision.UPDATE
        before = now


def test_kept_layers_keep_their_inverse_and_frozen_ones_never_refresh_again() -> None:
    def directions(rule: TraceRule | None, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        torch.manual_seed(5)
        model = nn.Linear(5, 3).double()
        preconditioner = Preconditioner(model, **{**EXACT, "trace_rule": rule}, **PAPER)
        found = []
        for inputs, targets in batches:
            model.zero_grad()
            mean_half_square(model(inputs), targets).backward()
            preconditioner.step()
            found.append(gradient_of(model.weight).clone())
            said.append([d.decision for d in preconditioner.last_decisions])
        return found

    said: list[list[Decision]] = []
    inputs, targets = data(8, dtype=torch.float64)
    louder = 10 * inputs
    batches = [(inputs, targets), (1.001 * inputs, targets), (louder, targets)]

    kept = directions(TraceRule(update_above=1.0, freeze_below=0.0), batches)
    assert said == [[Decision.UPDATE], [Decision.KEEP], [Decision.UPDATE]]
    fresh = directions(None, batches)
    torch.testing.assert_close(kept[2], fresh[2])
    assert not torch.allclose(kept[1], fresh[1])

    said.clear()
    frozen = directions(TraceRule(update_above=1.0, freeze_below=0.9), batches)
    assert said == [[Decision.UPDATE], [Decision.FREEZE], []]
    assert not torch.allclose(frozen[2], fresh[2])


def test_the_frobenius_rule_measures_how_far_the_averages_move() -> None:
    model, decay, threshold = nn.Linear(5, 3).double(), 0.8, 0.3
    rule = TraceRule(threshold, 0.0, compare="distance")
    exact = {**EXACT, "trace_rule": rule, "statistics": Statistics(decay=decay, rows=None)}
    preconditioner = Preconditioner(model, **exact, **PAPER)
    average: tuple[Tensor, Tensor] | None = None
    weight, said = 0.0, set()
    for _ in range(8):
        inputs, targets = data(8, dtype=torch.float64)
        now = factors(observe(model, "", inputs, targets, half_square)[0])
        model.zero_grad()
        mean_half_square(model(inputs), targets).backward()
        preconditioner.step()
        (decision,) = preconditioner.last_decisions
        following = decay * weight + 1.0 - decay
        share = (1.0 - decay) / following
        if average is None:
            average, weight = now, following
            continue
        moved = [(1 - share) * old + share * new for old, new in zip(average, now, strict=True)]
        gaps = [
            torch.linalg.matrix_norm(new - old) / torch.linalg.matrix_norm(old)
            for old, new in zip(average, moved, strict=True)
        ]
        assert decision.change == pytest.approx(float(max(gaps)))
        updated = decision.change > threshold
        assert decision.decision is (Decision.UPDATE if updated else Decision.KEEP)
        said.add(decision.decision)
        if updated:
            average, weight = (moved[0], moved[1]), following
    assert said == {Decision.UPDATE, Decision.KEEP}


def test_a_kept_layer_pays_for_no_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    preconditioner = Preconditioner(
        model,
        factor_interval=1,
        refresh=Refresh(stagger=False),
        trace_rule=TraceRule(update_above=1e9, freeze_below=0.0),
    )
    inputs, targets = data(8)
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()

    def forbidden(*_: object) -> None:
        raise AssertionError("a covariance or an inverse was formed for a kept layer")

    monkeypatch.setattr("torch_thor.curvature.block_batch.BlockBatch.grams", forbidden)
    monkeypatch.setattr("torch_thor.linalg.inverse_root", forbidden)
    mean_half_square(model(inputs), targets).backward()
    preconditioner.step()
    assert {d.decision for d in preconditioner.last_decisions} == {Decision.KEEP}


def matrix_of(layer: nn.Linear) -> Tensor:
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().clone()


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum_first", [False, True])
def test_the_order_of_momentum_preconditioning_and_decay(
    momentum_first: bool, nesterov: bool, decoupled: bool
) -> None:
    """precondition → add decay → momentum is the authors' order; the others are options."""
    lr, momentum, decay = 0.2, 0.9, 0.1
    model = nn.Linear(5, 3).double()
    optimizer = THOR(
        model,
        lr=lr,
        momentum=momentum,
        weight_decay=decay,
        update=Update(nesterov, momentum_first, decoupled),
        **EXACT_THOR,
        **PAPER,
    )
    W, buffer = matrix_of(model), torch.zeros(3, 6, dtype=torch.float64)
    for _ in range(3):
        inputs, targets = data(8, dtype=torch.float64)
        seen = observe(model, "", inputs, targets, half_square)[0]
        A, G = damped(*factors(seen), 0.1, "both")
        gradient = seen.mean_gradient
        shrunk = (1 - lr * decay) * W if decoupled else W
        added = 0 * W if decoupled else decay * W
        if momentum_first:
            buffer = momentum * buffer + gradient
            source = gradient + momentum * buffer if nesterov else buffer
            step = inverse_power(G, 1) @ source @ inverse_power(A, 1) + added
        else:
            ours = inverse_power(G, 1) @ gradient @ inverse_power(A, 1) + added
            buffer = momentum * buffer + ours
            step = ours + momentum * buffer if nesterov else buffer
        W = shrunk - lr * step
        train(model, optimizer, [(inputs, targets)])
        torch.testing.assert_close(matrix_of(model), W)


@pytest.mark.parametrize("control", ["graft", "rms"])
def test_norm_control_scales_the_whole_layer(control: Any) -> None:
    model = nn.Linear(5, 3).double()
    inputs, targets = data(8, dtype=torch.float64)
    seen = observe(model, "", inputs, targets, half_square)[0]
    raw = direction(seen.mean_gradient, *factors(seen), damping=0.1)
    expected = grafted(raw, seen.mean_gradient) if control == "graft" else with_rms(raw, 1 / 6**0.5)
    optimizer = THOR(
        model,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.0,
        **{**EXACT_THOR, "norm_control": control},
        **PAPER,
    )
    before = matrix_of(model)
    train(model, optimizer, [(inputs, targets)])
    torch.testing.assert_close((before - matrix_of(model)) / 0.1, expected)


def test_kfac_without_norm_control_is_the_literal_paper_update() -> None:
    model = nn.Linear(5, 3).double()
    optimizer = KFAC(model, lr=0.1, damping=0.2, norm_control=None)
    inputs, targets = data(8, dtype=torch.float64)
    seen = observe(model, "", inputs, targets, half_square)[0]
    before = matrix_of(model)
    train(model, optimizer, [(inputs, targets)])
    mode = optimizer.engine.options.damping.mode
    step = direction(seen.mean_gradient, *factors(seen), damping=0.2, mode=mode) + 5e-4 * before
    torch.testing.assert_close(matrix_of(model), before - 0.1 * step)


def test_a_number_for_kfacs_damping_means_lambda_on_each_factor() -> None:
    """eq. 6: a plain number must not switch to another mode than the documented default's."""
    assert KFAC(mlp(), damping=0.2).engine.options.damping.mode == "both"


@given(linears(5))
def test_ekfac_rescales_in_the_eigenbasis_by_exact_second_moments(
    drawn: tuple[nn.Linear, Tensor],
) -> None:
    layer, inputs = drawn
    inputs = inputs.reshape(len(inputs), -1, layer.in_features)[:, 0]  # one position a sample
    targets = torch.randn(len(inputs), layer.out_features, dtype=torch.float64)
    seen = observe(layer, "", inputs, targets, half_square)[0]
    optimizer = EKFAC(
        layer,
        lr=1.0,
        momentum=0.0,
        weight_decay=0.0,
        norm_control=None,
        damping=Damping(0.1, "both"),
        statistics=Statistics(decay=0.0, rows=None),
    )
    before = layer.weight.detach().clone()
    train(layer, optimizer, [(inputs, targets)])
    expected = ekfac_direction(seen, seen.mean_gradient, *factors(seen), damping=0.1)
    torch.testing.assert_close(
        before - layer.weight.detach(), expected[:, : layer.in_features], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_other_parameters_train_by_torchs_own_rule(
    rule: Literal["sgd", "adamw"], nesterov: bool
) -> None:
    model = nn.Sequential(Scale(5), nn.Linear(5, 3), Scale(3))
    twin = nn.Sequential(Scale(5), nn.Linear(5, 3), Scale(3))
    twin.load_state_dict(model.state_dict())
    optimizer = THOR(
        model,
        norm_control="graft",
        lr=0.1,
        base=Base(rule, lr_scale=0.5, weight_decay=0.01),
        update=Update(nesterov),
    )
    others = [p for name, p in twin.named_parameters() if not name.startswith("1.")]
    reference: torch.optim.Optimizer = (
        torch.optim.SGD(others, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
        if rule == "sgd"
        else torch.optim.AdamW(
            others,
            lr=0.05,
            weight_decay=0.01,
            betas=(0.9, 0.95),
            fused=default_fused(),
        )
    )
    for _ in range(3):
        inputs, targets = data(8)
        train(model, optimizer, [(inputs, targets)])
        twin.zero_grad()
        mean_half_square(twin(inputs), targets).backward()
        reference.step()
        twin[1].load_state_dict(model[1].state_dict())
        for index in (0, 2):
            for one, other in zip(model[index].parameters(), twin[index].parameters(), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_gradient_may_lie_in_memory_otherwise_than_its_parameter(
    rule: Literal["sgd", "adamw"],
) -> None:
    """torch's fused AdamW walks through memory; it is not taken then."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = THOR(
            model, norm_control="graft", lr=0.1, weight_decay=0.0, exclude=("*",), base=Base(rule)
        )
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape)
            model.weight.grad = gradient_of(model.weight).contiguous(memory_format=layout)
            optimizer.step()
        found.append(model.weight.detach().clone())
    torch.testing.assert_close(*found)


def test_excluded_layers_train_by_the_base_rule_and_say_so() -> None:
    model = mlp()
    optimizer = THOR(model, norm_control="graft", exclude=("2",))
    report = {entry.name: entry for entry in optimizer.coverage()}
    assert report["2.weight"].reason == "excluded"
    assert [layer.name for layer in optimizer.engine.layers] == ["0"]
    for exclude in ((nn.Linear,), ("*",)):
        assert THOR(mlp(), norm_control="graft", exclude=exclude).engine.layers == []


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_sampled_rows_estimate_the_same_factors(rows: int) -> None:
    """A row budget changes the noise, never the scale."""
    layer = nn.Conv2d(2, 3, 2).double()
    inputs, targets = torch.randn(4, 2, 4, 4).double(), torch.randn(4, 3, 3, 3).double()
    exact = factors(observe(layer, "", inputs, targets, half_square)[0])
    totals = [torch.zeros_like(one) for one in exact]
    draws = 100
    for seed in range(draws):
        preconditioner = Preconditioner(
            layer,
            **{**EXACT, "statistics": Statistics(decay=0.0, rows=rows, seed=seed)},
            **PAPER,
        )
        layer.zero_grad()
        mean_half_square(layer(inputs), targets).backward()
        preconditioner.step()
        preconditioner.remove()
        (stack,) = preconditioner.engine.stacks
        for total, factor in zip(totals, (stack.a, stack.g), strict=True):
            total.add_(factor.blocks[0, 0, 0], alpha=1 / draws)
    for found, one in zip(totals, exact, strict=True):
        spread = one.diagonal().max() * (0.0 if rows == 64 else 3 / (draws * rows) ** 0.5)
        assert (found - one).abs().max() <= 3 * spread + 1e-9


@pytest.mark.parametrize("kind", [THOR, KFAC, EKFAC])
def test_a_split_network_trains_to_a_lower_loss_than_it_started_with(kind: type[THOR]) -> None:
    model = convnet()
    batch = data(32, 2, 6, 6)
    losses = train(model, kind(model, lr=0.02), [batch] * 30)
    assert losses[-1] < 0.7 * losses[0]
    assert all(one.isfinite().all() for one in weights(model))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"lr": -0.1}, ["lr=-0.1", ">= 0"]),
        ({"momentum": 1.0}, ["momentum=1.0", "[0, 1)"]),
        ({"weight_decay": -1.0}, ["weight_decay=-1.0", ">= 0"]),
        ({"damping": -1.0}, ["damping=-1.0", "> 0"]),
        ({"damping": 0.0}, ["damping=0.0", "> 0"]),
        ({"power": 2.0}, ["power=2.0", "1/2"]),
        ({"split": 0}, ["split=0", "'auto'"]),
        ({"split": "fast"}, ["split='fast'", "'auto'"]),
        ({"interval": 0}, ["interval=0", ">= 1"]),
        ({"norm_control": "clip"}, ["norm_control='clip'", "'graft'"]),
        ({"exclude": ("nowhere",)}, ["exclude='nowhere'", "module"]),
    ],
)
def test_bad_options_name_the_argument_the_value_and_what_is_allowed(
    arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"^Invalid") as caught:
        THOR(mlp(), **arguments)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_model_that_is_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Invalid model=.*torch\.nn\.Module"):
        THOR(mlp().parameters(), norm_control="graft")  # type: ignore[arg-type]


def test_factor_norms_are_those_of_the_kronecker_product() -> None:
    model = mlp()
    optimizer = THOR(model, norm_control="graft", split=None, statistics=Statistics(decay=0.0))
    assert optimizer.factor_norms() == {}
    train(model, optimizer, [data(8)])
    found = optimizer.factor_norms()
    for stack in optimizer.engine.stacks:
        for slot, layer in enumerate(stack.layers):
            product = torch.kron(stack.a.blocks[slot, 0, 0], stack.g.blocks[slot, 0, 0])
            assert found.pop(layer.name) == pytest.approx(product.norm().item(), rel=1e-5)
    assert found == {}

"""Promise: ``fisher="mc"`` takes the statistics of the model's own labels, and those alone."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from helpers import AT_EVERY_STEP, EXACT, a_scaler, draws, gradients, mlp, weights
from oracle.fisher import exact_gradient_factor
from torch_thor import (
    THOR,
    CurvatureWarning,
    Damping,
    InvalidOptionError,
    Preconditioner,
    Statistics,
)

if TYPE_CHECKING:
    from torch_thor import KFAC

KINDS = ["categorical", "bernoulli", "normal"]
LOSSES = {
    "categorical": lambda y, t: F.cross_entropy(y, t.argmax(1)),
    "bernoulli": F.binary_cross_entropy_with_logits,
    "normal": F.mse_loss,
}


def engine(model: nn.Module, **statistics: Any) -> Preconditioner:
    chosen = {"decay": 0.0, "rows": None, "fisher": "mc", **statistics}
    return Preconditioner(model, **{**EXACT, "statistics": Statistics(**chosen), "split": None})


def gradient_factor(preconditioner: Preconditioner, name: str) -> Tensor:
    (found,) = [
        stack.g.blocks[slot, 0, 0]
        for stack in preconditioner.engine.stacks
        for slot, layer in enumerate(stack.layers)
        if layer.name == name
    ]
    return found.clone()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_mean_over_draws_is_the_fisher_itself(kind: Any, reduction: Any) -> None:
    """Against the expectation over labels, taken label by label."""
    model = mlp().double()
    inputs = torch.randn(4, 5).double()
    preconditioner = engine(model, loss_reduction=reduction)
    draws = 400
    for name in ("0", "2"):
        expected = exact_gradient_factor(model, name, inputs, kind)
        total = torch.zeros_like(expected)
        for _ in range(draws):
            preconditioner.sample_fisher(model(inputs), kind)
            preconditioner.step()
            total += gradient_factor(preconditioner, name)
        error = (total / draws - expected).norm() / expected.norm()
        assert error < 0.12, f"off by {error:.1%}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_extra_backward_leaves_no_gradient_and_keeps_the_graph(kind: Any) -> None:
    model, inputs, targets = mlp(), torch.randn(8, 5), torch.rand(8, 3)
    twin = mlp()
    twin.load_state_dict(model.state_dict())
    LOSSES[kind](twin(inputs), targets).backward()
    preconditioner = engine(model)
    outputs = model(inputs)
    preconditioner.sample_fisher(outputs, kind)
    assert all(parameter.grad is None for parameter in model.parameters())
    LOSSES[kind](outputs, targets).backward()
    for ours, theirs in zip(gradients(model), gradients(twin), strict=True):
        assert torch.equal(ours, theirs)


def test_the_training_loss_does_not_enter_the_statistics() -> None:
    model, inputs = mlp().double(), torch.randn(8, 5).double()
    preconditioner = engine(model)
    found = []
    for scale in (1.0, 100.0):
        outputs = model(inputs)
        preconditioner.sample_fisher(outputs, generator=draws(3))
        (scale * outputs.square().sum()).backward()
        preconditioner.step()
        found.append(gradient_factor(preconditioner, "0"))
    assert torch.equal(*found)
    assert found[0].abs().sum() > 0


def test_a_loss_scale_does_not_enter_either() -> None:
    """Case 28: the sampled loss is not scaled, so nothing is divided out."""
    found = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        model = mlp()
        optimizer = THOR(
            model,
            damping=Damping(0.01, "both"),  # a wrong scale of G shows where damping is absolute
            norm_control=None,
            statistics=Statistics(decay=0, rows=None, fisher="mc"),
            **AT_EVERY_STEP,
        )
        scaler = a_scaler(init_scale=scale, growth_interval=10**6)
        outputs = model(torch.randn(8, 5))
        optimizer.sample_fisher(outputs)
        scaler.scale(outputs.square().mean()).backward()
        scaler.step(optimizer)
        found.append(weights(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_steps_between_refreshes_cost_no_backward() -> None:
    model, inputs = mlp(), torch.randn(8, 5)
    optimizer = THOR(model, norm_control="graft", interval=4, statistics=Statistics(fisher="mc"))
    wanted: list[bool] = []
    seen: list[int] = []
    for _ in range(9):
        optimizer.zero_grad()
        outputs = model(inputs)
        outputs.register_hook(lambda _: seen.append(len(wanted)))
        wanted.append(optimizer.wants_statistics)
        optimizer.sample_fisher(outputs)
        outputs.square().mean().backward()
        optimizer.step()
    assert any(wanted)
    assert not all(wanted)
    # the training backward of each step, and one more in those that want statistics
    assert len(seen) == len(wanted) + sum(wanted)


def test_micro_batches_are_one_batch() -> None:
    """Case 16: the same draws in one batch and in two."""
    model, inputs = mlp().double(), torch.randn(6, 5).double()
    labels = torch.bernoulli(torch.full((6, 3), 0.5, dtype=torch.float64))
    found = []
    for sizes in ([6], [4, 2]):
        preconditioner = engine(model)
        for part, drawn in zip(inputs.split(sizes), labels.split(sizes), strict=True):
            outputs = model(part)
            preconditioner.fisher_backward((outputs * drawn).sum() / 6)
            outputs.sum().backward()
        preconditioner.step()
        found.append(gradient_factor(preconditioner, "0"))
        preconditioner.remove()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "positions_mean", "sum"])
def test_micro_batches_of_any_size_are_one_batch(
    kind: Any, reduction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is sampled by itself, of whatever the whole batch will be."""
    # Labels that a row has of itself: what torch draws depends on how many it draws at a time.
    monkeypatch.setattr(torch, "multinomial", lambda p, _, **__: p.argmin(-1, keepdim=True))
    monkeypatch.setattr(torch, "bernoulli", lambda p, **_: (p < 0.5).to(p))
    monkeypatch.setattr(torch, "normal", lambda means, *_, **__: means + (9 * means).sin())
    layer, inputs = nn.Linear(5, 4).double(), torch.randn(6, 4, 5).double()
    found = []
    for sizes in ([6], [4, 2], [1, 2, 3]):
        preconditioner = engine(layer, loss_reduction=reduction)
        for part in inputs.split(sizes):
            outputs = layer(part)
            preconditioner.sample_fisher(outputs, kind)
            outputs.sum().backward()
        preconditioner.step()
        found.append(gradient_factor(preconditioner, ""))
        preconditioner.remove()
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


class Pooled(nn.Module):
    """Rows of its layers are samples, positions, or more samples than the loss has."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.flat, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.flat(self.tokens(inputs).tanh().flatten(0, 1)).tanh()
        return self.head(hidden.view(*inputs.shape[:2], 4).mean(1))


@pytest.mark.parametrize("reduction", ["mean", "positions_mean", "sum"])
@pytest.mark.parametrize("together", [True, False])
def test_it_is_the_free_form_with_the_same_labels(reduction: Any, *, together: bool) -> None:
    """Whatever the rows of a layer are: the loss alone says what a mean is over."""
    model, inputs = Pooled().double(), torch.randn(2, 6, 7, 5).double()
    found = []
    for free in (False, True):
        preconditioner, generator = engine(model, loss_reduction=reduction), draws(3)
        outputs = [model(part) for part in (inputs[0], inputs[1, :2])] if together else []
        for number in range(2):
            out = outputs[number] if together else model((inputs[0], inputs[1, :2])[number])
            if not free:
                preconditioner.sample_fisher(out, "normal", generator=generator)
            else:
                labels = torch.normal(out.detach(), 1.0, generator=generator)
                loss = 0.5 * (out - labels).square().sum()
                # of two forwards between two backwards each stands for the same samples
                whole = len(inputs[0]) + (0 if together else 2)
                preconditioner.fisher_backward(loss / (1 if reduction == "sum" else whole))
            if not together:
                out.sum().backward()
        preconditioner.step()
        found.append([gradient_factor(preconditioner, name) for name in ("tokens", "flat", "head")])
        preconditioner.remove()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", ["entries", "flat", "positions first"])
def test_a_mask_fits_outputs_without_classes_flat_ones_and_turned_ones(form: str) -> None:
    layer, inputs = nn.Linear(5, 1).double(), torch.randn(2, 6, 5).double()
    counts = torch.tensor([[True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    found = []
    for masked in (True, False):
        preconditioner = engine(layer, loss_reduction="positions_mean")
        preconditioner.use_mask(counts)
        outputs = layer(inputs)
        # what a mask leaves out is made large: with a label it would show in the others
        loud = torch.where(counts, 1.0, 1e3 if masked else 0.0).unsqueeze(-1)
        mixed = outputs * loud + outputs.sum((0, 1), keepdim=True) * loud
        shaped = {
            "entries": mixed[..., 0],
            "flat": mixed.flatten(0, 1),
            "positions first": mixed.transpose(0, 1),
        }
        preconditioner.sample_fisher(shaped[form] * 0.1, "normal", generator=draws(5))
        preconditioner.step()
        found.append(gradient_factor(preconditioner, ""))
        preconditioner.remove()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("class_dim", [-1, 1])
def test_positions_that_are_masked_have_no_label(kind: Any, class_dim: int) -> None:
    """In expectation it is the Fisher of the positions that count."""
    layer, inputs = nn.Linear(5, 3).double(), torch.randn(2, 6, 5).double()
    counts = torch.tensor([[True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    expected = exact_gradient_factor(nn.Sequential(layer), "0", inputs[counts], kind)
    preconditioner = engine(layer, loss_reduction="positions_mean")
    total, times = torch.zeros_like(expected), 400
    for _ in range(times):
        preconditioner.use_mask(counts)
        outputs = layer(inputs).movedim(-1, class_dim)
        preconditioner.sample_fisher(outputs, kind, class_dim=class_dim)
        preconditioner.step()
        total += gradient_factor(preconditioner, "")
    error = (total / times - expected).norm() / expected.norm()
    assert error < 0.12, f"off by {error:.1%}"


def test_a_masked_position_sends_no_gradient_to_the_others() -> None:
    """Where positions see each other, a label at padding would reach those that count."""
    torch.manual_seed(0)
    mixing, layer = torch.ones(6, 6, dtype=torch.float64), nn.Linear(5, 3).double()
    counts = torch.tensor([[True] * 5 + [False]])
    found = []
    for scale in (1.0, 100.0):
        preconditioner = engine(layer, loss_reduction="positions_mean")
        preconditioner.use_mask(counts)
        hidden = layer(torch.ones(1, 6, 5).double())
        seen = torch.cat([(mixing @ hidden)[:, :5], scale * (mixing @ hidden)[:, 5:]], 1)
        preconditioner.sample_fisher(seen * 0.01, "normal", generator=draws(1))
        preconditioner.step()
        found.append(gradient_factor(preconditioner, ""))
        preconditioner.remove()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ["bernoulli", "normal"])
def test_where_the_classes_are_changes_nothing_but_the_place_of_the_draws(kind: Any) -> None:
    layer, inputs = nn.Conv2d(3, 1, 3, padding=1).double(), torch.randn(4, 3, 8, 8).double()
    found = []
    for class_dim in (1, -1):
        preconditioner = engine(layer, loss_reduction="positions_mean")
        outputs = layer(inputs).movedim(1, class_dim)
        preconditioner.sample_fisher(outputs, kind, class_dim=class_dim, generator=draws(1))
        layer(inputs).sum().backward()
        preconditioner.step()
        found.append(gradient_factor(preconditioner, ""))
        preconditioner.remove()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_not_finite_leave_the_step_out(kind: Any, value: float) -> None:
    """As in the training loss: nothing can be drawn from them."""
    model = mlp()
    optimizer = THOR(model, norm_control="graft", statistics=Statistics(fisher="mc"))
    before, inputs = weights(model), torch.randn(8, 5)
    inputs[3, 2] = value
    outputs = model(inputs)
    optimizer.sample_fisher(outputs, kind)
    outputs.square().mean().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CurvatureWarning)
        optimizer.step()
    assert optimizer.skipped_steps == 1
    for now, then in zip(weights(model), before, strict=True):
        assert torch.equal(now, then)


def test_class_dimension_and_positions() -> None:
    """Case 15: a segmentation head has its classes in dimension 1, a language model's last."""
    torch.manual_seed(0)
    layer, inputs = nn.Linear(5, 3).double(), torch.randn(4, 6, 5).double()
    found = []
    for class_dim in (-1, 1):
        preconditioner = engine(layer, loss_reduction="positions_mean")
        generator = draws(1)
        outputs = layer(inputs).movedim(-1, class_dim)
        preconditioner.sample_fisher(outputs, class_dim=class_dim, generator=generator)
        layer(inputs).sum().backward()
        preconditioner.step()
        found.append(gradient_factor(preconditioner, ""))
        preconditioner.remove()
    torch.testing.assert_close(*found)
    # positions count as samples: the same layer over 24 samples
    flat = engine(layer)
    generator = draws(1)
    flat.sample_fisher(layer(inputs.flatten(0, 1)), generator=generator)
    layer(inputs.flatten(0, 1)).sum().backward()
    flat.step()
    torch.testing.assert_close(gradient_factor(flat, ""), found[0])


def test_a_forgotten_sampled_backward_is_said_once() -> None:
    """Case 20: never silently the plain gradient."""
    model, inputs = mlp(), torch.randn(8, 5)
    preconditioner = engine(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            model(inputs).square().mean().backward()
            preconditioner.step()
    said = [str(one.message) for one in caught if issubclass(one.category, CurvatureWarning)]
    assert len(said) == len(preconditioner.engine.layers)
    assert all("sample_fisher" in line for line in said)


def test_wrong_names_are_refused() -> None:
    model = mlp()
    with pytest.raises(InvalidOptionError, match="fisher"):
        Statistics(fisher="exact")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="likelihood"):
        engine(model).sample_fisher(model(torch.randn(2, 5)), "poisson")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match=r"outputs=\[2\]"):
        engine(model).sample_fisher(model(torch.randn(2, 5))[:, 0])


def test_it_trains_a_classifier() -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))
    inputs = torch.randn(64, 5)
    targets = inputs[:, :3].argmax(1)
    optimizer: THOR | KFAC = THOR(
        model, norm_control="graft", **{**AT_EVERY_STEP, "statistics": Statistics(fisher="mc")}
    )
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        logits = model(inputs)
        optimizer.sample_fisher(logits)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0]

"""Promise: each layer type's statistics are those of its definition, under every option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from foreign import Conv1D
from helpers import EXACT, function_modes, gradient_of, half_square
from models import Transformer, batch_for, included
from oracle import (
    Observed,
    dense_fisher,
    direction,
    ekfac_direction,
    factors,
    inverse_power,
)
from oracle.layers import LiteralAttention, Norm, observe_matrices
from oracle.samples import observe
from peek import factors_of
from torch_thor import EKFAC, THOR, Damping, InvalidOptionError, Preconditioner, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = 5


@dataclass(frozen=True)
class Case:
    """A layer type with an input that fits it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = ()
    tokens: int = 0

    def draw(self) -> tuple[nn.Module, Tensor, Tensor]:
        """The layer in float64, inputs [N, ...] and targets."""
        layer = self.build().double()
        for name, parameter in layer.named_parameters():
            if isinstance(layer, nn.Embedding):
                break
            parameter.data = torch.randn_like(parameter) if name == "weight" else parameter.data
        if self.tokens:
            inputs = torch.randint(self.tokens, (SAMPLES, *self.shape))
        else:
            inputs = torch.randn(SAMPLES, *self.shape).double()
        layer.eval()
        return layer, inputs, torch.randn_like(layer(inputs)).detach()


def fitted_batch_norm(kind: Callable[[int], nn.Module]) -> nn.Module:
    layer = kind(3)
    layer.get_buffer("running_mean").copy_(torch.randn(3))
    layer.get_buffer("running_var").copy_(torch.rand(3) + 0.5)
    return layer


CASES = {
    "linear": Case(lambda: nn.Linear(4, 3), (2, 4)),
    "conv2d": Case(lambda: nn.Conv2d(4, 2, 3, padding=1, groups=2), (4, 3, 4)),
    "transposed 1d": Case(lambda: nn.ConvTranspose1d(3, 2, 3), (3, 4)),
    "transposed 2d": Case(
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
        (4, 3, 2),
    ),
    "transposed 2d, dilated, padded output": Case(
        lambda: nn.ConvTranspose2d(
            2, 3, 3, stride=3, padding=2, dilation=2, output_padding=(2, 1), bias=False
        ),
        (2, 3, 2),
    ),
    "transposed 3d": Case(lambda: nn.ConvTranspose3d(2, 2, 2, stride=2), (2, 2, 1, 2)),
    "transposed linear": Case(lambda: Conv1D(3, 4), (2, 4)),
    "embedding": Case(lambda: nn.Embedding(6, 3), (4,), tokens=6),
    "embedding with padding": Case(lambda: nn.Embedding(6, 3, padding_idx=1), (4,), tokens=6),
    "batch norm 1d": Case(lambda: fitted_batch_norm(nn.BatchNorm1d), (3,)),
    "batch norm 2d": Case(lambda: fitted_batch_norm(nn.BatchNorm2d), (3, 2, 2)),
    "batch norm 3d": Case(lambda: fitted_batch_norm(nn.BatchNorm3d), (3, 2, 2, 1)),
    "group norm": Case(lambda: nn.GroupNorm(2, 4), (4, 2, 3)),
    "layer norm": Case(lambda: nn.LayerNorm(4), (3, 4)),
    "layer norm without bias": Case(lambda: nn.LayerNorm(4, bias=False), (4,)),
    "rms norm": Case(lambda: nn.RMSNorm(4), (2, 4)),
}
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def engine(layer: nn.Module, statistics: Statistics, **options: Any) -> Preconditioner:
    options = {**EXACT, "split": None, "power": 1.0, **options, "statistics": statistics}
    include = () if isinstance(layer, nn.MultiheadAttention) else (type(layer),)
    return Preconditioner(layer, damping=Damping(0.1, "both"), include=include, **options)


def gradient_matrices(preconditioner: Preconditioner) -> Tensor:
    """The gradient [k, out, columns], as the preconditioner lays it out."""
    (stack,) = preconditioner.engine.stacks
    (layer,) = stack.layers
    bias = None if layer.bias is None else layer.bias.grad
    return stack.matrices.write([(gradient_of(layer.weight), bias)])[0].clone()


def expected_factors(
    layer: nn.Module, seen: Observed, sharing: Any, losses_per_sample: int = 1
) -> tuple[Tensor, Tensor]:
    """(A, G) of one matrix; a norm's G is the Fisher block itself and its A is 1."""
    if isinstance(layer, Norm):
        return torch.ones(1, 1).double(), dense_fisher(seen) / losses_per_sample
    # a mean of one-hot rows is no one-hot row: embeddings are always expanded
    used: Any = "expand" if isinstance(layer, nn.Embedding) else sharing
    return factors(seen, used, losses_per_sample=losses_per_sample)


def expected_direction(layer: nn.Module, gradient: Tensor, A: Tensor, G: Tensor) -> Tensor:
    if isinstance(layer, Norm):
        shifted = G + 0.1 * torch.eye(len(G)).double()
        return inverse_power(shifted, 1.0) @ gradient.T
    return direction(gradient, A, G, damping=0.1)


@ALL
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "positions_mean"])
def test_factors_and_direction_are_those_of_the_definition(
    case: Case, sharing: Any, reduction: Any
) -> None:
    """Case 9, 13, 15, 17: and rows rebuild the gradient of autograd."""
    layer, inputs, targets = case.draw()
    preconditioner = engine(
        layer,
        Statistics(decay=0, rows=None, weight_sharing=sharing, loss_reduction=reduction),
    )
    assert len(preconditioner.engine.layers) == 1, str(preconditioner.coverage())
    seen = observe_matrices(layer, "", inputs, targets, half_square)
    positions = len(seen[0].inputs[0])
    terms = {"mean": SAMPLES, "sum": 1, "positions_mean": SAMPLES * positions}[reduction]
    (half_square(layer(inputs), targets) / terms).backward()
    preconditioner.step()
    scale = SAMPLES / terms
    per_sample = positions if reduction == "positions_mean" else 1
    expected = [expected_factors(layer, matrix, sharing, per_sample) for matrix in seen]
    if isinstance(layer, nn.Embedding):
        assert all(torch.equal(A, torch.diag(A.diagonal())) for A, _ in expected)
    for matrix in seen:
        rows = zip(matrix.output_gradients, matrix.inputs, strict=True)
        for (g, a), exact in zip(rows, matrix.weight_gradients, strict=True):
            torch.testing.assert_close(g.T @ a, exact)
    torch.testing.assert_close(factors_of(preconditioner), expected)
    moved = gradient_matrices(preconditioner) / scale
    for found, matrix, (A, G) in zip(moved, seen, expected, strict=True):
        wanted = expected_direction(layer, matrix.mean_gradient, A, G)
        torch.testing.assert_close(found, wanted)


# Every tap of "transposed 3d" sees the same inputs: equal eigenvalues have no basis of their own.
EKFAC_CASES = [
    pytest.param(case, rows, id=f"{name}, {rows or 'all'} rows")
    for name, case in CASES.items()
    for rows in ((None, 3) if "norm" in name or "embedding" in name else (None,))
    if name != "transposed 3d"
]


@pytest.mark.parametrize(("case", "rows"), EKFAC_CASES)
def test_ekfac_scalings_are_those_of_the_definition(case: Case, rows: int | None) -> None:
    """Case 21: a row budget leaves alone what is exact, tokens and norms."""
    layer, inputs, targets = case.draw()
    statistics = Statistics(decay=0, rows=rows)
    preconditioner = engine(layer, statistics, eigenvalue_correction=True)
    (half_square(layer(inputs), targets) / SAMPLES).backward()
    preconditioner.step()
    seen = observe_matrices(layer, "", inputs, targets, half_square)
    moved = gradient_matrices(preconditioner)
    for found, matrix in zip(moved, seen, strict=True):
        A, G = expected_factors(layer, matrix, "expand")
        gradient = matrix.mean_gradient
        gradient, apart = (gradient.T, False) if isinstance(layer, Norm) else (gradient, True)
        wanted = ekfac_direction(matrix, gradient, A, G, damping=0.1, positions_apart=apart)
        torch.testing.assert_close(found, wanted)


NORMS = pytest.mark.parametrize(
    "case",
    [case for name, case in CASES.items() if "norm" in name],
    ids=[name for name in CASES if "norm" in name],
)


@NORMS
@pytest.mark.parametrize("mode", ["both", "sqrt", "pi", "relative"])
@pytest.mark.parametrize("fisher", ["unit_wise", "diagonal"])
def test_the_fisher_of_a_norm_is_exact_and_damped_once(case: Case, mode: Any, fisher: Any) -> None:
    """Case 17, 18: from per-sample gradients, whatever the row budget and weight sharing."""
    layer, inputs, targets = case.draw()
    statistics = Statistics(decay=0, rows=2, norm_fisher=fisher)
    options = {**EXACT, "power": 0.5, "statistics": statistics}
    preconditioner = Preconditioner(
        layer, damping=Damping(0.1, mode), include=(type(layer),), **options
    )
    (half_square(layer(inputs), targets) / SAMPLES).backward()
    preconditioner.step()
    seen = observe_matrices(layer, "", inputs, targets, half_square)
    moved = gradient_matrices(preconditioner)
    for found, (A, G), matrix in zip(moved, factors_of(preconditioner), seen, strict=True):
        F = dense_fisher(matrix)
        F = torch.diag(F.diagonal()) if fisher == "diagonal" else F
        assert A.item() == 1.0
        torch.testing.assert_close(G, F)
        shift = 0.1 * float(F.trace()) / len(F) if mode == "relative" else 0.1
        root = inverse_power(F + shift * torch.eye(len(F)).double(), 0.5)
        torch.testing.assert_close(found, root @ matrix.mean_gradient.T)


@pytest.mark.parametrize("reduction", ["mean", "positions_mean"])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.Linear])
def test_a_layer_called_twice_counts_the_losses_once(kind: Any, reduction: Any) -> None:
    """Case 4, 15: a norm's per-sample gradient is the sum over both calls."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LayerNorm(4) if kind is nn.LayerNorm else nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(torch.tanh(self.layer(x)))
            return found

    model = Twice().double()
    inputs, targets = torch.randn(SAMPLES, 3, 4).double(), torch.randn(SAMPLES, 3, 4).double()
    statistics = Statistics(decay=0, rows=None, loss_reduction=reduction)
    options = {**EXACT, "split": None, "statistics": statistics}
    preconditioner = Preconditioner(model, damping=0.1, include=("layer",), **options)
    per_sample = 3 if reduction == "positions_mean" else 1
    (half_square(model(inputs), targets) / (SAMPLES * per_sample)).backward()
    preconditioner.step()
    seen = observe_matrices(model, "layer", inputs, targets, half_square)
    expected = [expected_factors(model.layer, one, "expand", per_sample) for one in seen]
    torch.testing.assert_close(factors_of(preconditioner, "layer"), expected)


@ALL
@pytest.mark.parametrize("optimizer", [THOR, EKFAC])
def test_each_type_trains_under_the_optimizers(case: Case, optimizer: Any) -> None:
    layer, inputs, targets = case.draw()
    layer.float()
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    trained = optimizer(layer, lr=1e-3, weight_decay=0.0, include=(type(layer),))
    losses = []
    for _ in range(15):
        trained.zero_grad()
        loss = half_square(layer(inputs), targets.float()) / SAMPLES
        loss.backward()
        trained.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@ALL
def test_micro_batches_equal_one_batch(case: Case) -> None:
    """Case 16."""
    layer, inputs, targets = case.draw()
    found = []
    for sizes in ([SAMPLES], [2, 3]):
        layer.zero_grad()
        preconditioner = engine(layer, Statistics(decay=0, rows=None))
        for x, y in zip(inputs.split(sizes), targets.split(sizes), strict=True):
            (half_square(layer(x), y) / SAMPLES).backward()
        preconditioner.step()
        found.append(gradient_matrices(preconditioner))
        preconditioner.remove()
    torch.testing.assert_close(*found)


def attention(**options: Any) -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(4, 2, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return layer


def tensors(layer: nn.MultiheadAttention, use: str) -> tuple[Tensor, Tensor, Tensor]:
    """query, key and value [N, length, width]: one tensor, two, or three."""
    query = torch.randn(SAMPLES, 3, 4).double()
    if use == "self":
        return query, query, query
    key = torch.randn(SAMPLES, 2, layer.kdim or 4).double()
    return query, key, key if use == "cross" else torch.randn(SAMPLES, 2, layer.vdim or 4).double()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    ("options", "use"),
    [
        ({}, "self"),
        ({"bias": False}, "self"),
        ({}, "cross"),
        ({}, "three"),
        ({"kdim": 5, "vdim": 3}, "three"),
    ],
    ids=["self", "no bias", "cross", "three", "own widths"],
)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_attention_projections_are_preconditioned_for_real(
    batch_first: bool, need_weights: bool, options: dict[str, Any], use: str, sharing: Any
) -> None:
    """Case 3: every projection has the factors of a Linear in attention written out by hand."""
    layer = attention(batch_first=batch_first, **options)
    inputs = tensors(layer, use)
    targets = torch.randn(SAMPLES, 3, 4).double()
    preconditioner = engine(layer, Statistics(decay=0, rows=None, weight_sharing=sharing))
    given = inputs if batch_first else tuple(one.transpose(0, 1) for one in inputs)
    if use == "self":
        given = (given[0],) * 3
    outputs, _ = layer(*given, need_weights=need_weights)
    outputs = outputs if batch_first else outputs.transpose(0, 1)
    literal = LiteralAttention(layer).double()
    torch.testing.assert_close(outputs, literal(*inputs))
    (half_square(outputs, targets) / SAMPLES).backward()
    preconditioner.step()

    class Joined(nn.Module):
        """Takes query, key and value side by side, so that the oracle sees one input."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = literal

        def forward(self, numbers: Tensor) -> Tensor:
            where = numbers[:, 0].long()
            return self.attention(*(one[where] for one in inputs))

    numbers = torch.arange(SAMPLES)[:, None].double()
    observed = [
        observe(Joined(), f"attention.{name}", numbers, targets, half_square)[0] for name in "qkvo"
    ]
    if "in_proj" in [one.name for one in preconditioner.engine.layers]:
        found = [*factors_of(preconditioner, "in_proj")]
    else:
        found = [factors_of(preconditioner, f"{one}_proj")[0] for one in "qkv"]
        # their common bias has the same G's, and A = 1
        common = factors_of(preconditioner, "in_proj_bias")
        for seen, (A, G) in zip(observed, common, strict=False):
            assert A.item() == 1.0
            torch.testing.assert_close(G, factors(seen, sharing)[1])
            seen.inputs[:] = [rows[:, :-1] for rows in seen.inputs]
    found += factors_of(preconditioner, "out_proj")
    for one, seen in zip(found, observed, strict=True):
        for ours, expected in zip(one, factors(seen, sharing), strict=True):
            torch.testing.assert_close(ours, expected)


def test_an_unwatched_attention_gives_bitwise_the_same_outputs() -> None:
    """Case 3: watching changes nothing about the forward."""
    layer, inputs = attention(batch_first=True), torch.randn(2, 3, 4).double()
    before = layer(inputs, inputs, inputs)
    preconditioner = engine(layer, Statistics())
    after = layer(inputs, inputs, inputs)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    after[0].sum().backward()
    assert all(layer.ledger.read() for layer in preconditioner.engine.layers)


def test_a_forward_that_raises_leaves_no_mode_behind() -> None:
    """Case 12."""
    layer = attention()
    preconditioner = engine(layer, Statistics())
    with pytest.raises(AssertionError):
        layer(torch.randn(2, 3, 5).double(), *[torch.randn(2, 3, 4).double()] * 2)
    assert function_modes() == []
    preconditioner.remove()
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_a_transposed_convolution_with_an_output_size_of_the_call() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2).double()
    inputs = torch.randn(SAMPLES, 2, 3, 3).double()
    found = []
    for wrapped in (False, True):
        layer.zero_grad()
        layer.output_padding = (1, 0) if wrapped else (0, 0)
        preconditioner = engine(layer, Statistics(decay=0, rows=None))
        outputs = layer(inputs) if wrapped else layer(inputs, output_size=(8, 7))
        outputs.square().sum().backward()
        preconditioner.step()
        found.append(factors_of(preconditioner))
        preconditioner.remove()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_rows_are_what_scale_and_shift_work_on(training: bool) -> None:
    layer = nn.BatchNorm2d(3, affine=True).double().train(mode=training)
    inputs = torch.randn(4, 3, 2, 2).double() + 1
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    mean = layer.get_buffer("running_mean")
    before = mean.clone()
    preconditioner = engine(layer, Statistics(decay=0, rows=None))
    outputs = layer(inputs)
    running = mean.clone()
    outputs.sum().backward()
    preconditioner.step()
    assert torch.equal(running, mean)
    assert training or torch.equal(before, running)
    hat = (outputs.detach() - layer.bias.view(1, -1, 1, 1)) / layer.weight.view(1, -1, 1, 1)
    # every output has the gradient 1 (of the sum, a mean loss times 4)
    for channel, (_, G) in enumerate(factors_of(preconditioner)):
        own = torch.stack([hat[:, channel].sum((1, 2)), torch.full((4,), 4.0).double()], dim=1)
        torch.testing.assert_close(G, (own.T @ own * 4).detach())


def test_embedding_factors_are_a_vector_of_frequencies() -> None:
    """Case 8: V numbers, never V × V, and all tokens are counted whatever the row budget."""
    layer = nn.Embedding(50_000, 4)
    preconditioner = engine(layer, Statistics(decay=0, rows=8), split=72)
    tokens = torch.randint(50_000, (16, 8))
    layer(tokens).square().sum().backward()
    preconditioner.step()
    (stack,) = preconditioner.engine.stacks
    assert stack.a.blocks.numel() == 50_000
    assert stack.inverses.a.numel() == 50_000
    expected = torch.bincount(tokens.flatten(), minlength=50_000) / tokens.numel()
    torch.testing.assert_close(stack.a.blocks.flatten(), expected)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_refused_where_they_would_be_stepped(kind: Any) -> None:
    """Case 8: with the way out in the message."""
    model = nn.ModuleDict({"words": kind(5, 3, sparse=True), "head": nn.Linear(3, 2)})
    with pytest.raises(InvalidOptionError, match=r"words.*sparse=False.*SparseAdam"):
        THOR(model, norm_control="graft")
    optimizer = THOR(model, model["head"].parameters(), norm_control="graft")
    assert "words.weight" in str(optimizer.coverage())


def test_types_that_are_off_by_default_say_how_to_switch_them_on() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    reasons = {one.name: one.reason for one in THOR(model, norm_control="graft").coverage()}
    assert "include=(nn.Embedding,)" in reasons["0.weight"]
    assert "include=(nn.LayerNorm,)" in reasons["1.bias"]
    chosen = THOR(model, norm_control="graft", include=(nn.LayerNorm, "0"), exclude=("2",))
    assert [layer.name for layer in chosen.engine.layers] == ["0", "1"]
    with pytest.raises(InvalidOptionError, match="include"):
        THOR(model, norm_control="graft", include=(nn.GroupNorm,))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(4, 2, scale_grad_by_freq=True), "scaled by frequency"),
        (nn.LayerNorm((2, 2)), "several dimensions"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_modules_that_can_not_be_included_say_why(layer: nn.Module, reason: str) -> None:
    (entry, *_) = Preconditioner(layer, include=(type(layer),)).coverage()
    assert reason in entry.reason


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.LeakyReLU])
def test_an_activation_in_place_behind_a_layer_whose_output_is_a_view(
    shape: tuple[int, ...], bias: bool, activation: Any
) -> None:
    """Case 1: a Linear over sequences returns a view, whose node an in-place change replaces."""
    inputs = torch.randn(SAMPLES, *shape).double()
    layer = nn.Linear(4, 3, bias=bias).double()
    found = []
    for inplace in (False, True):
        layer.zero_grad()
        preconditioner = engine(layer, Statistics(decay=0, rows=None))
        activation(inplace=inplace)(layer(inputs)).square().sum().backward()
        preconditioner.step()
        found.append(factors_of(preconditioner))
        preconditioner.remove()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("early_stop", [True, False])
def test_a_checkpointed_block_counts_once(reentrant: bool, early_stop: bool) -> None:
    """Case 3, 5: attention, norms, an embedding and a Conv1D inside the recomputed segment."""
    model = Transformer().double()
    tokens, targets = batch_for(model)
    anchor = torch.zeros((), dtype=torch.float64, requires_grad=True)  # for the reentrant mode
    found = []
    for checkpointed in (False, True):
        model.zero_grad()
        preconditioner = Preconditioner(
            model, **{**EXACT, "split": None}, include=included(model), damping=0.1
        )
        if checkpointed:
            with set_checkpoint_early_stop(early_stop):
                outputs = checkpoint(lambda x, _: model(x), tokens, anchor, use_reentrant=reentrant)
        else:
            outputs = model(tokens)
        half_square(outputs, targets.double()).backward()
        preconditioner.step()
        found.append(
            {one.name: factors_of(preconditioner, one.name) for one in preconditioner.engine.layers}
        )
        preconditioner.remove()
        assert function_modes() == []
    assert len(found[0]) == 8
    torch.testing.assert_close(*found)

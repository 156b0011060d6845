"""Promise: in whatever order a loop does its things, statistics are those of the gradients there.

make fuzz    # 2,000 sequences; the suite runs a few of them
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helpers import draws
from peek import factors_of
from torch_thor import KFAC, Statistics

DEAF = -1  # a group that no optimizer listened to
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
SIZES = (3, 4, 4, 2)
NAMES = ("0", "2", "4")
OWNERS = {"0": "first", "2": "first", "4": "second"}
OPTIONS: dict[str, Any] = {
    "lr": 0.0,  # weights stay, so that the oracle needs none of the optimizer's
    "weight_decay": 0.0,
    "factor_interval": 1,
    "inverse_interval": 1,
    "statistics": Statistics(decay=0.0, rows=None),
}


OWNER = st.sampled_from(["first", "second"])


@dataclass
class Share:
    """What one backward has added to a weight's gradient: rows a and g, by hand."""

    a: Tensor
    g: Tensor
    group: int


@dataclass
class Layer:
    """What the oracle knows of a layer."""

    there: list[Share] = field(default_factory=list)  # behind the gradient that is in .grad
    heard: bool = True  # the optimizer knew of it when its forward ran
    group: int = 0  # forwards that no backward separates are one pass over the same samples
    backward_seen: bool = False
    expected: tuple[Tensor, Tensor] | None = None

    def forget(self) -> None:
        self.there, self.group, self.backward_seen = [], 0, False


@dataclass
class Pending:
    """A forward whose backward may come."""

    loss: Tensor
    inputs: Tensor
    targets: Tensor
    groups: dict[str, int]
    used: dict[str, nn.Parameter]
    trained: dict[str, bool]
    recomputes: bool
    reentrant: bool


class Loop(RuleBasedStateMachine):
    """One model, two optimizers on its parts, and an oracle that computes rows by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        linear = [nn.Linear(i, o) for i, o in pairwise(SIZES)]
        self.model = nn.Sequential(linear[0], nn.Tanh(), linear[1], nn.Tanh(), linear[2]).double()
        self.optimizers = {
            owner: KFAC(self.model, self.parameters_of(owner), **OPTIONS)
            for owner in ("first", "second")
        }
        self.layers = {name: Layer() for name in NAMES}
        self.pending: list[Pending] = []

    def module(self, name: str) -> Any:
        return self.model.get_submodule(name)

    def parameters_of(self, owner: str) -> list[nn.Parameter]:
        return [
            p for name in NAMES if OWNERS[name] == owner for p in self.module(name).parameters()
        ]

    # -- the oracle --------------------------------------------------------------------------

    def rows_of(self, inputs: Tensor, targets: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Inputs and output gradients of every layer, by the chain rule."""
        inputs = inputs.detach()
        weights = [self.module(name).weight.detach() for name in NAMES]
        biases = [self.module(name).bias.detach() for name in NAMES]
        activations = [inputs]
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            z = activations[-1] @ weight.T + bias
            activations.append(z.tanh() if number < 2 else z)
        gradient = (activations[-1] - targets) / len(inputs)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for number in (2, 1, 0):
            ones = torch.ones(len(inputs), 1, dtype=torch.float64)
            found[NAMES[number]] = (torch.cat([activations[number], ones], 1), gradient)
            gradient = gradient @ weights[number] * (1 - activations[number] ** 2)
        return found

    def gone(self, names: Any) -> None:
        for name in names:
            self.layers[name].there = []

    # -- what a loop does --------------------------------------------------------------------

    @rule(
        samples=st.integers(1, 4),
        seed=st.integers(0, 99),
        how=st.sampled_from(["plain", "no_grad", "reentrant", "recomputed"]),
    )
    def forward(self, samples: int, seed: int, how: str) -> None:
        generator = draws(seed)
        inputs = torch.randn(samples, SIZES[0], generator=generator, dtype=torch.float64)
        targets = torch.randn(samples, SIZES[-1], generator=generator, dtype=torch.float64)
        for layer in self.layers.values():
            if layer.backward_seen:
                layer.group, layer.backward_seen = layer.group + 1, False
        if how == "no_grad":
            with torch.no_grad():
                self.model(inputs)
            return
        asked = inputs.clone().requires_grad_()  # reentrant checkpoints need one
        if how == "plain":
            outputs = self.model(asked)
        else:
            outputs = checkpoint(self.model, asked, use_reentrant=how == "reentrant")
        loss = 0.5 * (outputs - targets).square().sum() / samples
        groups = {n: layer.group if layer.heard else DEAF for n, layer in self.layers.items()}
        used = {name: self.module(name).weight for name in NAMES}
        trained = {name: weight.requires_grad for name, weight in used.items()}
        self.pending.append(
            Pending(
                loss,
                asked,
                targets,
                groups,
                used,
                trained,
                recomputes=how != "plain",
                reentrant=how == "reentrant",
            )
        )

    def take(self, which: int) -> Pending:
        return self.pending.pop(which % len(self.pending))

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 9), twice=st.booleans())
    def backward(self, which: int, twice: bool = False) -> None:
        """Through the whole graph; twice makes one gradient that is twice as long."""
        one = self.take(which)
        if not one.loss.requires_grad:
            return
        times = 2 if twice and not one.recomputes else 1
        for number in range(times):
            one.loss.backward(retain_graph=number < times - 1)
        for name, (a, g) in self.rows_of(one.inputs, one.targets).items():
            layer, weight = self.layers[name], self.module(name).weight
            if weight is one.used[name] and weight.requires_grad and one.trained[name]:
                layer.backward_seen = True
                # A reentrant checkpoint has its forward, and its pass, in the backward.
                group = layer.group if one.reentrant else one.groups[name]
                layer.there.append(Share(a, times * g, group if layer.heard else DEAF))

    @rule(samples=st.integers(1, 4), seed=st.integers(0, 99), owner=OWNER, ends=st.booleans())
    def batch(self, samples: int, seed: int, owner: str, ends: bool) -> None:
        """What most loops are made of, so that most sequences come to something."""
        self.forward(samples, seed, "plain")
        self.backward(len(self.pending) - 1)
        if ends:
            self.step(owner)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 9))
    def forget_a_forward(self, which: int) -> None:
        self.take(which)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 9), of=st.sampled_from(["inputs", "weights"]))
    def read_gradients(self, which: int, of: str) -> None:
        """A penalty or a log: nothing reaches .grad."""
        one = self.take(which)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if of == "inputs" and not one.recomputes:
            torch.autograd.grad(one.loss, one.inputs)
        if one.loss.requires_grad and trained and of == "weights":
            torch.autograd.grad(one.loss, trained, allow_unused=True)
            for name, layer in self.layers.items():
                layer.backward_seen |= self.module(name).weight.requires_grad and layer.heard

    @rule(
        form=st.sampled_from(
            ["optimizer", "optimizer in place", "model", "model in place", "none"]
        ),
        owner=OWNER,
    )
    def zero_grad(self, form: str, owner: str) -> None:
        in_place = form.endswith("in place")
        if form.startswith("optimizer"):
            self.optimizers[owner].zero_grad(set_to_none=not in_place)
        elif form.startswith("model"):
            self.model.zero_grad(set_to_none=not in_place)
        else:
            for parameter in self.parameters_of(owner):
                parameter.grad = None
        self.gone(n for n in NAMES if form.startswith("model") or OWNERS[n] == owner)

    @rule(name=st.sampled_from(NAMES))
    def another_gradient(self, name: str) -> None:
        for parameter in self.module(name).parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.gone([name])

    @rule(limit=st.sampled_from([1e-3, 1e3]))
    def clip(self, limit: float) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    @rule(name=st.sampled_from(NAMES), trained=st.booleans())
    def freeze_or_thaw(self, name: str, trained: bool) -> None:
        # A checkpoint does not forgive that between a forward and its recomputation.
        self.pending = [one for one in self.pending if not one.recomputes]
        self.module(name).requires_grad_(trained)

    @rule(name=st.sampled_from(NAMES))
    def replace_parameters(self, name: str) -> None:
        module = self.module(name)
        for key, old in list(module.named_parameters()):
            setattr(module, key, nn.Parameter(old.detach().clone(), old.requires_grad))
        owner = OWNERS[name]
        self.optimizers[owner].param_groups[0]["params"] = self.parameters_of(owner)
        self.layers[name].forget()
        self.layers[name].heard = False

    @rule(owner=OWNER)
    def look(self, owner: str) -> None:
        """coverage() follows the model too, as a step does; what was collected stays."""
        self.optimizers[owner].coverage()
        for name in (one for one in NAMES if OWNERS[one] == owner):
            self.layers[name].heard = True

    @rule(owner=OWNER)
    def step(self, owner: str) -> None:
        optimizer = self.optimizers[owner]
        optimizer.step()
        self.pending = []  # it has written to the weights, which torch does not forgive a graph
        for name in (one for one in NAMES if OWNERS[one] == owner):
            layer, trained = self.layers[name], self.module(name).weight.requires_grad
            shares = [share for share in layer.there if share.group != DEAF]
            if trained and shares:
                layer.expected = self.factors(shares)
            if trained and layer.expected is not None:
                ((a, g),) = factors_of(optimizer, name)
                torch.testing.assert_close(a, layer.expected[0], rtol=1e-9, atol=1e-12)
                torch.testing.assert_close(g, layer.expected[1], rtol=1e-9, atol=1e-12)
            layer.forget()
            layer.heard = True

    @staticmethod
    def factors(shares: list[Share]) -> tuple[Tensor, Tensor]:
        a, g = torch.cat([one.a for one in shares]), torch.cat([one.g for one in shares])
        passes: dict[int, int] = {}
        for one in shares:
            passes[one.group] = max(passes.get(one.group, 0), len(one.a))
        return a.T @ a / len(a), sum(passes.values()) * g.T @ g


@pytest.mark.filterwarnings("ignore::torch_thor.CurvatureWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.timeout(3600)
def test_statistics_are_those_of_the_gradients_that_are_there() -> None:
    """Cases 45 to 48, 58, and all that lies between."""
    chosen = settings(max_examples=EXAMPLES, stateful_step_count=24)
    run_state_machine_as_test(Loop, settings=chosen)

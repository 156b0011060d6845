"""Promise: parameters of every type step by torch's own base rule, to the bit (case 55)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from torch_thor import THOR, Base, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class NoLists(nn.Parameter):
    """A parameter whose own rules don't know operations on lists."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Refuses them."""
        if "foreach" in getattr(func, "__name__", "") or "fused" in getattr(func, "__name__", ""):
            raise NotImplementedError(func)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Beside(nn.Module):
    """A Linear, and a parameter of another kind that scales its output.

    Args:
        special: The parameter, of 3 entries.
    """

    def __init__(self, special: nn.Parameter) -> None:
        """Draws the weights."""
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.special = special
        self.plain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        special: Tensor = self.special
        if special.dim() == 2:  # a table, looked up with a sparse gradient
            special = nn.functional.embedding(torch.arange(3), special, sparse=True).squeeze(1)
        y: Tensor = self.linear(x) * self.plain * special
        return y.abs() if y.is_complex() else y


KINDS: dict[str, Callable[[], nn.Parameter]] = {
    "complex64": lambda: nn.Parameter(torch.randn(3, dtype=torch.complex64)),
    "complex128": lambda: nn.Parameter(torch.randn(3, dtype=torch.complex128)),
    "float64": lambda: nn.Parameter(torch.randn(3, dtype=torch.float64)),
    "subclass": lambda: NoLists(torch.randn(3)),
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def backward(model: Beside) -> None:
    model.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()


def train_beside_torch(
    model: Beside, thor: THOR, build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    """Steps a twin of the special parameter by torch's rule along the same gradients."""
    twin = type(model.special)(model.special.detach().clone())
    theirs = build([twin])
    for _ in range(5):
        backward(model)
        assert model.special.grad is not None
        before = model.special.grad.detach().clone()
        twin.grad = before.clone()
        thor.step()
        theirs.step()
        assert torch.equal(model.special, twin)
        assert torch.equal(model.special.grad.to_dense(), before.to_dense()), "untouched"
    ours = {k: v for k, v in thor.state[model.special].items() if v is not None}
    for key, value in theirs.state[twin].items():
        if isinstance(value, Tensor):
            # A count of steps lies where the kernel that was asked for looks, used or not.
            assert torch.equal(ours[key].to_dense().cpu(), value.to_dense().cpu()), key


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 5e-4), (0.0, 0.1)])
@EACH_KIND
def test_sgd(kind: str, momentum: float, decay: float, nesterov: bool) -> None:
    model, nesterov = Beside(KINDS[kind]()), nesterov and momentum > 0
    rule: dict[str, Any] = {"lr": 0.1, "momentum": momentum, "weight_decay": decay}
    thor = THOR(model, norm_control="graft", **rule, update=Update(nesterov=nesterov))
    train_beside_torch(model, thor, lambda own: torch.optim.SGD(own, **rule, nesterov=nesterov))


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "float64"])
def test_adamw(kind: str, decay: float, fused: bool | None) -> None:
    """Real tensors take the fused kernel on the CPU, which rounds otherwise; no stranger can."""
    model = Beside(KINDS[kind]())
    base = Base("adamw", betas=(0.9, 0.999), fused=fused)
    thor = THOR(model, norm_control="graft", lr=0.1, weight_decay=decay, base=base)
    train_beside_torch(model, thor, lambda own: torch.optim.AdamW(own, lr=0.1, weight_decay=decay))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_gradients_take_sgd(momentum: float) -> None:
    model = Beside(nn.Parameter(torch.randn(3, 1)))
    thor = THOR(
        model,
        norm_control="graft",
        lr=0.1,
        momentum=momentum,
        update=Update(nesterov=False),
        weight_decay=0.0,
    )
    train_beside_torch(model, thor, lambda own: torch.optim.SGD(own, lr=0.1, momentum=momentum))


def test_sparse_gradients_and_adamw_are_an_error_in_words() -> None:
    model = Beside(nn.Parameter(torch.randn(3, 1)))
    thor = THOR(model, norm_control="graft", lr=0.1, base=Base("adamw"))
    backward(model)
    with pytest.raises(ValueError, match="dense for the base rule 'adamw'"):
        thor.step()


@EACH_KIND
def test_gradients_of_any_type_that_are_not_finite_skip_the_step(kind: str) -> None:
    model = Beside(KINDS[kind]())
    thor = THOR(model, norm_control="graft", lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    backward(model)
    assert model.special.grad is not None
    model.special.grad[1] = torch.inf
    thor.step()
    assert all(map(torch.equal, model.parameters(), before))
    backward(model)
    thor.step()
    assert not any(map(torch.equal, model.parameters(), before))


def test_a_gradient_that_changes_its_layout_is_followed() -> None:
    """The steps before knew it as a dense one."""
    model = Beside(nn.Parameter(torch.randn(3, 1)))
    thor = THOR(model, norm_control="graft", lr=0.1, momentum=0.0, weight_decay=0.0)
    for sparse in (False, False, True, True, False):
        backward(model)
        gradient = model.special.grad
        assert gradient is not None
        if not sparse:
            model.special.grad = gradient = gradient.to_dense()
        before = model.special.detach().clone()
        thor.step()
        assert torch.equal(model.special, before.add(gradient, alpha=-0.1))


@pytest.mark.parametrize("which", ["weight", "bias"])
@pytest.mark.parametrize("momentum_first", [True, False])
def test_a_subclass_inside_a_preconditioned_layer_steps_as_a_plain_one(
    which: str, momentum_first: bool
) -> None:
    def end(kind: type[nn.Parameter]) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
        setattr(model[0], which, kind(getattr(model[0], which).detach()))
        thor = THOR(
            model,
            norm_control="graft",
            lr=0.1,
            interval=1,
            update=Update(momentum_first=momentum_first),
        )
        for _ in range(4):
            thor.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            thor.step()
        return [torch.Tensor(parameter.detach()) for parameter in model.parameters()]

    for ours, plain in zip(end(NoLists), end(nn.Parameter), strict=True):
        torch.testing.assert_close(ours, plain)

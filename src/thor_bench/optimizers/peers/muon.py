"""torch.optim.Muon on hidden matrices and convolutions, SGD or AdamW on the rest."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from thor_bench.errors import BenchError
from thor_bench.optimizers.peer import Divided, Peer, Recipe, Training
from thor_bench.optimizers.settings import Fraction, NonNegative, Positive, Settings
from torch_thor import Base, multiplies_bfloat16


@dataclass(frozen=True, kw_only=True)
class MuonSettings(Settings):
    """Muon's, and the rest's.

    Attributes:
        momentum: Momentum of Muon and of SGD.
        exclude_head: Whether the last linear layer belongs to the rest.
        rest: Rule of embeddings, norms, biases and the head.
        rest_lr: Their peak learning rate.
        rest_weight_decay: Their weight decay.
    """

    lr: Positive = 0.02
    weight_decay: NonNegative = 0.05
    momentum: Fraction = 0.9
    exclude_head: bool = True
    rest: Literal["sgd", "adamw"] = "sgd"
    rest_lr: Positive = 0.1
    rest_weight_decay: NonNegative = 5e-4


def lacks_muon() -> str | None:
    """Says what Muon needs where torch is too old for it; None where it is there."""
    if hasattr(torch.optim, "Muon"):
        return None
    return f"needs torch >= 2.9 (this is {torch.__version__})"


def as_matrix(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Flattens all dimensions but the first, in the order that ``like``, or it, has in memory.

    Orthogonalization does not depend on the order of columns, so a channels-last weight is viewed,
    not copied.
    """
    like = tensor if like is None else like
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.flatten(1)


class _Float32(TorchFunctionMode):
    """Lets float32 pass where torch's Muon asks for bfloat16 before its matrix products."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Calls everything as it is, but copies in the place of ``Tensor.bfloat16``."""
        if func is torch.Tensor.bfloat16:
            return args[0].clone()
        return func(*args, **(kwargs or {}))


_Muon: Any = getattr(torch.optim, "Muon", Optimizer)


class FlattenedMuon(_Muon):  # type: ignore[misc] # an older torch has none; see lacks_muon
    """Muon for weights of two and more dimensions, each taken as a matrix ``[out, rest]``.

    torch's Muon takes matrices only. This one steps on views of the weights, so that its state and
    its arithmetic are torch's own. Where bfloat16 is emulated, which takes a hundred times as long,
    it multiplies in float32.

    Args:
        weights: Weights of at least two dimensions; contiguous or channels-last.
        options: torch's.
    """

    def __init__(self, weights: Iterable[nn.Parameter], **options: float) -> None:
        self._weights = list(weights)
        self._views = [nn.Parameter(as_matrix(weight.detach())) for weight in self._weights]
        super().__init__(self._views, **options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step; gradients are read from the weights, not from their views."""
        for weight, view in zip(self._weights, self._views, strict=True):
            view.grad = None if weight.grad is None else as_matrix(weight.grad, weight)
        native = multiplies_bfloat16(self._weights[0].device)
        with nullcontext() if native else _Float32():
            loss: float | None = super().step(closure)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """Clears the gradients of the weights and of their views."""
        super().zero_grad(set_to_none)
        for weight in self._weights:
            weight.grad = None


def build(training: Training, settings: MuonSettings) -> Sequence[Optimizer]:
    """Builds Muon, and the rule of the rest where there is one.

    Raises:
        BenchError: torch is too old for it.
    """
    if lacking := lacks_muon():
        raise BenchError(f"--optimizer muon {lacking}; update torch, or name another optimizer")
    hidden, rest = divided(training, settings)
    muon = FlattenedMuon(
        hidden, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    return [muon, rule_of_rest(rest, settings)] if rest else [muon]


def divided(training: Training, settings: MuonSettings) -> Divided:
    """Returns hidden matrices and convolutions, and all other parameters."""
    modules = [module for module in training.model.modules() if isinstance(module, nn.Embedding)]
    head = training.head if settings.exclude_head else None
    kept = {id(module.weight) for module in (*modules, head) if module is not None}
    weights = (p for p in training.model.parameters() if p.dim() >= 2)
    return training.divide(p for p in weights if id(p) not in kept)


def rule_of_rest(rest: Sequence[nn.Parameter], settings: MuonSettings) -> Optimizer:
    """Returns the rule of all that is not Muon's."""
    lr, momentum, decay = settings.rest_lr, settings.momentum, settings.rest_weight_decay
    if settings.rest == "adamw":
        return torch.optim.AdamW(rest, lr=lr, betas=Base.betas, weight_decay=decay)
    return torch.optim.SGD(
        rest, lr=lr, momentum=momentum, weight_decay=decay, nesterov=momentum > 0
    )


PEERS = (
    Peer(
        "muon",
        "Muon; SGD or AdamW on the rest",
        MuonSettings(),
        build,
        own="momentum",
        lacks=lacks_muon,
        recipes={
            "digits": Recipe("lr=0.02", 4),
            "tabular": Recipe("lr=0.02", 5),
            "fashion": Recipe("warmup=0.05 rest_lr=0.5 rest_weight_decay=0", 3),
            "fashion-autoencoder": Recipe(
                "weight_decay=0 exclude_head=no rest=adamw rest_lr=0.001 rest_weight_decay=0", 3
            ),
            "text-gpt": Recipe("rest=adamw rest_lr=0.003 rest_weight_decay=0", 3),
        },
    ),
)

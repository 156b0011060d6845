"""Muon on hidden matrices and convolutions, SGD or AdamW on the rest.

torch's Muon, or pytorch-optimizer's where rows are evened or other coefficients are asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from thor_bench.errors import BenchError
from thor_bench.optimizers.flattened import flattened
from thor_bench.optimizers.peer import Divided, Peer, Recipe, Training, imported
from thor_bench.optimizers.settings import Fraction, NonNegative, Positive, Settings
from torch_thor import Base, multiplies_bfloat16


@dataclass(frozen=True, kw_only=True)
class MuonSettings(Settings):
    """Muon's, and the rest's.

    Attributes:
        momentum: Momentum of Muon and of SGD.
        coefficients: Of the five Newton-Schulz steps: Jordan's, or Polar Express's of Amsel et al.
            2025.
        row_decay: Decay of the running average by which rows are evened, as NorMuon does it; None
            leaves them as they are.
        exclude_head: Whether the last linear layer or convolution belongs to the rest.
        rest: Rule of embeddings, norms, biases and the head.
        rest_lr: Their peak learning rate.
        rest_weight_decay: Their weight decay.
    """

    lr: Positive = 0.02
    weight_decay: NonNegative = 0.05
    momentum: Fraction = 0.9
    coefficients: Literal["original", "polar_express"] = "original"
    row_decay: Fraction | None = None
    exclude_head: bool = True
    rest: Literal["sgd", "adamw"] = "sgd"
    rest_lr: Positive = 0.1
    rest_weight_decay: NonNegative = 5e-4


def lacks_muon() -> str | None:
    """Says what Muon needs where torch is too old for it; None where it is there."""
    if hasattr(torch.optim, "Muon"):
        return None
    return f"needs torch >= 2.9 (this is {torch.__version__})"


class _Float32(TorchFunctionMode):
    """Lets float32 pass where Muon asks for bfloat16 before its matrix products."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Calls everything as it is, but gives float32 where bfloat16 is asked for."""
        options = dict(kwargs or {})
        if func is torch.Tensor.bfloat16:
            return args[0].clone()
        if options.get("dtype") is torch.bfloat16:
            options["dtype"] = torch.float32
        return func(*args, **options)


def multiplying(device: torch.device) -> AbstractContextManager[object]:
    """Keeps Muon's products in float32 where bfloat16 is emulated, a hundred times as slow."""
    return nullcontext() if multiplies_bfloat16(device) else _Float32()


def native(kind: Any) -> Any:
    """Returns the class of a relative of Muon that multiplies as the device does well."""

    class Native(kind):  # type: ignore[misc] # known at run time only
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            with multiplying(self.param_groups[0]["params"][0].device):
                loss: float | None = super().step(closure)
            return loss

    return Native


# Torch's takes matrices only; an older torch has none, see lacks_muon.
FlattenedMuon: Any = flattened(native(getattr(torch.optim, "Muon", Optimizer)))


def packaged(name: str, weights: Sequence[nn.Parameter], **options: Any) -> Optimizer:
    """Returns one of pytorch-optimizer's relatives of Muon for hidden weights alone."""
    kind = native(imported(f"pytorch_optimizer.{name}"))
    optimizer: Optimizer = kind([{"params": list(weights), "use_muon": True}], **options)
    return optimizer


def build(training: Training, settings: MuonSettings) -> Sequence[Optimizer]:
    """Builds Muon, and the rule of the rest where there is one.

    Raises:
        BenchError: torch is too old for its own.
    """
    hidden, rest = divided(training, settings)
    options: dict[str, Any] = {
        "lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay
    }  # fmt: skip
    if settings.row_decay is not None:
        options |= {"ns_coeffs": settings.coefficients, "beta2": settings.row_decay}
        muon = packaged("NorMuon", hidden, **options)
    elif settings.coefficients != "original":
        muon = packaged("Muon", hidden, ns_coeffs=settings.coefficients, **options)
    elif lacking := lacks_muon():
        raise BenchError(f"--optimizer muon {lacking}; update torch, or name another optimizer")
    else:
        muon = FlattenedMuon(hidden, **options)
    return [muon, rule_of_rest(rest, settings)] if rest else [muon]


def divided(training: Training, settings: MuonSettings) -> Divided:
    """Returns hidden matrices and convolutions, and all other parameters."""
    modules = [module for module in training.model.modules() if isinstance(module, nn.Embedding)]
    head = training.head if settings.exclude_head else None
    kept = {id(module.weight) for module in (*modules, head) if module is not None}
    kept |= {id(parameter) for parameter in training.excluded}
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


# What the README of KellerJordan/Muon has, but ten times its rate of all others: runs of hundreds
# of steps end better by it (docs/bench.md).
AUTHORS = "lr=0.02 momentum=0.95 weight_decay=0.01 rest=adamw rest_lr=3e-3 rest_weight_decay=0.01"

_EQUATION = Recipe("lr=0.03 weight_decay=0 rest=adamw rest_lr=0.003 rest_weight_decay=0", 160)

PEERS = (
    Peer(
        "muon",
        "Muon; SGD or AdamW on the rest",
        MuonSettings(),
        build,
        own="momentum",
        lacks=lacks_muon,
        untuned=AUTHORS,
        recipes={
            "digits": Recipe("lr=0.02", 4),
            "tabular": Recipe("lr=0.02", 5),
            "fashion": Recipe("warmup=0.05 rest_lr=0.5 rest_weight_decay=0", 3),
            "fashion-autoencoder": Recipe(
                "weight_decay=0 exclude_head=no rest=adamw rest_lr=0.001 rest_weight_decay=0", 3
            ),
            "text-gpt": Recipe("rest=adamw rest_lr=0.003 rest_weight_decay=0", 3),
            **dict.fromkeys(("poisson-2d", "poisson-5d", "heat"), _EQUATION),
        },
    ),
    Peer(
        "muon-polar",
        "Muon with Polar Express's coefficients (pytorch-optimizer)",
        MuonSettings(momentum=0.95, coefficients="polar_express", rest="adamw", rest_lr=3e-3),
        build,
        own="momentum",
        untuned=AUTHORS,
    ),
)

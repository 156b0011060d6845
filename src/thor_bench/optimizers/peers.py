"""Optimizers of the package pytorch-optimizer, behind the bench's settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from torch.optim import Optimizer

from thor_bench.errors import BenchError
from thor_bench.optimizers.builders import Training
from thor_bench.optimizers.settings import Count, Fraction, NonNegative, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class SOAPSettings(Settings):
    """pytorch_optimizer.SOAP.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment and of the factors.
        interval: Steps between renewals of the eigenbasis.
        largest: Sides longer than this are not rotated.
    """

    lr: Positive = 3e-3
    weight_decay: NonNegative = 0.01
    beta1: Fraction = 0.95
    beta2: Fraction = 0.95
    interval: Count = 10
    largest: Count = 2048


@dataclass(frozen=True, kw_only=True)
class ShampooSettings(Settings):
    """pytorch_optimizer.ScalableShampoo, grafted to SGD.

    Attributes:
        beta1: Decay of the momentum.
        beta2: Decay of the factors.
        interval: Steps between inverse roots.
        block: Block size of the factors.
    """

    lr: Positive = 0.1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    interval: Count = 20
    block: Count = 128


@dataclass(frozen=True, kw_only=True)
class LARSSettings(Settings):
    """pytorch_optimizer.LARS.

    Attributes:
        momentum: Momentum.
        trust: Trust coefficient.
    """

    lr: Positive = 1.0
    momentum: Fraction = 0.9
    trust: Positive = 0.01


@dataclass(frozen=True, kw_only=True)
class LAMBSettings(Settings):
    """pytorch_optimizer.Lamb.

    Attributes:
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
    """

    lr: Positive = 0.01
    weight_decay: NonNegative = 0.02
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99


def pytorch_optimizer() -> ModuleType:
    """Imports pytorch_optimizer, which takes seconds that other optimizers need not wait for.

    Raises:
        BenchError: It is not installed.
    """
    try:
        import pytorch_optimizer  # noqa: PLC0415
    except ImportError as error:
        message = "this optimizer comes from pytorch-optimizer; pip install 'torch-thor[bench]'"
        raise BenchError(message) from error
    return pytorch_optimizer


def build_soap(training: Training, settings: SOAPSettings) -> Sequence[Optimizer]:
    """Builds SOAP over every parameter."""
    return [
        pytorch_optimizer().SOAP(
            training.model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            precondition_frequency=settings.interval,
            max_precondition_dim=settings.largest,
        )
    ]


def build_shampoo(training: Training, settings: ShampooSettings) -> Sequence[Optimizer]:
    """Builds blocked Shampoo over every parameter."""
    return [
        pytorch_optimizer().ScalableShampoo(
            training.model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            start_preconditioning_step=settings.interval,
            preconditioning_compute_steps=settings.interval,
            block_size=settings.block,
        )
    ]


def build_lars(training: Training, settings: LARSSettings) -> Sequence[Optimizer]:
    """Builds LARS over every parameter."""
    return [
        pytorch_optimizer().LARS(
            training.model.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            trust_coefficient=settings.trust,
        )
    ]


def build_lamb(training: Training, settings: LAMBSettings) -> Sequence[Optimizer]:
    """Builds LAMB over every parameter."""
    return [
        pytorch_optimizer().Lamb(
            training.model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )
    ]

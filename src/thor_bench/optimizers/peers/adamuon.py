"""AdaMuon of pytorch_optimizer: Muon with a second moment entry by entry (Si et al. 2025)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer

from thor_bench.optimizers.peer import Peer, Training
from thor_bench.optimizers.peers.muon import (
    AUTHORS,
    MuonSettings,
    divided,
    packaged,
    rule_of_rest,
)
from thor_bench.optimizers.settings import Fraction, Positive


@dataclass(frozen=True, kw_only=True)
class AdaMuonSettings(MuonSettings):
    """Muon's, and the decay of the second moment."""

    momentum: Fraction = 0.95
    beta2: Fraction = 0.95
    rest: Literal["sgd", "adamw"] = "adamw"
    rest_lr: Positive = 3e-3


def build(training: Training, settings: AdaMuonSettings) -> Sequence[Optimizer]:
    """Builds it, and the rule of the rest where there is one."""
    hidden, rest = divided(training, settings)
    adamuon = packaged(
        "AdaMuon",
        hidden,
        lr=settings.lr,
        betas=(settings.momentum, settings.beta2),
        weight_decay=settings.weight_decay,
        ns_coeffs=settings.coefficients,
    )
    return [adamuon, rule_of_rest(rest, settings)] if rest else [adamuon]


# Chongjie-Si/AdaMuon has Muon's 0.02, 0.95 and 0.01 for its class, one decay for both moments.
PEERS = (
    Peer(
        "adamuon",
        "AdaMuon (pytorch-optimizer); AdamW on the rest",
        AdaMuonSettings(),
        build,
        own="beta2",
        untuned=AUTHORS,
    ),
)

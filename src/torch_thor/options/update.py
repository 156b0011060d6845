"""How directions and momenta become steps, and what everything without curvature does."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch_thor.options.checks import POSITIVE, RATE, SHARE, Checked, check_types, require_type
from torch_thor.options.errors import require


@dataclass(frozen=True)
class Update(Checked):
    """Order of preconditioning, momentum and weight decay.

    Args:
        nesterov: Nesterov's momentum.
        momentum_first: Momentum of the raw gradient is preconditioned at every step,
            in place of momentum over preconditioned gradients (the paper's order).
        decoupled_decay: Weight decay shrinks the weights by lr · decay, as in AdamW, in
            place of being added to the direction before the momentum that follows it (the
            authors' order). With ``momentum_first`` no momentum follows, and both agree.
        overshoot: How far steps may overshoot before all learning rates fall: −ρ, where ρ is the
            loss's slope along a step after it ÷ before it, looked at in every tenth step. At −1 a
            step ends as high as it began. Rates rise again, up to the groups', while −ρ is
            smaller; noise makes it smaller. ``None`` leaves rates alone, and so do sharded weights,
            and steps that a CUDA graph replays. Needs ``momentum_first``.

    Raises:
        InvalidOptionError: For an overshoot that is out of range, or not seen.
    """

    nesterov: bool = True
    momentum_first: bool = True
    decoupled_decay: bool = False
    overshoot: Annotated[float, SHARE] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        seen = self.overshoot is None or self.momentum_first
        require("overshoot", self.overshoot, seen, "None where momentum is not first")


BaseRule = Literal["sgd", "adamw"]
MatrixRule = Literal["muon"]


@dataclass(frozen=True)
class Base:
    """First-order rule of every parameter outside the preconditioned layers.

    Args:
        rule: ``"sgd"`` or ``"adamw"``.
        lr_scale: Learning rate ÷ that of the group, so that schedulers move both.
        weight_decay: Decay of these parameters; ``None`` takes the group's, and so do groups that
            were given a decay of their own.
        betas: AdamW's averages.
        eps: AdamW's ε.
        fused: As in ``torch.optim``; picks the kernel, not the result. ``None`` takes AdamW's
            fused one, and SGD's, which rounds otherwise, in plain steps on a GPU: they leave steps
            out without the host. ``False`` makes it wait.
        outputs: Whether it is the rule of output layers too: those whose gradient comes from the
            loss and passes through no other layer. The first backward shows which they are. A
            model of which these are all matrices keeps their curvature.
        biases: Whether it is the rule of the biases of preconditioned layers too. One that is a
            column of a matrix whose singular values are made alike hardly moves.
        matrices: Rule of weights that are matrices without curvature: of LSTMs and GRUs, of
            experts ``[E, in, out]``, subclasses of layers, parametrizations' but weight norm's, own
            modules' where a name says weight. ``"muon"`` makes the singular values of momentum
            alike (Jordan et al. 2024) and steps as long as ``norm_control="rms"``, at the group's
            rate and decoupled decay. ``None`` takes ``rule`` for them too, as do output layers,
            tables, and what is shared, sharded or excluded.

    Raises:
        InvalidOptionError: For values out of range.
    """

    rule: BaseRule = "sgd"
    lr_scale: Annotated[float, POSITIVE] = 1.0
    weight_decay: Annotated[float, RATE] | None = None
    betas: tuple[Annotated[float, SHARE], Annotated[float, SHARE]] = (0.9, 0.95)
    eps: Annotated[float, RATE] = 1e-8
    fused: bool | None = None
    outputs: bool = False
    biases: bool = False
    matrices: MatrixRule | None = None

    def __post_init__(self) -> None:
        check_types(self, rule="base rule")
        require("betas", self.betas, len(self.betas) == 2, "two numbers")


def as_base(value: Base | BaseRule) -> Base:
    """Accepts a rule's name in the place of a ``Base`` with its defaults."""
    require_type("base", value, Base | BaseRule)
    return value if isinstance(value, Base) else Base(value)

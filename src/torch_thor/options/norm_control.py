"""What sets the length of a preconditioned step."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch_thor.options.checks import NATURAL, POSITIVE, SHARE, check_types, require_type
from torch_thor.options.errors import InvalidOptionError, require

NormControlKind = Literal["kl_clip", "graft", "rms", "spectral"]


@dataclass(frozen=True)
class _Kind:
    """What a kind allows.

    Args:
        limit: ``limit`` where the kind's name stands alone.
        by_rows: Whether blocks of rows may have lengths of their own.
        evens: Whether rows may be evened.
        fixed: Whether a step has the same length whatever the gradient's.
        turns: Whether it makes singular values alike.
    """

    limit: float = 1.0
    by_rows: bool = False
    evens: bool = True
    fixed: bool = False
    turns: bool = False


_KINDS: dict[NormControlKind, _Kind] = {
    "kl_clip": _Kind(limit=1e-3, evens=False),
    "graft": _Kind(by_rows=True),
    "rms": _Kind(by_rows=True, fixed=True),
    "spectral": _Kind(by_rows=True, fixed=True, turns=True),
}


@dataclass(frozen=True)
class NormControl:
    """What sets the length of a preconditioned layer's step.

    Args:
        kind: ``"kl_clip"``: all layers scaled by min(1, √(limit / (lr² Σ⟨direction,
            gradient⟩))). ``"graft"``: each layer takes the norm of the vector that was
            preconditioned, so an SGD learning rate can be kept. ``"rms"``: each layer's
            update has root mean square ``limit / √columns``, as Muon's has. ``"spectral"``:
            the same length, after singular values have been made alike as Muon does it,
            here those of the preconditioned direction. Of a sharded weight each rank makes
            those of its own rows alike, so the result depends on how many ranks there are.
        limit: κ of the KL clip, or the scale of ``"rms"`` and ``"spectral"``; not used by
            ``"graft"``.
        per: What takes a length of its own: ``"layer"``, or ``"rows"``, the rows of each block
            of G (Distributed Shampoo grafts that way), which sharded weights need because no
            rank sees the whole layer. ``None`` takes ``"layer"`` wherever a rank does.
        iterations: Newton–Schulz iterations of ``"spectral"``: four make singular values as alike
            as Muon's five do.
        tile: Rows, at most, whose singular values ``"spectral"`` makes alike apart from those of
            other rows: of a layer with m × n weights that costs 16 · tile · m · n products.
            ``None`` takes all rows together, as do tiles that would be longer than wide.
            ``"auto"``: a quarter of the rows of the layer's first batch (samples × positions),
            whose forward and backward cost about as much, but no fewer than 128.
        row_decay: Weight ρ of the old value in a running average of every row's mean square, by
            whose root the row is divided before lengths are set, so that output units step alike
            (NorMuon, Li et al. 2025); 0 takes this step's alone. ``None`` leaves rows as they
            are. Norms' own 2 × 2 matrices are always left so.

    Raises:
        InvalidOptionError: For an unknown kind or a value out of range.
    """

    kind: NormControlKind
    limit: Annotated[float, POSITIVE] = 1.0
    per: Literal["layer", "rows"] | None = None
    iterations: Annotated[int, NATURAL] = 4
    tile: Annotated[int, NATURAL] | Literal["auto"] | None = "auto"
    row_decay: Annotated[float, SHARE] | None = None

    def __post_init__(self) -> None:
        check_types(self, kind="norm_control")
        layers = not _KINDS[self.kind].by_rows or self.row_decay is not None
        allowed = "None for what needs whole layers: KL clip, row_decay"
        require("per", self.per, not (layers and self.per == "rows"), allowed)
        evens = self.row_decay is None or _KINDS[self.kind].evens
        require("row_decay", self.row_decay, evens, "None with the KL clip")

    @property
    def fixes_length(self) -> bool:
        """Whether a step has the same length whatever the gradient's."""
        return _KINDS[self.kind].fixed

    @property
    def turns(self) -> bool:
        """Whether it makes singular values alike."""
        return _KINDS[self.kind].turns

    @property
    def needs_layers(self) -> bool:
        """Whether it needs whole layers, all rows of all blocks."""
        by_rows = _KINDS[self.kind].by_rows and self.row_decay is None
        return not by_rows or self.per == "layer"


def as_norm_control(value: NormControl | NormControlKind | None) -> NormControl | None:
    """Accepts a kind's name in the place of a ``NormControl`` with its default limit."""
    require_type("norm_control", value, NormControl | NormControlKind | None)
    if value is None or isinstance(value, NormControl):
        return value
    return NormControl(value, _KINDS[value].limit)


def check_norm_control(control: NormControl | None, *, sharded: bool) -> None:
    """Raises ``InvalidOptionError`` where no rank sees what a norm control needs."""
    if control is not None and sharded and control.needs_layers:
        allowed = (
            "'spectral', 'rms' or 'graft' per 'rows' without row_decay, or None: no rank has a "
            "whole layer of this model"
        )
        raise InvalidOptionError("norm_control", control, allowed)

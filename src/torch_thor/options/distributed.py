"""What the user says about many devices."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch.distributed import GroupMember, ProcessGroup

from torch_thor.options.checks import POSITIVE, check_types
from torch_thor.options.errors import require

Inversion = Literal["auto", "replicate", "owners"]


@dataclass(frozen=True)
class Distributed:
    """How the ranks of a data-parallel run share the curvature.

    Args:
        group: Ranks that train this model together; ``None`` takes the default group, or this
            process alone where torch.distributed is not initialised.
        wire: Type in which factors travel. ``None`` sends them as they are (float32, or
            float64 for a float64 model); ``torch.bfloat16`` halves the bytes and raises the
            diagonal of a block by a share of 0.006 √rows, so that rounding leaves it positive.
        timeout: Seconds that a collective may take before it is a ``CollectiveError``.
        inversion: ``"replicate"``: every rank inverts all blocks. ``"owners"``: each block is
            inverted by one rank and gathered by the others. ``"auto"`` takes what measured
            inversion times and a measured network say is faster, refresh by refresh.
        reduce_gradients: ``step()`` averages the gradients itself, for a model that is not
            wrapped in DistributedDataParallel.

    Raises:
        InvalidOptionError: For a value out of range.
    """

    group: ProcessGroup | None = None
    wire: torch.dtype | None = None
    timeout: Annotated[float, POSITIVE] = 600.0
    inversion: Inversion = "auto"
    reduce_gradients: bool = False

    def __post_init__(self) -> None:
        check_types(self, but="group")
        # Ranks outside of a new group hold a number in its place.
        outside: object = GroupMember.NON_GROUP_MEMBER
        valid = self.group in (None, outside) or isinstance(self.group, ProcessGroup)
        require("group", self.group, valid, "a torch.distributed.ProcessGroup or None")
        allowed = (None, torch.bfloat16, torch.float32, torch.float64)
        require("wire", self.wire, self.wire in allowed, "bfloat16, float32, float64 or None")

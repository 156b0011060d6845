"""Operations that torch dispatches, counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {
    *(
        "alias",
        "as_strided",
        "detach",
        "diagonal",
        "expand",
        "permute",
        "select",
        "slice",
        "split",
        "squeeze",
    ),
    *("split_with_sizes", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
}


class Calls(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        """Starts at none."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        """Counts, and runs what was called."""
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def calls_of(calls: Calls) -> Counter[str]:
    """Those that are no views."""
    return Counter({name: n for name, n in calls.found.items() if name not in VIEWS})

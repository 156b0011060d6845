"""An optimizer that is copied with its model, and never pickled."""

from __future__ import annotations

import copy
from typing import Any, Self


class CopiedWithModel:
    """Something with hooks on a model."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies the optimizer with its model: ``copy.deepcopy((model, optimizer))``."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        # A scheduler puts a method of its own in front, which would step the original.
        own = {name: it for name, it in vars(self).items() if not hasattr(type(self), name)}
        vars(twin).update({name: copy.deepcopy(value, memo) for name, value in own.items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Refuses to be pickled.

        Raises:
            TypeError: Always.
        """
        kind = type(self).__name__
        raise TypeError(
            f"{kind} holds hooks of its model and can't be pickled: save optimizer.state_dict(), "
            "build model and optimizer anew, and load it there."
        )

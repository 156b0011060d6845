"""Ranks that run out of batches before the others do, by torch's ``Join``."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

if TYPE_CHECKING:
    from torch_thor.distributed.communicator import Communicator
    from torch_thor.options.distributed import Distributed


class UnevenInputs(Joinable):
    """Something with a ``step()`` that goes on while this rank has no batch left.

    ``with Join([ddp_model, optimizer]):`` around a loop whose length differs between ranks:
    those that are done take part in the others' refreshes, without samples of their own.
    """

    def _begin_step(self) -> None:
        """Tells ranks that are done that this one is not; free outside of ``Join``."""
        Join.notify_join_context(self)

    def _tell_joined(self, ranks: Communicator, *, skipped: bool) -> None:
        """Tells ranks that are done whether this step refreshes; free outside of ``Join``."""
        if self._join_config.enable:
            ranks.any(skipped)

    @abstractmethod
    def shadow_step(self) -> None:
        """Takes part in a step of the other ranks, without samples."""

    @abstractmethod
    def catch_up(self, *, up_to_date: bool) -> None:
        """Takes over what this rank missed, when all ranks are done."""

    @property
    @abstractmethod
    def _distribution(self) -> tuple[Distributed, torch.device]:
        """The options, and where the model lives."""

    def join_hook(self, **kwargs: object) -> JoinHook:  # noqa: ARG002 (shared with DDP's)
        """Returns what torch's ``Join`` calls while this rank has no batch left."""
        return _Shadow(self)

    @property
    def join_device(self) -> torch.device:
        """Where ``Join`` lays out its messages."""
        return self._distribution[1]

    @property
    def join_process_group(self) -> Any:
        """The ranks that ``Join`` asks."""
        group = self._distribution[0].group
        return dist.group.WORLD if group is None else group


class _Shadow(JoinHook):
    """Follows the other ranks."""

    def __init__(self, follower: UnevenInputs) -> None:
        self._follower = follower

    @torch.no_grad()
    def main_hook(self) -> None:
        self._follower.shadow_step()

    def post_hook(self, is_last_joiner: bool) -> None:  # noqa: FBT001 (torch's signature)
        self._follower.catch_up(up_to_date=is_last_joiner)

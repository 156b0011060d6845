"""Weights of which a rank owns some rows: FSDP2's shards."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = frozenset({Tensor, nn.Parameter})


@dataclass(frozen=True)
class Shard:
    """The rows of a matrix that this rank owns, as ``torch.chunk`` hands them out.

    Args:
        index: This rank's place among the owners.
        count: W, the owners.
        rows: Rows of the whole matrix.
    """

    index: int
    count: int
    rows: int

    @property
    def chunk(self) -> int:
        """Rows of every owner but the last ones, which may have fewer or none."""
        return -(-self.rows // self.count)

    @property
    def own(self) -> int:
        """Rows of this rank."""
        return max(0, min(self.chunk, self.rows - self.index * self.chunk))

    def deal(self, rows: Tensor) -> Tensor:
        """Deals the columns of output gradients ``[1, r, out]`` out: ``[W, r, chunk]``.

        Zeros stand where an owner has fewer rows than the others.
        """
        missing = self.count * self.chunk - self.rows
        padded = nn.functional.pad(rows, (0, missing)) if missing else rows
        return padded.view(rows.shape[1], self.count, self.chunk).transpose(0, 1)

    def take(self, dealt: Tensor) -> Tensor:
        """Takes this rank's share ``[1, ...]`` of ``[W, ...]``."""
        return dealt[self.index : self.index + 1]


def is_dtensor(tensor: object) -> bool:
    """Whether a tensor is distributed; importing DTensor would take a process seconds."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; a plain tensor is returned as it is."""
    return _distributed(tensor).to_local() if is_dtensor(tensor) else tensor


def _distributed(tensor: Any) -> Any:
    return tensor


def shard_of(weight: Tensor) -> Shard | None:
    """Which rows of a weight this rank owns; ``None`` where it owns the whole weight."""
    if not is_dtensor(weight):
        return None
    mesh = _distributed(weight).device_mesh
    axis = mesh.ndim - 1
    return Shard(mesh.get_local_rank(axis), mesh.size(axis), weight.shape[0])


def as_shards(blocks: Tensor, weight: Tensor) -> Tensor:
    """Presents this rank's blocks ``[1, n, ...]`` as its part of all ranks' ``[W · n, ...]``.

    Saved that way, torch.distributed.checkpoint can hand blocks to another number of ranks.
    """
    distributed = _distributed(weight)
    mesh, flat = distributed.device_mesh, blocks.flatten(0, 1)
    shape = torch.Size((len(flat) * mesh.size(mesh.ndim - 1), *flat.shape[1:]))
    kind = sys.modules["torch.distributed.tensor"].DTensor
    result: Tensor = kind.from_local(
        flat, mesh, distributed.placements, run_check=False, shape=shape, stride=flat.stride()
    )
    return result


def reason_against_shards(model: nn.Module, weight: nn.Parameter, *, by_rows: bool) -> str:
    """Why a distributed weight trains by the base rule; empty where it need not.

    ``by_rows``: whether the weight's first dimension is the rows of a single matrix.
    """
    if not is_dtensor(weight):
        return ""
    if not any(_is_sharded(type(module)) for module in model.modules()):
        return "a DTensor that fully_shard did not make"
    *outer, last = _distributed(weight).placements
    if not last.is_shard(0) or not all(p.is_replicate() for p in outer):
        return "not sharded along its first dimension"
    return "" if by_rows else "sharded along a dimension that is not its rows"


def unsharded_type(module: nn.Module) -> type[nn.Module]:
    """The class of a module before ``fully_shard`` put its own in front."""
    kind, *others = type(module).__mro__
    return others[1] if _is_sharded(kind) else kind


def _is_sharded(kind: type) -> bool:
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and kind.__mro__[1] is module.FSDPModule

"""Gradients that no DistributedDataParallel averages: one flat message for each type.

Messages of different lengths end the process under gloo, and hang under nccl. So all ranks send
what they last agreed upon, and a rank on which other parameters train by now says so in the first
entry. All of them read it, before anything has changed, and compare what they have.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Kind: TypeAlias = tuple[torch.Size, torch.dtype, torch.device, bool]


@dataclass(frozen=True)
class Bucket:
    """Parameters of one type that travel in one message: their places among all, their sizes."""

    places: list[int]
    sizes: list[int]
    dtype: torch.dtype
    device: torch.device

    @property
    def entries(self) -> int:
        """Length of the message, besides what stands before it: presence, then gradients."""
        return len(self.sizes) + sum(self.sizes)


class GradientAverage:
    """Replaces every ``.grad`` by its mean over the ranks.

    A rank without a gradient counts as zero, as in DistributedDataParallel; a parameter that
    has one nowhere keeps none.

    Args:
        ranks: W.
        total: Sums a message over the ranks.
        agree: Raises on all ranks unless all give one description.
    """

    def __init__(
        self, ranks: int, total: Callable[[Tensor], Tensor], agree: Callable[[str], None]
    ) -> None:
        self._ranks, self._total, self._agree = ranks, total, agree
        self._agreed: list[Kind] | None = None
        self._buckets: list[Bucket] = []

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Averages the gradients of those parameters that train.

        Raises:
            StateMismatchError: On all ranks, where others train on some of them.
        """
        own = list(parameters)
        kinds: list[Kind] = [(p.shape, p.dtype, p.device, p.requires_grad) for p in own]
        if self._agreed is None:
            self._settle(kinds)
        while not self._exchange(own, same=kinds == self._agreed):
            self._settle(kinds)

    def _settle(self, kinds: list[Kind]) -> None:
        """Agrees upon what travels from now on; a device's number is each rank's own."""
        self._agree("\n".join(f"{tuple(s)} {t} {d.type} {trains}" for s, t, d, trains in kinds))
        alike: dict[tuple[torch.dtype, torch.device], list[int]] = defaultdict(list)
        for place, (_, dtype, device, trains) in enumerate(kinds):
            if trains:
                alike[dtype, device].append(place)
        self._buckets = [
            Bucket(places, [kinds[place][0].numel() for place in places], *kind)
            for kind, places in alike.items()
        ]
        self._agreed = kinds

    def _exchange(self, parameters: list[Tensor], *, same: bool) -> bool:
        """Sends what was agreed upon; says whether it is still the same on all ranks."""
        if not (same and self._buckets):
            return self._announce(same=same)
        for number, bucket in enumerate(self._buckets):
            own = [parameters[place] for place in bucket.places]
            if not self._average(own, bucket, head=number == 0):
                return False
        return True

    def _announce(self, *, same: bool) -> bool:
        """Sends zeros in the place of the first bucket, and whether all is the same here."""
        length, dtype, device = 1, torch.float32, torch.device("cpu")
        if self._buckets:
            first = self._buckets[0]
            length, dtype, device = 1 + first.entries, first.dtype, first.device
        message = torch.zeros(length, dtype=dtype, device=device)
        message[0] = float(not same)
        return not bool(self._total(message)[0].item())

    def _average(self, parameters: list[Tensor], bucket: Bucket, *, head: bool) -> bool:
        """Averages a bucket; the one at the ``head`` learns first whether a rank has changed."""
        gradients = [_dense(parameter) for parameter in parameters]
        flags = [False] * head + [p.grad is not None for p in parameters]
        start = torch.tensor(flags, dtype=bucket.dtype, device=bucket.device)
        message = torch.cat([start, *(gradient.flatten() for gradient in gradients)])
        # Gradients are divided first, so that half types do not overflow in the sum.
        message[len(flags) :] /= self._ranks
        message = self._total(message).to(bucket.device)
        found, mean = message[: len(flags)].tolist(), message[len(flags) :]
        if head and found.pop(0):
            return False
        pieces = torch.split(mean, bucket.sizes)
        for parameter, gradient, piece, anyone in zip(
            parameters, gradients, pieces, found, strict=True
        ):
            if anyone:
                parameter.grad = gradient.copy_(piece.view_as(gradient))
        return True


def _dense(parameter: Tensor) -> Tensor:
    """The gradient of a parameter, zeros where it has none; a sparse one is spread out."""
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient if gradient.layout == torch.strided else gradient.to_dense()

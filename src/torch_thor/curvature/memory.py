"""What curvature takes of a device's memory: known from shapes alone, and refused in time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torch_thor.curvature.stacks import LayerStack, SplitRule, build_stacks
from torch_thor.linalg.timing import free_memory
from torch_thor.options.errors import InvalidOptionError
from torch_thor.options.notices import warn
from torch_thor.options.tables import Table, Tabular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from torch_thor.capture.tracked import TrackedLayer
    from torch_thor.curvature.options import CurvatureOptions
    from torch_thor.distributed.communicator import Communicator

_SHAPES = torch.device("meta")
_WORD_FROM = 1 << 30  # bytes of a layer from which a share of the free memory is worth a word
_SHARE = 0.25  # of the free memory, from which it is: a refresh takes three times as much beside
_WAY_OUT = 72  # THOR's usual split
# Copies of the blocks while they are refreshed: the batch's, the damped ones, the factorization's.
_COPIES = 6


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one layer's curvature on this rank.

    Args:
        name: The layer's.
        matrix: Rows and columns of its matrices.
        blocks: Block sizes of (A, G).
        factors: Running averages A and G.
        inverses: Their inverse roots, or EKFAC's bases and scalings.
        buffers: What is kept between steps besides: directions, averages of rows.
        refresh: About what a refresh of this layer takes for its time.
        device: Where it lies.
        momentum: Of its parameters, which is part of the report's ``state``.
    """

    name: str
    matrix: tuple[int, int]
    blocks: tuple[int, int]
    factors: int
    inverses: int
    buffers: int
    refresh: int
    device: torch.device
    momentum: int = 0

    @property
    def held(self) -> int:
        """Bytes of curvature that are there between steps."""
        return self.factors + self.inverses + self.buffers


@dataclass(frozen=True)
class MemoryReport(Tabular):
    """The report on a whole model; it prints as a table, and shows as one in a notebook.

    Rows that calls leave until the step are not counted, which ``Statistics(rows=...)`` bounds.

    Args:
        layers: One entry for every preconditioned layer.
        state: Bytes of momentum and of the base rule's state; 0 for a ``Preconditioner``.
        finds_outputs: Whether output layers count that the first backward will take out.
    """

    layers: tuple[LayerMemory, ...]
    state: int = 0
    finds_outputs: bool = False

    def __iter__(self) -> Iterator[LayerMemory]:
        return iter(self.layers)

    @property
    def factors(self) -> int:
        """Bytes of all factors."""
        return sum(layer.factors for layer in self)

    @property
    def inverses(self) -> int:
        """Bytes of all inverses."""
        return sum(layer.inverses for layer in self)

    @property
    def buffers(self) -> int:
        """Bytes of what else is kept."""
        return sum(layer.buffers for layer in self)

    @property
    def refresh(self) -> int:
        """About what a refresh of all layers takes for its time, as the first one does."""
        return sum(layer.refresh for layer in self)

    @property
    def held(self) -> int:
        """Bytes that are there between steps, state included."""
        return sum(layer.held for layer in self) + self.state

    @property
    def table(self) -> Table:
        """One row for every preconditioned layer."""
        parts = ("factors", "inverses", "buffers", "momentum", "refresh")
        rows = [
            (
                layer.name or "(the model)",
                "x".join(map(str, layer.matrix)),
                ", ".join(map(str, layer.blocks)),
                *(readable(getattr(layer, part)) for part in parts),
            )
            for layer in self
        ]
        totals = ", ".join(
            f"{part} {readable(getattr(self, part))}"
            for part in ("factors", "inverses", "buffers", "state")
        )
        more = f"about {readable(self.refresh)} more while all layers refresh"
        foot = [f"in all {readable(self.held)}: {totals}; {more}"]
        if self.finds_outputs:
            foot.append("output layers count until the first backward shows which they are")
        return Table(("layer", "matrix", "blocks of A, G", *parts), rows, foot, words=3)


def readable(size: float) -> str:
    """Bytes in words: ``"1.5 MB"``."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 1000 else f"{size:.0f} GB"


def report_on(stacks: Iterable[LayerStack]) -> MemoryReport:
    """Counts what stacks hold; those of shapes alone count as if they were there."""
    return MemoryReport(tuple(_layer(stack, layer) for stack in stacks for layer in stack.layers))


def planned(
    layers: Iterable[TrackedLayer], rule: SplitRule, options: CurvatureOptions
) -> MemoryReport:
    """The report on stacks that layers will have, of which there are only shapes."""
    return report_on(build_stacks(layers, rule, options, device=_SHAPES))


def _layer(stack: LayerStack, layer: TrackedLayer) -> LayerMemory:
    count, factors = len(stack.layers), (stack.a, stack.g)
    tiles = 0 if stack.tiles is None else stack.tiles.bytes
    blocks = [_bytes(factor.blocks) for factor in factors]
    # A rank sums the blocks of all rows, also where it keeps those of its own.
    passing = blocks[0] + blocks[1] * (1 if stack.shard is None else stack.shard.count)
    return LayerMemory(
        layer.name,
        (stack.geometry.outputs * stack.geometry.matrices, stack.geometry.columns),
        (stack.a.partition.block, stack.g.partition.block),
        (sum(blocks) + sum(_bytes(factor.traces) for factor in factors)) // count,
        sum(map(_bytes, stack.inverses.tensors)) // count,
        (stack.matrices.kept_bytes + stack.rows.bytes + tiles) // count,
        (passing + (_COPIES - 1) * sum(blocks)) // count,
        layer.weight.device,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Room:
    """Whether curvature finds room, said before it is taken; no rank goes on where one can't."""

    def __init__(self, options: CurvatureOptions, ranks: Communicator) -> None:
        self._options, self._ranks, self._split = options, ranks, options.split
        self._seen: list[TrackedLayer] | None = None

    def require(
        self, layers: list[TrackedLayer], rule: SplitRule | None = None, *, alone: bool = False
    ) -> None:
        """Warns of layers that take much of what is free, and refuses what is more than that.

        It looks once at each list of layers. Where no block sizes are given, those count that were
        said, if any were. All ranks call it, unless one is ``alone`` in having a reason to.

        Raises:
            InvalidOptionError: Where a device has too little; on all ranks, unless ``alone``.
        """
        if rule is None and not isinstance(self._split, str):
            rule = SplitRule(self._split)
        if rule is not None and self._seen is not layers:
            lacks = self._lacks(layers, rule)
            if bool(lacks) if alone else self._ranks.any(bool(lacks)):
                elsewhere = "such that all ranks have room: another one has too little memory"
                allowed = f"smaller, or layers be excluded. {lacks[0]}" if lacks else elsewhere
                raise InvalidOptionError("split", self._split, allowed)
            self._seen = layers

    def _lacks(self, layers: list[TrackedLayer], rule: SplitRule) -> list[str]:
        by_device: dict[torch.device, list[LayerMemory]] = defaultdict(list)
        for entry in planned(layers, rule, self._options):
            by_device[entry.device].append(entry)
        lacks = []
        for device, entries in by_device.items():
            free, needed = free_memory(device), sum(entry.held for entry in entries)
            worst = max(entries, key=lambda entry: entry.held)
            if free is not None and needed > free:
                lacks.append(self._describe(worst, layers, needed, free))
            elif free is not None and worst.held > max(_SHARE * free, _WORD_FROM):
                warn(f"{self._describe(worst, layers, needed, free)}.")
        return lacks

    def _describe(
        self, worst: LayerMemory, layers: list[TrackedLayer], needed: int, free: int
    ) -> str:
        (layer,) = (layer for layer in layers if layer.name == worst.name)
        name = repr(worst.name) if worst.name else "the model"
        smaller = planned([layer], SplitRule(_WAY_OUT), self._options).held
        ways = ["take a smaller split" if isinstance(self._split, int) else "take other layers"]
        if smaller < worst.held:
            ways = [f"cut it: THOR(split={_WAY_OUT}) takes {readable(smaller)} for it"]
        if worst.name:
            ways.append(f"pass exclude=({worst.name!r},)")
        return (
            f"The factors and inverses of {name} ({'x'.join(map(str, worst.matrix))}, blocks of "
            f"{' and '.join(map(str, worst.blocks))}) take {readable(worst.held)}, of "
            f"{readable(needed)} for all layers, and about {readable(worst.refresh)} more while it "
            f"refreshes; {readable(free)} are free on {worst.device}. Either "
            f"{' or '.join(ways)}; memory() lists all layers"
        )

"""The cost model: one device's profile, messages and a network in, step time on n ranks out.

Pure: it measures nothing and knows no torch. Seconds, bytes, bytes per second throughout.
docs/scaling.md derives each formula and states each assumption.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from thor_bench.errors import BenchError

Topology = Literal["ring", "tree", "hierarchical"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)

GRADIENT_BUCKET = 25 << 20  # DistributedDataParallel's default
STATISTICS_BUCKET = 4 << 20  # torch_thor.distributed's


def _require(name: str, value: float, *, ok: bool, allowed: str) -> None:
    if not ok:
        raise BenchError(f"{name}={value:g} must be {allowed}; change it")


@dataclass(frozen=True, kw_only=True)
class Network:
    """How long a message takes: α + size / β for each hop (Hockney 1994).

    Attributes:
        name: Name in tables.
        latency: α of a hop between ranks (between nodes, where it is hierarchical).
        bandwidth: β of each rank's own link, in each direction.
        topology: Which algorithm the ranks use.
        node_size: Ranks in a node; used by ``hierarchical`` alone.
        node_latency: α inside a node.
        node_bandwidth: β inside a node.

    Raises:
        BenchError: A value is out of range.
    """

    name: str
    latency: float
    bandwidth: float
    topology: Topology = "ring"
    node_size: int = 1
    node_latency: float = 0.0
    node_bandwidth: float = math.inf

    def __post_init__(self) -> None:
        """Validates the values."""
        _require("latency", self.latency, ok=self.latency >= 0, allowed=">= 0 seconds")
        _require("bandwidth", self.bandwidth, ok=self.bandwidth > 0, allowed="> 0 bytes/s")
        _require("ranks per node", self.node_size, ok=self.node_size >= 1, allowed=">= 1")
        inside = self.node_bandwidth
        _require("bandwidth in a node", inside, ok=inside > 0, allowed="> 0 bytes/s")

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds until every rank has the sum of one message of each.

        ``ring``: 2 (n - 1) α + 2 (n - 1)/n · size/β. ``tree``: recursive halving and doubling,
        2 ⌈log2 n⌉ α + the same (Thakur et al. 2005). ``hierarchical``: a ring's reduce-scatter
        and all-gather inside each node; between nodes a tree, each rank with its share.
        """
        if self.topology == "hierarchical":
            inside, nodes = self._levels(ranks)
            inner = _ring(inside, self.node_latency, size / self.node_bandwidth)
            return 2 * inner + 2 * _tree(nodes, self.latency, size / inside / self.bandwidth)
        half = _ring if self.topology == "ring" else _tree
        return 2 * half(ranks, self.latency, size / self.bandwidth)

    def all_gather(self, size: float, ranks: int) -> float:
        """Seconds until every rank has all parts, ``size`` bytes together."""
        if self.topology == "hierarchical":
            inside, nodes = self._levels(ranks)
            inner = _ring(inside, self.node_latency, size / self.node_bandwidth)
            return inner + _tree(nodes, self.latency, size / inside / self.bandwidth)
        half = _ring if self.topology == "ring" else _tree
        return half(ranks, self.latency, size / self.bandwidth)

    def _levels(self, ranks: int) -> tuple[int, int]:
        """Returns ranks in a node, and nodes."""
        inside = min(self.node_size, ranks)
        return inside, -(-ranks // inside)


def _ring(ranks: int, latency: float, transfer: float) -> float:
    """Half an all-reduce on a ring; ``transfer`` is size/β."""
    return (ranks - 1) * latency + (ranks - 1) / ranks * transfer


def _tree(ranks: int, latency: float, transfer: float) -> float:
    """Half an all-reduce by recursive halving, or doubling."""
    return math.ceil(math.log2(ranks)) * latency + (ranks - 1) / ranks * transfer


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What a rank sends, counted from the model.

    Attributes:
        gradients: Bytes of all gradients, in every step.
        statistics: Bytes of the packed triangles of all factors' blocks, in each refresh.
        traces: Bytes of the small message that is sent first, in each refresh.
        inverses: Bytes of all inverses, sent where blocks are inverted by owners.
        largest_block: Share of the inversion's work that the largest block has.
    """

    gradients: int
    statistics: int = 0
    traces: int = 0
    inverses: int = 0
    largest_block: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one optimizer costs on one device.

    Attributes:
        name: Name of the optimizer.
        update: Seconds of the optimizer in a step without refresh.
        statistics: Further seconds of a step that updates the factors.
        inversion: Further seconds of a step that inverts them.
        messages: What it sends.
    """

    name: str
    update: float
    statistics: float
    inversion: float
    messages: Messages


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one device was measured to need.

    Attributes:
        workload: What is trained.
        device: Where it was measured.
        batch: Samples per step and device.
        parameters: Trained values.
        forward: Seconds of forward and loss.
        backward: Seconds of backward.
        rules: The optimizers.
        note: How it was measured.
    """

    workload: str
    device: str
    batch: int
    parameters: int
    forward: float
    backward: float
    rules: tuple[Rule, ...]
    note: str

    def rule(self, name: str) -> Rule:
        """Returns an optimizer by its name."""
        return next(rule for rule in self.rules if rule.name == name)

    def times(self, factor: float) -> "Profile":
        """Returns the profile of a device that needs ``factor`` times as long for everything."""
        rules = tuple(
            replace(
                rule,
                update=rule.update * factor,
                statistics=rule.statistics * factor,
                inversion=rule.inversion * factor,
            )
            for rule in self.rules
        )
        return replace(
            self, forward=self.forward * factor, backward=self.backward * factor, rules=rules
        )


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is not measured.

    Attributes:
        interval: Steps between two refreshes of a layer.
        overlap: Share of a computation under which the messages that it makes ready can travel.
        owners: Whether blocks may be inverted by one rank each, where that is faster.

    Raises:
        BenchError: A value is out of range.
    """

    interval: float = 20.0
    overlap: float = 1.0
    owners: bool = True

    def __post_init__(self) -> None:
        """Validates the values."""
        _require("--interval", self.interval, ok=self.interval >= 1, allowed=">= 1 step")
        _require("--overlap", self.overlap, ok=0 <= self.overlap <= 1, allowed="in 0 … 1")


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Where the seconds of a mean step go, on each of n ranks.

    Attributes:
        ranks: n.
        compute: Forward, backward and update.
        gradients: What the gradients' messages add.
        statistics: Statistics and their messages, per step.
        inversion: Inversion, and its messages where blocks have owners, per step.
        owners: Whether blocks have owners, because that is faster.
    """

    ranks: int
    compute: float
    gradients: float
    statistics: float
    inversion: float
    owners: bool

    @property
    def total(self) -> float:
        """Seconds of a mean step."""
        return self.compute + self.gradients + self.statistics + self.inversion


def exposed(network: Network, size: float, ranks: int, *, bucket: float, hidden_by: float) -> float:
    """Seconds that bucketed messages add to the computation that makes them ready.

    B equal buckets become ready at 1/B, 2/B, … 1 of it and travel one after the other, c seconds
    each: max(c, B c - (1 - 1/B) ``hidden_by``). The last bucket can never hide.
    """
    if ranks == 1 or size == 0:
        return 0.0
    count = math.ceil(size / bucket)
    each = network.all_reduce(size / count, ranks)
    return max(each, count * each - (1 - 1 / count) * hidden_by)


def step_time(
    profile: Profile, name: str, network: Network, ranks: int, assumptions: Assumptions
) -> StepTime:
    """Predicts the mean step of an optimizer on ``ranks`` ranks, each with the profile's batch."""
    rule, interval = profile.rule(name), assumptions.interval
    messages = rule.messages
    gradients = exposed(
        network,
        messages.gradients,
        ranks,
        bucket=GRADIENT_BUCKET,
        hidden_by=assumptions.overlap * profile.backward,
    )
    # Buckets of statistics leave after backward, each while the next one is computed.
    statistics = exposed(
        network,
        messages.statistics,
        ranks,
        bucket=STATISTICS_BUCKET,
        hidden_by=assumptions.overlap * rule.statistics,
    )
    traces = network.all_reduce(messages.traces, ranks) if messages.traces else 0.0
    shared = rule.inversion * max(messages.largest_block, 1 / ranks)
    shared += network.all_gather(messages.inverses, ranks)
    owners = assumptions.owners and ranks > 1 and shared < rule.inversion
    return StepTime(
        ranks=ranks,
        compute=profile.forward + profile.backward + rule.update,
        gradients=gradients,
        statistics=(rule.statistics + statistics + traces) / interval,
        inversion=(shared if owners else rule.inversion) / interval,
        owners=owners,
    )


def efficiency(alone: StepTime, many: StepTime) -> float:
    """Weak scaling: the same batch on each rank, so the ratio of step times."""
    return alone.total / many.total

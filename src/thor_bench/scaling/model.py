"""The cost model: one device's profile, messages and a network in, step time on n ranks out.

Pure: it measures nothing and knows no torch. Seconds, bytes, bytes per second throughout.
docs/scaling.md derives each formula and states each assumption.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from thor_bench.errors import BenchError

T = TypeVar("T", bound="Rule | Profile")

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

    A ``ring`` of n ranks has n - 1 hops; a ``tree`` ⌈log2 n⌉, by recursive halving and doubling
    (Thakur et al. 2005); ``hierarchical`` is a ring in each node and a tree between nodes, in
    which each rank has its share of the message.
    """

    name: str
    latency: float  # α of a hop between ranks (between nodes, where it is hierarchical)
    bandwidth: float  # β of each rank's own link, in each direction
    topology: Topology = "ring"
    node_size: int = 1  # ranks in a node; it and what follows is of ``hierarchical`` alone
    node_latency: float = 0.0
    node_bandwidth: float = math.inf

    def __post_init__(self) -> None:
        """Validates the values."""
        _require("latency", self.latency, ok=self.latency >= 0, allowed=">= 0 seconds")
        _require("bandwidth", self.bandwidth, ok=self.bandwidth > 0, allowed="> 0 bytes/s")
        _require("ranks per node", self.node_size, ok=self.node_size >= 1, allowed=">= 1")
        inside = self.node_bandwidth
        _require("bandwidth in a node", inside, ok=inside > 0, allowed="> 0 bytes/s")

    def all_gather(self, size: float, ranks: int) -> float:
        """Seconds until every rank has all parts, ``size`` bytes together."""
        inside = min(self.node_size, ranks) if self.topology == "hierarchical" else 1
        nodes = -(-ranks // inside)
        hops = nodes - 1 if self.topology == "ring" else math.ceil(math.log2(nodes))
        within = _gather(inside, inside - 1, self.node_latency, size / self.node_bandwidth)
        return within + _gather(nodes, hops, self.latency, size / inside / self.bandwidth)

    def all_reduce(self, size: float, ranks: int) -> float:
        """Seconds until every rank has the sum of one message of each.

        A reduce-scatter, which takes as long as an all-gather, and an all-gather.
        """
        return 2 * self.all_gather(size, ranks)


def _gather(members: int, hops: int, latency: float, transfer: float) -> float:
    """Seconds until all members have all parts of a message that takes ``transfer`` (size/β)."""
    return hops * latency + (members - 1) / members * transfer


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What a rank sends, counted from the model: bytes in a step, and in each refresh."""

    gradients: int  # in every step
    statistics: int = 0  # packed triangles of all factors' blocks
    traces: int = 0  # the small message that is sent first
    inverses: int = 0  # where blocks are inverted by owners
    largest_block: float = 1.0  # its share of the inversion's work


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one optimizer costs on one device."""

    name: str
    update: float  # of a step without refresh
    statistics: float  # further seconds of a step that updates the factors
    inversion: float  # further seconds of a step that inverts them
    messages: Messages


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one device was measured to need."""

    workload: str
    device: str
    batch: int  # samples per step and device
    parameters: int
    forward: float  # loss included
    backward: float
    rules: tuple[Rule, ...]
    note: str  # how it was measured

    def times(self, factor: float) -> "Profile":
        """Returns the profile of a device that needs ``factor`` times as long for everything."""
        rules = [_times(rule, factor, "update", "statistics", "inversion") for rule in self.rules]
        return replace(_times(self, factor, "forward", "backward"), rules=tuple(rules))


def _times(one: T, factor: float, *names: str) -> T:
    slower: dict[str, Any] = {name: factor * getattr(one, name) for name in names}
    return replace(one, **slower)


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is not measured."""

    interval: float = 20.0  # steps between two refreshes of a layer
    overlap: float = 1.0  # share of a computation that hides the messages that it makes ready
    owners: bool = True  # whether a block may be inverted by one rank, where that is faster

    def __post_init__(self) -> None:
        """Validates the values."""
        _require("--interval", self.interval, ok=self.interval >= 1, allowed=">= 1 step")
        _require("--overlap", self.overlap, ok=0 <= self.overlap <= 1, allowed="in 0 … 1")


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Where the seconds of a mean step go, on each of n ranks."""

    ranks: int
    compute: float  # forward, backward and update
    gradients: float  # what the gradients' messages add
    statistics: float  # with their messages
    inversion: float  # with its messages, where blocks have owners
    owners: bool  # whether they have
    alone: float  # the whole step on one rank

    @property
    def total(self) -> float:
        """Seconds of a mean step."""
        return self.compute + self.gradients + self.statistics + self.inversion

    @property
    def efficiency(self) -> float:
        """Weak scaling: the same batch on each rank, so the ratio of step times."""
        return self.alone / self.total


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
    rule = next(rule for rule in profile.rules if rule.name == name)
    sent, interval, overlap = rule.messages, assumptions.interval, assumptions.overlap
    hidden = overlap * profile.backward
    gradients = exposed(network, sent.gradients, ranks, bucket=GRADIENT_BUCKET, hidden_by=hidden)
    # Buckets of statistics leave after backward, each while the next one is computed.
    hidden = overlap * rule.statistics
    triangles = exposed(network, sent.statistics, ranks, bucket=STATISTICS_BUCKET, hidden_by=hidden)
    traces = network.all_reduce(sent.traces, ranks) if sent.traces else 0.0
    shared = rule.inversion * max(sent.largest_block, 1 / ranks)
    shared += network.all_gather(sent.inverses, ranks)
    owners = assumptions.owners and ranks > 1 and shared < rule.inversion
    compute = profile.forward + profile.backward + rule.update
    return StepTime(
        ranks=ranks,
        compute=compute,
        gradients=gradients,
        statistics=(rule.statistics + triangles + traces) / interval,
        inversion=(shared if owners else rule.inversion) / interval,
        owners=owners,
        alone=compute + rule.statistics / interval + rule.inversion / interval,
    )

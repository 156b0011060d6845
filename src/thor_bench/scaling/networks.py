"""Networks by name, and how a user changes them."""

from dataclasses import dataclass, replace
from typing import Any

from thor_bench.errors import BenchError, unknown_choice
from thor_bench.scaling.model import TOPOLOGIES, Network

GIGABIT = 1e9 / 8
_REACHED = 0.8  # of the nominal rate, by a collective's payload


def _network(name: str, latency_us: float, gbit: float, **inside: Any) -> Network:
    bandwidth = _REACHED * gbit * GIGABIT
    return Network(name=name, latency=latency_us * 1e-6, bandwidth=bandwidth, **inside)


def _in_node(latency_us: float, gbit: float) -> dict[str, Any]:
    """Returns the inside of a node of eight devices."""
    return {
        "topology": "hierarchical",
        "node_size": 8,
        "node_latency": latency_us * 1e-6,
        "node_bandwidth": _REACHED * gbit * GIGABIT,
    }


# Nominal rates; latencies are the usual ones of a hop through the software above the link.
NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        _network("10GbE", 30, 10),
        _network("25GbE", 20, 25),
        _network("100GbE", 5, 100, topology="tree"),
        _network("infiniband", 3, 200, topology="tree"),
        # One 400 Gb/s port for each of eight GPUs, NVLink (450 GB/s a direction) inside.
        _network("nvlink-infiniband", 3, 400, **_in_node(2, 3600)),
        # One 100 Gb/s port for each of eight Ascend 910, 30 GB/s a direction inside.
        _network("ascend", 5, 100, **_in_node(3, 240)),
    )
}


@dataclass(frozen=True, kw_only=True)
class NetworkChanges:
    """What a user says instead of a named network's values; None keeps them.

    Attributes:
        topology: Name of the algorithm.
        latency_us: Microseconds of a hop.
        gbit: Rate of each rank's link that a collective reaches, in Gb/s.
        ranks_per_node: Ranks in a node.
    """

    topology: str | None = None
    latency_us: float | None = None
    gbit: float | None = None
    ranks_per_node: int | None = None


def find_network(name: str, changes: NetworkChanges | None = None) -> Network:
    """Returns a network by its name, changed as the user says.

    Raises:
        BenchError: A name is unknown, or a value out of range.
    """
    if name not in NETWORKS:
        raise unknown_choice("--network", name, NETWORKS)
    network, changes = NETWORKS[name], changes or NetworkChanges()
    values: dict[str, Any] = {}
    if changes.topology is not None:
        if changes.topology not in TOPOLOGIES:
            raise unknown_choice("--topology", changes.topology, TOPOLOGIES)
        values["topology"] = changes.topology
    if changes.latency_us is not None:
        values["latency"] = changes.latency_us * 1e-6
    if changes.gbit is not None:
        values["bandwidth"] = changes.gbit * GIGABIT
    if changes.ranks_per_node is not None:
        values["node_size"] = changes.ranks_per_node
    if not values:
        return network
    return replace(network, name=f"{name}, changed", **values)


def parse_ranks(text: str) -> tuple[int, ...]:
    """Reads numbers of ranks, such as ``1,8,64``; 1 is always among them.

    Raises:
        BenchError: A part is no number from 1 to a million.
    """
    found = {1}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if not part.isdigit() or not 1 <= int(part) <= 1_000_000:
            message = f"--ranks {part!r} must be a whole number in 1 … 1000000"
            raise BenchError(f"{message}; write, for example, --ranks 1,8,64")
        found.add(int(part))
    return tuple(sorted(found))

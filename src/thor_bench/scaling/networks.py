"""Networks by name, and how a user changes them."""

from dataclasses import replace
from typing import Any

from thor_bench.errors import BenchError, unknown_choice
from thor_bench.scaling.model import TOPOLOGIES, Network

_MICROSECOND, _GIGABIT = 1e-6, 1e9 / 8
_REACHED = 0.8 * _GIGABIT  # a collective's payload, of a gigabit of the nominal rate
_MOST_RANKS = 1_000_000


def _network(name: str, latency_us: float, gbit: float, **how: Any) -> Network:
    latency = latency_us * _MICROSECOND
    return Network(name=name, latency=latency, bandwidth=_REACHED * gbit, **how)


def _eight(latency_us: float, gbit: float) -> dict[str, Any]:
    """Returns the inside of a node of eight devices."""
    inside = {"node_latency": latency_us * _MICROSECOND, "node_bandwidth": _REACHED * gbit}
    return {"topology": "hierarchical", "node_size": 8, **inside}


# Nominal rates; latencies are the usual ones of a hop through the software above the link.
NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        _network("10GbE", 30, 10),
        _network("25GbE", 20, 25),
        _network("100GbE", 5, 100, topology="tree"),
        _network("infiniband", 3, 200, topology="tree"),
        # One 400 Gb/s port for each of eight GPUs, NVLink (450 GB/s a direction) inside.
        _network("nvlink-infiniband", 3, 400, **_eight(2, 3600)),
        # One 100 Gb/s port for each of eight Ascend 910, 30 GB/s a direction inside.
        _network("ascend", 5, 100, **_eight(3, 240)),
    )
}


def find_network(
    name: str,
    *,
    topology: str | None = None,
    latency_us: float | None = None,
    gbit: float | None = None,
    node_size: int | None = None,
) -> Network:
    """Returns a network by its name; what is not None takes the place of its own value."""
    if name not in NETWORKS:
        raise unknown_choice("--network", name, NETWORKS)
    if topology is not None and topology not in TOPOLOGIES:
        raise unknown_choice("--topology", topology, TOPOLOGIES)
    said: dict[str, Any] = {
        "topology": topology,
        "latency": None if latency_us is None else latency_us * _MICROSECOND,
        "bandwidth": None if gbit is None else gbit * _GIGABIT,
        "node_size": node_size,
    }
    changes = {field: value for field, value in said.items() if value is not None}
    network = NETWORKS[name]
    return replace(network, name=f"{name}, changed", **changes) if changes else network


def parse_ranks(text: str) -> tuple[int, ...]:
    """Reads numbers of ranks, such as ``1,8,64``; 1 is always among them."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdigit() or not 1 <= int(part) <= _MOST_RANKS:
            message = f"--ranks {part!r} must be a whole number in 1 … {_MOST_RANKS}"
            raise BenchError(f"{message}; write, for example, --ranks 1,8,64")
    return tuple(sorted({1, *map(int, parts)}))

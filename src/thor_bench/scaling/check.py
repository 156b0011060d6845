"""The model against reality: small runs on 2 and 4 processes of this machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from thor_bench.errors import BenchError
from thor_bench.report.tables import TextTable
from thor_bench.scaling.model import Assumptions, Network, Profile, step_time
from thor_bench.scaling.worker import ADAPTER, INTERVAL, Measured

CHECKED = (2, 4)
CYCLES = 8


@dataclass(frozen=True)
class Check:
    """What was measured, on one process and on several.

    Attributes:
        profile: What one process needs.
        cores: Cores that the processes share.
        runs: Measurements, by the number of ranks.
    """

    profile: Profile
    cores: int
    runs: tuple[Measured, ...]


def run_check(tell: Callable[[str], None] = lambda _: None) -> Check:
    """Trains the small model on 1, 2 and 4 processes of one thread each.

    Args:
        tell: Receives what is being measured.

    Raises:
        BenchError: A process failed.
    """
    alone, *runs = (_measure(ranks, tell) for ranks in (1, *CHECKED))
    if alone.profile is None:
        raise BenchError("--check: the measurement of one process is empty; try again")
    return Check(alone.profile, len(os.sched_getaffinity(0)), tuple(runs))


def _measure(ranks: int, tell: Callable[[str], None]) -> Measured:
    tell(f"training on {ranks} process{'es' if ranks > 1 else ''}")
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        command += ["-m", "thor_bench.scaling.worker", str(path), str(CYCLES)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(  # noqa: S603 - our own module
            command, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode or not path.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            message = f"--check: {ranks} processes of this machine failed ({last[:160]})"
            raise BenchError(f"{message}; leave --check out")
        return ADAPTER.validate_json(path.read_bytes())


def fitted_network(run: Measured) -> Network:
    """Returns the ring whose α and β give the two messages that a run measured."""
    (small, large), (quick, slow) = run.sizes, run.messages
    per_byte = max(slow - quick, 1e-12) / (large - small)
    hops = 2 * (run.ranks - 1)
    return Network(
        name=f"gloo on {run.ranks} processes",
        latency=max(quick - per_byte * small, 0.0) / hops,
        bandwidth=hops / run.ranks / per_byte,
    )


def predicted(check: Check, run: Measured, name: str) -> float:
    """Predicts a step: processes beyond the cores take turns, and messages need a core too."""
    turns = max(1.0, run.ranks / check.cores)
    assumptions = Assumptions(interval=INTERVAL, overlap=0.0, owners=False)
    profile = check.profile.times(turns)
    return step_time(profile, name, fitted_network(run), run.ranks, assumptions).total


def check_table(check: Check) -> TextTable:
    """Returns predicted beside measured steps, and counted beside sent bytes."""
    rows = []
    for run in check.runs:
        for rule in check.profile.rules:
            guess, real = predicted(check, run, rule.name), run.steps[rule.name]
            sent = rule.messages
            rows.append(
                (
                    f"{run.ranks} ranks, {rule.name}",
                    f"{1e3 * guess:.1f}",
                    f"{1e3 * real:.1f}",
                    f"{100 * (guess / real - 1):+.0f}",
                    str(sent.statistics + sent.traces),
                    f"{run.sent[rule.name]:.0f}",
                )
            )
    headings = (
        "run", "predicted, ms", "measured, ms", "error, %", "counted, bytes a refresh",
        "sent, bytes a refresh",
    )  # fmt: skip
    return TextTable(headings, tuple(rows))


def network_lines(check: Check) -> Sequence[str]:
    """Returns what was fitted, one line per number of ranks."""
    networks = [fitted_network(run) for run in check.runs]
    return [
        f"{network.name}: latency {1e6 * network.latency:.0f} µs a hop, "
        f"{network.bandwidth / 1e9:.2f} GB/s"
        for network in networks
    ]

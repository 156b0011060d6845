"""The model against reality: small runs on 2 and 4 processes of this machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from thor_bench.errors import BenchError
from thor_bench.report.tables import TextTable
from thor_bench.scaling.model import Assumptions, Network, Profile, step_time
from thor_bench.scaling.worker import ADAPTER, INTERVAL, Measured

CHECKED = (2, 4)
CYCLES = 8


def run_check(tell: Callable[[str], None] = lambda _: None) -> tuple[Profile, list[Measured]]:
    """Trains a small model on 1, 2 and 4 processes: what one needs, and what several did."""
    alone, *runs = (_measure(ranks, tell) for ranks in (1, *CHECKED))
    if alone.profile is None:
        raise BenchError("--check: the measurement of one process is empty; try again")
    return alone.profile, runs


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
    (small, quick), (large, slow) = run.messages.items()
    per_byte = max(slow - quick, 1e-12) / (large - small)
    hops = 2 * (run.ranks - 1)
    return Network(
        name=f"gloo on {run.ranks} processes",
        latency=max(quick - per_byte * small, 0.0) / hops,
        bandwidth=hops / run.ranks / per_byte,
    )


def check_table(profile: Profile, runs: Sequence[Measured], cores: int | None = None) -> TextTable:
    """Returns predicted beside measured steps, and counted beside sent bytes.

    Processes beyond the cores take turns, and messages need a core too, so nothing hides them.
    """
    cores = cores or len(os.sched_getaffinity(0))
    assumptions = Assumptions(interval=INTERVAL, overlap=0.0, owners=False)
    rows = []
    for run in runs:
        shared, network = profile.times(max(1.0, run.ranks / cores)), fitted_network(run)
        for rule in profile.rules:
            guess = step_time(shared, rule.name, network, run.ranks, assumptions).total
            real, sent = run.steps[rule.name], rule.messages
            rows.append(
                {
                    "run": f"{run.ranks} ranks, {rule.name}",
                    "predicted, ms": f"{1e3 * guess:.1f}",
                    "measured, ms": f"{1e3 * real:.1f}",
                    "error, %": f"{100 * (guess / real - 1):+.0f}",
                    "counted, bytes a refresh": str(sent.statistics + sent.traces),
                    "sent, bytes a refresh": f"{run.sent[rule.name]:.0f}",
                }
            )
    return TextTable.of(rows)


def network_line(run: Measured) -> str:
    """Returns the network that was fitted to a run."""
    network = fitted_network(run)
    speed = f"latency {1e6 * network.latency:.0f} µs a hop, {network.bandwidth / 1e9:.2f} GB/s"
    return f"{network.name}: {speed}"

"""Which machine and which software made a number."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from torch_thor import __version__, multiplies_bfloat16

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware and software of a run."""

    cpu: str
    cores: int  # logical ones that this process may use
    threads: int  # that torch uses
    gpu: str | None  # that trains
    system: str
    python: str
    torch: str
    torch_thor: str
    bfloat16: bool | None = None  # multiplied where it trains, else float32; None: never asked

    def __str__(self) -> str:
        """Returns a one-line summary."""
        device = f"{self.gpu}, {self.cpu}" if self.gpu else self.cpu
        software = f"torch {self.torch}, Python {self.python}, torch-thor {self.torch_thor}"
        unable = ", no bfloat16" if self.bfloat16 is False else ""
        cores = f"{self.cores} cores ({self.threads} threads)"
        return f"{device}{unable}, {cores}, {self.system}, {software}"


def _cpu_model() -> str:
    """Returns the processor's name as the system tells it."""
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> Machine:
    """Describes the machine at hand, with the GPU where ``device`` is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(
        cpu=_cpu_model(),
        cores=cores or 1,
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        torch_thor=__version__,
        bfloat16=multiplies_bfloat16(device),
    )

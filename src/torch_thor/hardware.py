"""Measured inversion times of the device at hand, cached on disk (paper, eq. 12)."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torch_thor import linalg

if TYPE_CHECKING:
    from collections.abc import Sequence

_CACHE_VERSION = 2
_REPEATS = 5
_MEASURE_SECONDS = 0.05  # small sizes are repeated for so long


@dataclass(frozen=True)
class InversionTime:
    """Time to invert one matrix.

    Args:
        size: Rows of the matrix.
        seconds: Shortest of several repeats.
    """

    size: int
    seconds: float


def device_name(device: torch.device) -> str:
    """Names the hardware, the thread count where it matters, and the torch version."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()}-{platform.processor() or 'cpu'}-{torch.get_num_threads()}t"
    return f"{device.type}-{kind}-torch{torch.__version__}"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Says whether a device has instructions that multiply bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def cache_file() -> Path:
    """Where measured times are kept: ``$TORCH_THOR_CACHE`` or the user's cache folder."""
    if (folder := os.environ.get("TORCH_THOR_CACHE")) is not None:
        base = Path(folder)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch-thor"
    return base.expanduser() / "inversion_times.json"


def inversion_times(
    sizes: Sequence[int], device: torch.device, power: float
) -> tuple[InversionTime, ...]:
    """Returns the time to invert a matrix of each size, measured once per device.

    Sizes that the cache lacks are measured and added to it; a cache that can't be read
    or written is measured anew each time.

    Args:
        sizes: Matrix sizes.
        device: Where to measure.
        power: 1 measures inverses, 1/2 inverse square roots.
    """
    key = f"{device_name(device)}-p{power:g}"
    known = _read_cache(key)
    missing = [size for size in sizes if size not in known]
    for size in missing:
        known[size] = measure_inversion(size, device, power)
    if missing:
        _write_cache(key, known)
    return tuple(InversionTime(size, known[size]) for size in sizes)


def measure_inversion(size: int, device: torch.device, power: float) -> float:
    """Measures the seconds to invert one damped covariance of this size.

    The shortest of the repeats counts: whatever else the machine does only adds time.
    """
    generator = torch.Generator().manual_seed(size)
    rows = torch.randn(2 * size, size, generator=generator).to(device)
    matrix = rows.mT @ rows / (2 * size) + 0.1 * torch.eye(size, device=device)
    linalg.inverse_root(matrix.unsqueeze(0), power)  # pays for libraries that load lazily
    times: list[float] = []
    while len(times) < _REPEATS or sum(times) < _MEASURE_SECONDS:
        _synchronize(device)
        begin = time.perf_counter()
        linalg.inverse_root(matrix.unsqueeze(0), power)
        _synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read_cache(key: str) -> dict[int, float]:
    try:
        content = json.loads(cache_file().read_text())
        if content["version"] != _CACHE_VERSION:
            return {}
        return {int(size): float(seconds) for size, seconds in content["times"][key].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_cache(key: str, times: dict[int, float]) -> None:
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = json.loads(path.read_text())
            if content["version"] != _CACHE_VERSION or not isinstance(content["times"], dict):
                content = {"version": _CACHE_VERSION, "times": {}}
        except (OSError, ValueError, KeyError, TypeError):
            content = {"version": _CACHE_VERSION, "times": {}}
        content["times"][key] = {str(size): seconds for size, seconds in sorted(times.items())}
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".tmp", delete=False
        ) as temporary:
            json.dump(content, temporary, indent=1)
        Path(temporary.name).replace(path)
    except OSError:
        return

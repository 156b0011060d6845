"""Measured times of inversions (paper, eq. 12) and block products here, cached on disk."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torch_thor import linalg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CACHE_VERSION = 2
_REPEATS = 5
# On a busy machine threads wait for each other, and most repeats of small sizes take a time slice.
_MOST_REPEATS = 100
_MEASURE_SECONDS = 0.5
_PRODUCT_ROWS, _PRODUCT_COLUMNS = 4096, 256
# Of the free memory, what a measurement may take; what it takes for a block of s rows, per s².
_MEASURE_SHARE = 0.25
_MEASURE_BYTES = 4 * 12

PRODUCT_ENTRIES = _PRODUCT_ROWS * _PRODUCT_COLUMNS


def device_name(device: torch.device) -> str:
    """Names the hardware, the thread count where it matters, and the torch version."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()}-{platform.processor() or 'cpu'}-{torch.get_num_threads()}t"
    return f"{device.type}-{kind}-torch{torch.__version__}"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Says whether a device has instructions that multiply bfloat16.

    Where it has none, autocast to bfloat16 costs time in place of saving it (ten times a float32
    step on an AVX2 processor).

    Args:
        device: A CPU, or a CUDA device.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # A private name: a torch that lacks it says nothing of its processor.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and probe is not None and bool(probe())


def multiplies_bfloat16_in_tiles() -> bool:
    """Says whether the CPU multiplies bfloat16 in tiles (AMX), where small ones gain too."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # a private name, as above
    return probe is not None and bool(probe())


def free_memory(device: torch.device) -> int | None:
    """Bytes that a CUDA device or Linux' CPU can still give; ``None`` where nobody knows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [_available(), _left_in_container()] if device.type == "cpu" else []
    return min((size for size in known if size is not None), default=None)


def _available() -> int | None:
    """What Linux would give without swapping: free pages, and those of files."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _left_in_container() -> int | None:
    """What the limit of a control group (version 2) leaves."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        return limit - used + int(dict(line.split() for line in lines)["inactive_file"])
    except (OSError, ValueError, KeyError):  # no such group, or no limit: "max"
        return None


def affordable(sizes: Sequence[int], device: torch.device) -> tuple[int, ...]:
    """Those of rising block sizes that a device has memory to measure; always the first two."""
    free = free_memory(device)
    if free is None:
        return tuple(sizes)
    largest = math.isqrt(int(_MEASURE_SHARE * free) // _MEASURE_BYTES)
    return (*sizes[:2], *(size for size in sizes[2:] if size <= largest))


def cache_file() -> Path:
    """Where measured times are kept: ``$TORCH_THOR_CACHE`` or the user's cache folder."""
    if (folder := os.environ.get("TORCH_THOR_CACHE")) is not None:
        base = Path(folder)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch-thor"
    return base.expanduser() / "inversion_times.json"


def inversion_times(sizes: Sequence[int], device: torch.device, power: float) -> tuple[float, ...]:
    """Returns the seconds to invert a matrix of each size, measured once per device.

    Sizes that the cache lacks are measured and added to it; a cache that can't be read
    or written is measured anew each time. A power of 1 measures inverses, 1/2 their roots.
    """
    key = f"{device_name(device)}-p{power:g}"
    return _measured_once(key, sizes, lambda size: measure_inversion(size, device, power))


def product_times(sizes: Sequence[int], device: torch.device) -> tuple[float, ...]:
    """The same for multiplying ``PRODUCT_ENTRIES`` of a weight by blocks of each size."""
    key = f"{device_name(device)}-products"
    return _measured_once(key, sizes, lambda size: measure_product(size, device))


def _measured_once(
    key: str, sizes: Sequence[int], measure: Callable[[int], float]
) -> tuple[float, ...]:
    """Reads the times of a key from the cache, and adds those that it lacks."""
    known = _known_times(key)
    missing = [size for size in sizes if size not in known]
    for size in missing:
        known[size] = measure(size)
    if missing:
        _write_cache(key, known)
    return tuple(known[size] for size in sizes)


def measure_inversion(size: int, device: torch.device, power: float) -> float:
    """Measures the seconds to invert one damped covariance of this size."""
    generator = torch.Generator("cpu").manual_seed(size)
    rows = torch.randn(2 * size, size, generator=generator, device="cpu").to(device)
    matrix = rows.mT @ rows / (2 * size) + 0.1 * torch.eye(size, device=device)
    return _shortest(lambda: linalg.inverse_root(matrix.unsqueeze(0), power), device)


def measure_product(size: int, device: torch.device) -> float:
    """Measures the seconds to multiply ``PRODUCT_ENTRIES`` entries by float32 blocks of a size."""
    count = -(-_PRODUCT_ROWS // size)
    blocks = torch.rand(count, size, size, device=device)
    entries = torch.rand(count, size, _PRODUCT_COLUMNS, device=device)
    seconds = _shortest(lambda: torch.bmm(blocks, entries), device)
    return seconds * PRODUCT_ENTRIES / entries.numel()


def _shortest(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of the repeats: whatever else the machine does only adds time."""
    work()  # pays for libraries that load lazily
    times: list[float] = []
    while len(times) < _REPEATS or (len(times) < _MOST_REPEATS and sum(times) < _MEASURE_SECONDS):
        _synchronize(device)
        begin = time.perf_counter()
        work()
        _synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read_cache() -> dict[str, Any]:
    """What is known of all devices; nothing where the file is none of ours."""
    try:
        content = json.loads(cache_file().read_text())
        return dict(content["times"]) if content["version"] == _CACHE_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _known_times(key: str) -> dict[int, float]:
    try:
        return {int(size): float(seconds) for size, seconds in _read_cache().get(key, {}).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _write_cache(key: str, times: dict[int, float]) -> None:
    path, known = cache_file(), _read_cache()
    known[key] = {str(size): seconds for size, seconds in sorted(times.items())}
    content = {"version": _CACHE_VERSION, "times": known}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".tmp", delete=False
        ) as temporary:
            json.dump(content, temporary, indent=1)
        Path(temporary.name).replace(path)
    except OSError:
        return

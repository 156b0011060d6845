"""Shared set-up: every test starts from the same random state and leaves no setting behind."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import warnings
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Examples are derived from the test itself, so that a failure on one machine is a failure on all.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=40,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# A longer, random search: HYPOTHESIS_PROFILE=search make test ARGS=tests/test_optimizer.py
settings.register_profile(
    "search", parent=settings.get_profile("default"), derandomize=False, max_examples=1000
)
# Times that are measured for one test serve all, and the user's own are neither read nor written.
_CACHE = tempfile.TemporaryDirectory(prefix="torch-thor-tests-")
os.environ["TORCH_THOR_CACHE"] = _CACHE.name
# Threads only wait for each other on matrices of this size, and other processes for both.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# The command chooses its device itself, and another machine may lack its packages.
_OF_THE_BENCH = re.compile(r"^(?:from|import) thor_bench\b", re.MULTILINE)
_BENCH_FOLDERS = ("thor_bench", "benchmarks", "integrations")

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that records golden curves anew, and the device of the tests."""
    parser.addoption("--record-golden", action="store_true", help="write tests/golden anew")
    parser.addoption(
        "--device", default="cpu", help="where tests make their tensors: cpu, cuda or pretend"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Fail at once where the device does not work, and let it say once what it says once."""
    if config.getoption("--device") == "pretend":
        import pretend  # noqa: PLC0415 - it wants a compiler

        pretend.start()
    device = torch.device(config.getoption("--device"))
    if device.type == "cpu":
        return
    with warnings.catch_warnings():
        # The first product in autograd's thread warns that it makes a context.
        warnings.simplefilter("ignore")
        weight = torch.ones(2, 2, device=device, requires_grad=True)
        (weight @ weight).sum().backward()
        float(weight.grad.sum())  # type: ignore[union-attr]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests of the bench on other devices."""
    if torch.device(config.getoption("--device")).type == "cpu":
        return None
    if collection_path.is_dir():
        return collection_path.name in _BENCH_FOLDERS or None
    return _OF_THE_BENCH.search(collection_path.read_text(encoding="utf-8")) is not None or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is about the CPU on other devices."""
    if torch.device(config.getoption("--device")).type == "cpu":
        return
    for item in items:
        if item.get_closest_marker("cpu") is not None:
            item.add_marker(pytest.mark.skip(reason="about the CPU: skipped on other devices"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip what the pretended device has no operation for: fused cells, sparse tensors."""
    try:
        yield
    except (NotImplementedError, pytest.fail.Exception) as error:
        lacks = re.search("Could not run 'aten::[^']*'", f"{error} {error.__context__}")
        if item.config.getoption("--device") == "pretend" and lacks:
            pytest.skip(lacks[0])
        raise


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the test makes its tensors."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def device_by_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let all that a test makes without a device lie on the one asked for."""
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cpu":
        yield
        return
    torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.fixture
def record_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden curves are to be written instead of compared."""
    return bool(request.config.getoption("--record-golden"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Seed torch before every test."""
    torch.manual_seed(0)


@pytest.fixture
def own_objects() -> Iterator[None]:
    """Hides from ``gc.get_objects`` what other tests left, which goes when it likes."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def default_dtype_kept() -> Iterator[None]:
    """Restore torch's default dtype, so that a float64 test cannot change the next one."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def denormals_kept() -> Iterator[None]:
    """Takes back the flush of denormal numbers that a run switches on for its process."""
    yield
    torch.set_flush_denormal(False)

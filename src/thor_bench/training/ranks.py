"""The processes that train one run together, as torchrun starts them; alone, a world of one."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from thor_bench.errors import BenchError, RankError, is_lost_contact, reason

T = TypeVar("T")

_FAILED = "thor/failed"  # counts, in torchrun's store, the ranks that found a fault of their own
_TOLD_WITHIN = 1.0  # seconds until a rank whose peer has failed can know of it
_STREAM = 7_919  # prime, apart from the strides of seeds elsewhere
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


def open_device(name: str) -> torch.device:
    """Returns a torch device that is really there.

    Raises:
        BenchError: The name is no device, or this machine has none of it.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = f"--device {name!r} is not usable on this machine; allowed: cpu, cuda, cuda:N"
        raise BenchError(f"{message} where there is a GPU; try --device cpu") from error
    return device


class Counts(Protocol):
    """What ranks can still count in together while their group is broken (a TCPStore)."""

    def add(self, key: str, amount: int) -> int:
        """Adds to a number and returns the sum."""


class Ranks:
    """A process that trains alone: every answer is its own, and nobody else asks for their number.

    Attributes:
        rank: This process's number.
        size: Number of processes.
        restarted: Whether torchrun started the run again after a failure.
    """

    rank: int = 0
    size: int = 1
    restarted: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes records and checkpoints."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Returns this process's device.

        Raises:
            BenchError: It is not there.
        """
        return open_device(name)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model to call in training: its gradients are means over the ranks."""
        return model

    def draw_apart(self, seed: int) -> None:
        """Gives each process a random stream of its own, once equal weights are drawn."""
        if self.rank:
            torch.manual_seed(seed + _STREAM * self.rank)

    def total(self, values: Sequence[float]) -> list[float]:
        """Returns the sums of some numbers over the ranks."""
        return list(values)

    def from_first(self, find: Callable[[], T]) -> T:
        """Lets the first rank find something and hands it to all."""
        return find()

    def collect(self, random: Tensor) -> Tensor:
        """Returns the random states of all ranks: ``[ranks, bytes]``, or ``[bytes]`` of one."""
        return random

    def pick(self, random: Tensor) -> Tensor | None:
        """Returns this rank's part of what ``collect`` gave; None where it has none."""
        states = random.reshape(-1, random.shape[-1])
        # A generator reads its state from the beginning of the storage, so a view will not do.
        return states[self.rank].clone() if self.rank < len(states) else None

    def align(self, model: nn.Module) -> None:
        """Gives the buffers of the first rank, such as BatchNorm's averages, to all."""

    def meet(self) -> None:
        """Waits until all ranks are here."""
        self.total([0.0])

    def launch(self, command: str) -> str:
        """Returns the command line that starts ``thor …`` on as many processes."""
        return command


ALONE = Ranks()


class TorchrunRanks(Ranks):
    """One of several processes in a group of torch.distributed, joined by a store."""

    def __init__(self, store: Counts, rank: int, size: int) -> None:
        self._store = store
        self.rank, self.size = rank, size
        self.restarted = _attempt() > 0
        self._local_rank = int(os.environ.get("LOCAL_RANK", rank))
        self._local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))

    def device(self, name: str) -> torch.device:
        """Returns this process's device: with ``cuda``, the GPU of its number on this machine."""
        if name.startswith("cuda:") and self._local_size > 1:
            message = f"--device {name} would put {self._local_size} ranks on one GPU"
            raise BenchError(f"{message}; write --device cuda")
        device = open_device(f"cuda:{self._local_rank}" if name == "cuda" else name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wraps the model in DistributedDataParallel."""
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums in float64, in one message."""
        message = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(message)
        return [float(value) for value in message]

    def from_first(self, find: Callable[[], T]) -> T:
        """Sends the first rank's finding, pickled."""
        parcel: list[Any] = [find() if self.is_first else None]
        dist.broadcast_object_list(parcel)
        return cast("T", parcel[0])

    def collect(self, random: Tensor) -> Tensor:
        """Gathers the states of all ranks."""
        states = [torch.empty_like(random) for _ in range(self.size)]
        dist.all_gather(states, random)
        return torch.stack(states)

    def align(self, model: nn.Module) -> None:
        """Broadcasts every buffer."""
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def launch(self, command: str) -> str:
        """Puts torchrun in the place of ``thor``."""
        nodes = -(-self.size // self._local_size)
        start = ["torchrun", *(["--nnodes", str(nodes)] if nodes > 1 else [])]
        start += ["--nproc-per-node", str(self._local_size), "-m", "thor_bench.cli"]
        return " ".join([*start, command.removeprefix("thor ")])

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Lets the rank that found a fault tell of it; the others, cut off by its end, are quiet.

        Raises:
            RankError: What the user is to read, or nothing where another rank tells.
        """
        try:
            yield
        except BenchError as error:
            if not self._claim():
                time.sleep(_TOLD_WITHIN)  # torchrun stops all at once when the first one ends
                raise RankError("", error.exit_code) from error
            if self.is_first:
                raise
            raise RankError(f"rank {self.rank}: {error}", error.exit_code) from error
        except Exception as error:
            if self._told_elsewhere():
                raise RankError("", BenchError.exit_code) from error
            if not self._claim() or not is_lost_contact(error):
                raise
            message = f"rank {self.rank} of {self.size} lost contact ({reason(error)[:120]})"
            remedy = "see why a rank ended; go on with --resume"
            raise RankError(f"{message}; {remedy}", 1) from error

    def _claim(self) -> bool:
        """Whether this rank is the first to report a fault, or cannot ask."""
        try:
            return self._store.add(_FAILED, 1) == 1
        except RuntimeError:
            return True

    def _told_elsewhere(self) -> bool:
        """Whether another rank reports a fault, now or soon."""
        until = time.monotonic() + _TOLD_WITHIN
        with suppress(RuntimeError):
            while time.monotonic() < until:
                if self._store.add(_FAILED, 0):
                    return True
                time.sleep(0.05)
        return False


def _attempt() -> int:
    """Returns how often torchrun has started the run again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def world_size() -> int:
    """Returns how many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process prints what all processes find alike."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def open_ranks(device: str) -> Iterator[Ranks]:
    """Joins the processes that torchrun started: gloo connects CPUs, nccl GPUs.

    Raises:
        BenchError: The other ranks cannot be reached, or one of them has failed.
    """
    if world_size() == 1:
        yield ALONE
        return
    backend = _BACKENDS[torch.device(open_device(device).type).type]
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
        # torchrun's store lives on through a restart; what an earlier attempt left there is void.
        store = PrefixStore(f"attempt {_attempt()}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        message = f"torchrun's processes do not find each other ({reason(error)[:160]})"
        raise BenchError(f"{message}; start them with torchrun --nproc-per-node N") from error
    ranks = TorchrunRanks(store, rank, size)
    try:
        with ranks.failing_together():
            ranks.meet()  # connects them: a fault from here on is known to all
            yield ranks
    finally:
        dist.destroy_process_group()

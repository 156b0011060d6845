"""Runs a function on several gloo ranks, each a process of its own."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

# The server imports torch once and forks the ranks from there.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch_thor", "torch.nn.parallel"])
_TIME_LIMIT = 250.0


class RankError(AssertionError):
    """A rank raised, died or did not answer."""


def on_ranks(size: int, work: Callable[..., Any], *arguments: object) -> list[Any]:
    """Calls ``work(*arguments)`` on every rank of a fresh process group; all must return.

    Args:
        size: Number of ranks.
        work: A function of an importable module, so that it can be sent.
        arguments: What can be pickled.

    Returns:
        What each rank returned.

    Raises:
        RankError: Where a rank did not return, with its traceback.
        SkipTest: Where tests run on another device.
    """
    answers = attempt_on_ranks(size, work, *arguments)
    for rank, answer in enumerate(answers):
        if isinstance(answer, RankError):
            raise RankError(f"rank {rank} of {size}: {answer}")
    return answers


def attempt_on_ranks(size: int, work: Callable[..., Any], *arguments: object) -> list[Any]:
    """The same, but a rank that raised or died gives a ``RankError`` in the place of an answer."""
    if torch.get_default_device().type != "cpu":
        raise SkipTest("ranks talk over gloo, on the CPU")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        pipes, processes = [], []
        for rank in range(size):
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(
                target=_rank, args=(rank, size, store, theirs, work, arguments), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        answers = [_answer(pipe) for pipe in pipes]
        for pipe in pipes:
            pipe.close()  # lets the ranks end
        for process in processes:
            process.join(5)
            process.kill()
        return answers


def _answer(pipe: Connection) -> Any:
    try:
        if not pipe.poll(_TIME_LIMIT):
            return RankError(f"no answer within {_TIME_LIMIT} s")
        return torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
    except EOFError:
        return RankError("died")


def _rank(
    rank: int,
    size: int,
    store: str,
    pipe: Connection,
    work: Callable[..., Any],
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_TIME_LIMIT),
    )
    _meet(f"{store}-connected", rank, size)
    try:
        answer = work(*arguments)
    except Exception:  # noqa: BLE001 - whatever a rank raises is the parent's to judge
        answer = RankError(traceback.format_exc())
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    pipe.send_bytes(buffer.getvalue())
    with contextlib.suppress(EOFError):
        pipe.recv_bytes()  # until all have answered


def _meet(store: str, rank: int, size: int) -> None:
    """Waits for all ranks without a connection between them.

    A rank that is far ahead would close connections that another still opens.
    """
    met = dist.FileStore(store, size)  # type: ignore[attr-defined] # torch leaves it out of __all__
    met.set(str(rank), "here")
    met.wait([str(other) for other in range(size)], timedelta(seconds=_TIME_LIMIT))

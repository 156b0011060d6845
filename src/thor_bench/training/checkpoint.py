"""Saving the whole state of a run so that a kill at any moment loses at most one epoch."""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from thor_bench.errors import BenchError, reason
from thor_bench.records.config import RunConfig
from thor_bench.records.disk import Remembering, written_whole

CHECKPOINT_FILE = "checkpoint.pt"

_VERSION = 1
_CONFIG = TypeAdapter(RunConfig)


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Steps done.
        epoch: Epochs finished.
        step_in_epoch: Steps done of the epoch after them.
        loss_sum: Sum of the training losses of those steps.
        seconds: Training time.
        epoch_start: Training time at the beginning of the epoch.
        waited: Seconds of the epoch spent waiting for batches.
        best_metric: Best value of the test metric so far; None before the first evaluation.
        final_metric: Its latest value.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_start: float = 0.0
    waited: float = 0.0
    best_metric: float | None = None
    final_metric: float | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        config: The run that it belongs to.
        progress: Where the run stood.
        model: State of the model.
        rule: State of optimizers and schedules.
        random: State of torch's global generator, one row per rank where there are several.
        records_bytes: Length of the records file at that moment.
    """

    config: RunConfig
    progress: Progress
    model: Mapping[str, Any]
    rule: Mapping[str, Any]
    random: Tensor
    records_bytes: int


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of a run; the former one stays whole until the new one is on disk.

    Args:
        directory: Folder of the run.
        checkpoint: State to save.

    Raises:
        OSError: The disk refuses.
    """
    payload = {
        "version": _VERSION,
        "config": _CONFIG.dump_json(checkpoint.config).decode(),
        "progress": asdict(checkpoint.progress),
        "model": checkpoint.model,
        "rule": checkpoint.rule,
        "random": checkpoint.random,
        "records_bytes": checkpoint.records_bytes,
    }
    with written_whole(directory / CHECKPOINT_FILE) as file:
        remembering = Remembering(file)
        try:
            torch.save(payload, cast("IO[bytes]", remembering))
        except RuntimeError as error:
            raise remembering.refusal or error from None


def load_checkpoint(directory: Path, device: torch.device) -> Checkpoint | None:
    """Reads the checkpoint of a run, or returns None where it has none yet.

    Args:
        directory: Folder of the run.
        device: Where tensors are put.

    Raises:
        BenchError: The file is broken or from another version.
    """
    path = directory / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        payload = torch.load(path, map_location=device, weights_only=True)
        if payload["version"] != _VERSION:
            message = f"{path} has version {payload['version']}, this thor reads {_VERSION}"
            raise BenchError(f"{message}; start anew with --overwrite")
        return Checkpoint(
            config=_CONFIG.validate_json(payload["config"]),
            progress=Progress(**payload["progress"]),
            model=payload["model"],
            rule=payload["rule"],
            random=payload["random"].cpu(),
            records_bytes=payload["records_bytes"],
        )
    except (
        OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, AttributeError,
        pickle.UnpicklingError, ValidationError,
    ) as error:  # fmt: skip
        message = f"{path} is no readable checkpoint ({reason(error)[:120]})"
        raise BenchError(
            f"{message}; start anew with --overwrite, or name another --out"
        ) from error

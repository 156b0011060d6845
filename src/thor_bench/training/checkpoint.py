"""Saving the whole state of a run so that a kill at any moment loses at most one epoch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from pydantic import TypeAdapter
from torch import Tensor

from thor_bench.errors import BenchError, readable
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
        random: States of the global generators, one row per rank where there are several.
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

    Raises:
        OSError: The disk refuses.
    """
    payload = vars(checkpoint) | {
        "version": _VERSION,
        "config": _CONFIG.dump_json(checkpoint.config).decode(),
        "progress": asdict(checkpoint.progress),
    }
    with written_whole(directory / CHECKPOINT_FILE) as file:
        remembering = Remembering(file)
        try:
            torch.save(payload, cast("IO[bytes]", remembering))
        except RuntimeError as error:
            raise remembering.refusal or error from None


def load_checkpoint(directory: Path, device: torch.device) -> Checkpoint | None:
    """Reads the checkpoint of a run onto a device, or returns None where it has none yet.

    Raises:
        BenchError: The file is broken or from another version.
    """
    path = directory / CHECKPOINT_FILE
    if not path.exists():
        return None
    with readable(path, "checkpoint", "start anew with --overwrite, or name another --out"):
        payload = torch.load(path, map_location=device, weights_only=True)
        version = payload.pop("version")
        if version == _VERSION:
            payload["config"] = _CONFIG.validate_json(payload["config"])
            payload["progress"] = Progress(**payload["progress"])
            payload["random"] = payload["random"].cpu()
            return Checkpoint(**payload)
    message = f"{path} has version {version}, this thor reads {_VERSION}"
    raise BenchError(f"{message}; start anew with --overwrite")

"""A model in training: its data, its optimizer, one step, one evaluation, its state."""

from dataclasses import replace

import torch

from torch_thor.bench.checkpoint import Checkpoint, Progress
from torch_thor.bench.config import DataSource, RunConfig
from torch_thor.bench.data import Batch, Data, InMemoryData
from torch_thor.bench.errors import BenchError, reason
from torch_thor.bench.loading import LazyTrainTest, LoaderData
from torch_thor.bench.optimizers import build_rule
from torch_thor.bench.workloads import Workload


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


class Session:
    """Everything that lives in memory during a run.

    Args:
        config: The run.
        workload: What it trains.
        source: Where the data may be found.

    Raises:
        BenchError: Data are missing, or the device or a setting cannot be used.
    """

    def __init__(self, config: RunConfig, workload: Workload, source: DataSource) -> None:
        self.config = config
        self.workload = workload
        self.device = open_device(config.device)
        self.data: Data = self._load(source)
        torch.set_flush_denormal(True)
        torch.manual_seed(config.seed)
        self.model = workload.build_model().to(self.device)
        self.model.to(memory_format=workload.memory_format)
        self.rule = build_rule(self.model, config, self.data.steps_per_epoch)

    def _load(self, source: DataSource) -> Data:
        splits = self.workload.load(source)
        try:
            if isinstance(splits, LazyTrainTest):
                return LoaderData(
                    splits,
                    batch_size=self.config.batch_size,
                    seed=self.config.seed,
                    device=self.device,
                    memory_format=self.workload.memory_format,
                    workers=source.workers,
                )
            return InMemoryData(
                splits,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                augment=self.workload.augment,
                device=self.device,
                memory_format=self.workload.memory_format,
            )
        except ValueError as error:
            raise BenchError(f"--batch-size: {reason(error)}; choose one in that range") from error

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def total_steps(self) -> int:
        """Steps until the horizon."""
        return self.data.steps_per_epoch * self.config.epochs

    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns the training loss of a batch, ready for backward."""
        inputs, targets = batch
        with self._autocast():
            return self.workload.loss(self.model(inputs), targets)

    def update(self, loss: torch.Tensor) -> None:
        """Takes the optimizer step that a loss asks for."""
        self.rule.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.rule.step()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Returns mean loss and metric over the whole test set."""
        self.model.eval()
        loss = score = 0.0
        samples = 0
        for inputs, targets in self.data.test_batches():
            with self._autocast():
                outputs = self.model(inputs)
            outputs = outputs.float()
            loss += float(self.workload.loss(outputs, targets)) * len(targets)
            score += float(self.workload.metric.score(outputs, targets).sum())
            samples += len(targets)
        self.model.train()
        return loss / samples, score / samples

    def snapshot(self, progress: Progress, records_bytes: int) -> Checkpoint:
        """Returns the whole state between two steps."""
        return Checkpoint(
            config=self.config,
            progress=replace(progress),
            model=self.model.state_dict(),
            rule=self.rule.state_dict(),
            random=torch.get_rng_state(),
            records_bytes=records_bytes,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over the state of a checkpoint of the same run.

        Raises:
            BenchError: The state belongs to another model or optimizer.
        """
        try:
            self.model.load_state_dict(checkpoint.model)
            self.rule.load_state_dict(dict(checkpoint.rule))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            message = f"--resume: the checkpoint does not fit this run ({reason(error)[:120]})"
            raise BenchError(f"{message}; start anew with --overwrite") from error
        torch.set_rng_state(checkpoint.random)

    def _autocast(self) -> torch.autocast:
        dtype = self.workload.autocast
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

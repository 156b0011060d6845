"""A model in training: its data, its optimizer, one step, one evaluation, its state."""

from dataclasses import replace

import torch

from thor_bench.errors import BenchError, reason
from thor_bench.optimizers.rule import build_rule
from thor_bench.records.config import DataSource, RunConfig, steps_until
from thor_bench.tasks import Workload
from thor_bench.tasks.data import Batch, Data
from thor_bench.training.checkpoint import Checkpoint, Progress
from thor_bench.training.precision import autocast
from thor_bench.training.ranks import ALONE, Ranks


class Session:
    """Everything that lives in memory during a run.

    Args:
        config: The run.
        workload: What it trains.
        source: Where the data may be found.
        ranks: Processes that train it together.

    Raises:
        BenchError: Data are missing, or the device or a setting cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        workload: Workload,
        source: DataSource,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.workload = workload
        self.ranks = ranks
        self.source = source
        self.device = ranks.device(config.device)
        self.data = self._load()
        torch.set_flush_denormal(True)
        torch.manual_seed(config.seed)
        self.model = workload.build_model().to(self.device)
        self.model.to(memory_format=workload.memory_format)
        self._trained = ranks.wrap(self.model)
        self.rule = build_rule(self.model, config, self.data.steps_per_epoch)
        ranks.draw_apart(config.seed)

    def _load(self) -> Data:
        splits = self.workload.load(self.source)
        try:
            return Data(
                splits,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                device=self.device,
                memory_format=self.workload.memory_format,
                rank=self.ranks.rank,
                ranks=self.ranks.size,
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
        return steps_until(self.config.epochs, self.data.steps_per_epoch)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Returns the training loss of this rank's part of a batch, ready for backward."""
        inputs, targets = batch
        with autocast(self.workload.autocast, self.device):
            outputs = self._trained(inputs)
            loss = self.workload.loss(outputs, targets)
        self.rule.sample_fisher(outputs, self.workload.likelihood)
        return loss

    def update(self, loss: torch.Tensor) -> None:
        """Takes the optimizer step that a loss asks for."""
        self.rule.zero_grad()
        loss.backward()
        self.rule.step()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Returns mean loss and metric over the whole test set."""
        self.ranks.align(self.model)
        self.model.eval()
        self.rule.evaluation()
        loss = score = samples = 0.0
        for inputs, targets in self.data.test_batches():
            with autocast(self.workload.autocast, self.device):
                outputs = self.model(inputs)
            outputs = outputs.float()
            loss += float(self.workload.loss(outputs, targets)) * len(targets)
            score += float(self.workload.metric.score(outputs, targets).sum())
            samples += len(targets)
        self.rule.training()
        self.model.train()
        loss, score, samples = self.ranks.total([loss, score, samples])
        return loss / samples, self.workload.metric.of_mean(score / samples)

    def snapshot(self, progress: Progress, records_bytes: int) -> Checkpoint:
        """Returns the whole state between two steps."""
        return Checkpoint(
            config=self.config,
            progress=replace(progress),
            model=self.model.state_dict(),
            rule=self.rule.state_dict(),
            random=self.ranks.collect(torch.get_rng_state()),
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
        state = self.ranks.pick(checkpoint.random)
        if state is not None:
            torch.set_rng_state(state)

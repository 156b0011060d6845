"""A Lightning callback that hands statistics to the Trainer's loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_thor.watching.writing import checked_every, watched

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment, unused-ignore]
    except ImportError as error:
        reason = "torch_thor.watching.lightning needs Lightning: pip install lightning"
        raise ImportError(reason) from error

if TYPE_CHECKING:
    from torch_thor.curvature.surface import HasCurvature


class CurvatureMonitor(Callback):  # type: ignore[misc, unused-ignore] # Any where not installed
    """Logs ``optimizer.statistics()`` of every n-th step to all loggers of the Trainer.

    Of several optimizers with curvature, names begin with their numbers. Rank 0 logs its own.

    Args:
        every: Steps between two reports.
        of: Whose; ``None`` takes the Trainer's optimizers. A ``Preconditioner`` is none of these.

    Raises:
        InvalidOptionError: For ``every`` below 1.

    Example:
        >>> trainer = lightning.Trainer(callbacks=[CurvatureMonitor(every=50)])
    """

    def __init__(self, every: int = 50, *, of: HasCurvature | None = None) -> None:
        super().__init__()
        self._every, self._of = checked_every(every), of
        self._last = 0

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Logs after a step, before the next batch clears its gradients."""
        step = trainer.global_step
        due = step != self._last and step % self._every == 0
        self._last = step
        if not (due and trainer.loggers and trainer.is_global_zero):
            return
        found = [self._of] if self._of else list(filter(None, map(watched, trainer.optimizers)))
        for number, one in enumerate(found):
            scalars = one.statistics().scalars()
            if len(found) > 1:
                scalars = {f"{number}/{name}": value for name, value in scalars.items()}
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=step)

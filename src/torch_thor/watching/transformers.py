"""A callback of the Trainer of ``transformers`` that hands statistics to its trackers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_thor.watching.writing import checked_every, watched

try:
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
except ImportError as error:
    reason = "torch_thor.watching.transformers needs transformers: pip install transformers"
    raise ImportError(reason) from error

if TYPE_CHECKING:
    from torch_thor.curvature.report import StatisticsReport
    from torch_thor.curvature.surface import HasCurvature

_TRACKERS: tuple[Any, ...] = tuple(INTEGRATION_TO_CALLBACK.values())


class CurvatureCallback(TrainerCallback):  # type: ignore[misc, unused-ignore] # may be Any
    """Hands ``optimizer.statistics()`` of every n-th step to what the Trainer reports to.

    They go to the trackers (``report_to``: TensorBoard, Weights & Biases, ...) and neither into the
    terminal nor into ``log_history``.

    Args:
        trainer: The Trainer; the callback is added to it.
        every: Steps between two reports.
        of: Whose; ``None`` takes the Trainer's optimizer, which a ``Preconditioner`` is not.

    Attributes:
        latest: The latest report; ``None`` before the first.

    Raises:
        InvalidOptionError: For ``every`` below 1.

    Example:
        >>> CurvatureCallback(trainer, every=50)
        >>> trainer.train()
    """

    def __init__(self, trainer: Any, every: int = 50, *, of: HasCurvature | None = None) -> None:
        self._trainer, self._every, self._of = trainer, checked_every(every), of
        self._waiting: StatisticsReport | None = None
        self.latest: StatisticsReport | None = None
        trainer.add_callback(self)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Asks after a step, before its gradients are cleared."""
        found = self._of or watched(kwargs.get("optimizer"))
        if found is not None and (state.global_step + 1) % self._every == 0:
            self._waiting = found.statistics()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hands on what was asked for, now that the Trainer has counted the step."""
        report, self._waiting = self._waiting, None
        if report is None:
            return
        self.latest = report
        for one in self._trainer.callback_handler.callbacks:
            if isinstance(one, _TRACKERS):
                one.on_log(args, state, control, logs=report.scalars(), **kwargs)

"""Ending a run before its horizon because its result is known."""

import math
from dataclasses import dataclass

from thor_bench.records.records import EvaluationRecord
from thor_bench.records.task_card import Measure


@dataclass(frozen=True)
class EarlyStop:
    """Ends a run that was made for its time to a target once that time is known.

    A trial of a study also ends when its clock has passed the time that the best of its optimizer's
    trials so far (the last of the finalists among them) took. Neither can change a time or a
    winner, so the rule favours no optimizer.

    Attributes:
        metric: The workload's metric.
        target: Value that is timed.
        limit: Training time after which a trial is out.
    """

    metric: Measure
    target: float
    limit: float = math.inf

    def reason(self, record: EvaluationRecord) -> str | None:
        """Returns why the run ends at an evaluation, or None where it goes on."""
        if self.metric.reaches(record.test_metric, self.target):
            return "at the target"
        return "slower than an earlier trial" if record.seconds > self.limit else None

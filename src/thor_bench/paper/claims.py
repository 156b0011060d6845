"""What the paper claims about its runs, each answered by the runs made here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from thor_bench.report.summary import Summary
from thor_bench.report.tables import TextTable

Rows = Mapping[str, Summary]


@dataclass(frozen=True)
class Claim:
    """One claim, as a number that both can be asked for.

    Attributes:
        text: The claim.
        of: Optimizers that it compares.
        unit: What the numbers are.
        published: The paper's number, from its Table 2 (the ablation, for savings).
        measure: ``rows -> number`` here.
        holds: ``number -> whether the claim holds here``.
    """

    text: str
    of: tuple[str, str]
    unit: str
    published: float
    measure: Callable[[Summary, Summary], float]
    holds: Callable[[float], bool]


def _times(one: Summary, other: Summary) -> float:
    """Ratio of the median times to the target; NaN where neither arrived."""
    a, b = one.seconds.median, other.seconds.median
    return math.nan if math.isinf(a) and math.isinf(b) else a / b


def _epochs(one: Summary, other: Summary) -> float:
    return one.epoch_seconds.median / other.epoch_seconds.median


def _points(one: Summary, other: Summary) -> float:
    return one.best_metric.median - other.best_metric.median


def saved_percent(one: Summary, whole: Summary) -> float:
    """Share of the time of an equally long run of ``whole`` that ``one`` saves, %."""
    return 100.0 * (1.0 - _epochs(one, whole))


def _shorter(value: float) -> bool:
    return value < 1.0


def _positive(value: float) -> bool:
    return value > 0.0


# Numbers of Table 2 at 93 % (seconds), seconds per epoch and best accuracies; of the ablation.
_CLAIMS = (
    Claim("THOR is at the target before SGD", ("paper-thor", "sgd"), "time ÷",
          656.8 / 809.5, _times, _shorter),
    Claim("THOR is there before K-FAC", ("paper-thor", "paper-kfac"), "time ÷",
          656.8 / 1704.3, _times, _shorter),
    Claim("The trace rule brings THOR there sooner", ("paper-thor", "paper-thor-nt"), "time ÷",
          656.8 / 671.0, _times, _shorter),
    Claim("Freezing brings it there sooner still", ("paper-thor-stop", "paper-thor"), "time ÷",
          622.9 / 656.8, _times, _shorter),
    Claim("An epoch of THOR costs at most 1.33 of SGD's", ("paper-thor", "sgd"), "s/epoch ÷",
          17.64 / 13.29, _epochs, lambda value: value <= 1.33),
    Claim("An epoch of K-FAC costs several of SGD's", ("paper-kfac", "sgd"), "s/epoch ÷",
          65.01 / 13.29, _epochs, lambda value: value >= 2.0),
    Claim("THOR ends better than SGD", ("paper-thor", "sgd"), "points",
          95.00 - 94.31, _points, _positive),
    Claim("The trace rule alone saves time", ("paper-thor-tr", "paper-kfac"), "% saved",
          65.0, saved_percent, _positive),
    Claim("Growing intervals alone save time", ("paper-thor-fre", "paper-kfac"), "% saved",
          48.5, saved_percent, _positive),
    Claim("The split alone saves time", ("paper-thor-sp", "paper-kfac"), "% saved",
          40.5, saved_percent, _positive),
)  # fmt: skip


def claims_table(rows: Rows) -> TextTable:
    """Returns each claim that the rows allow to answer, with the paper's number and ours.

    Medians over seeds; which ones the table of the comparison says.

    Args:
        rows: Summaries by optimizer.
    """
    cells = [_answer(claim, rows) for claim in _CLAIMS if set(claim.of) <= set(rows)]
    return TextTable(("claim", "compared", "unit", "paper", "here", "verdict"), tuple(cells))


def _answer(claim: Claim, rows: Rows) -> tuple[str, ...]:
    value = claim.measure(*(rows[name] for name in claim.of))
    verdict = "neither arrived" if math.isnan(value) else "holds"
    if not math.isnan(value) and not claim.holds(value):
        verdict = "does not hold"
    here = "∞" if math.isinf(value) else "–" if math.isnan(value) else f"{value:.2f}"
    return claim.text, ", ".join(claim.of), claim.unit, f"{claim.published:.2f}", here, verdict


def ablation_table(rows: Sequence[Summary]) -> TextTable:
    """Returns the time of an epoch of each ablation, and what it saves against K-FAC.

    Args:
        rows: Summaries, K-FAC's first.
    """
    cells = []
    for row in rows:
        total = row.epoch_seconds.median * row.horizon
        saved = saved_percent(row, rows[0])
        best = row.best_metric.median
        numbers = (f"{total:.2f}", f"{saved:.1f}", f"{best:.2f}")
        cells.append((row.optimizer, str(row.runs), *numbers))
    headings = ("optimizer", "seeds", "s to horizon", "time saved, %", "best")
    return TextTable(headings, tuple(cells))

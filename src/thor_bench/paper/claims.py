"""What the paper claims about its runs, each answered by the runs made here."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from thor_bench.paper import published
from thor_bench.records.task_card import number_text
from thor_bench.report.summary import Summary
from thor_bench.report.tables import TextTable

# Rows of the paper's Table 2 and of its ablation, by the optimizer's name here.
_TABLE_2 = {
    "sgd": "SGD",
    "paper-kfac": "KFAC",
    "paper-thor": "THOR",
    "paper-thor-stop": "THOR_stop",
    "paper-thor-nt": "THOR_NT",
}
_ABLATION = {
    "paper-thor-tr": "trace rule (tr)",
    "paper-thor-fre": "growing intervals (fre)",
    "paper-thor-sp": "split (sp)",
}


@dataclass(frozen=True)
class _Comparison:
    """A number that says how one optimizer compares with another."""

    unit: str
    column: str  # what is compared, in Table 2
    value: Callable[[Summary], float]  # the same, here
    compare: Callable[[float, float], float]

    def published(self, one: str, other: str) -> float:
        """Returns the paper's number."""
        if one in _ABLATION:  # it reports the comparison itself
            return published.number(published.ABLATION, _ABLATION[one], "%")
        rows = (_TABLE_2[one], _TABLE_2[other])
        return self.compare(*(published.number(published.TABLE_2, r, self.column) for r in rows))


def _epoch(row: Summary) -> float:
    return row.epoch_seconds.median


def _saved(one: float, whole: float) -> float:
    """Share of the time of an equally long run of the whole that one saves, %."""
    return 100.0 * (1.0 - one / whole)


# Infinity ÷ infinity, where neither arrived, is NaN.
_TIME = _Comparison("time ÷", "s to 93 %", lambda row: row.seconds.median, operator.truediv)
_EPOCH = _Comparison("s/epoch ÷", "s/epoch", _epoch, operator.truediv)
_BEST = _Comparison("points", "best accuracy, %", lambda r: r.best_metric.median, operator.sub)
_SAVED = _Comparison("% saved", "s/epoch", _epoch, _saved)


def _shorter(value: float) -> bool:
    return value < 1.0


def _positive(value: float) -> bool:
    return value > 0.0


@dataclass(frozen=True)
class _Claim:
    """A claim about two optimizers, and whether it holds for their number here."""

    text: str
    of: tuple[str, str]
    number: _Comparison
    holds: Callable[[float], bool]


_CLAIMS = (
    _Claim("THOR is at the target before SGD", ("paper-thor", "sgd"), _TIME, _shorter),
    _Claim("THOR is there before K-FAC", ("paper-thor", "paper-kfac"), _TIME, _shorter),
    _Claim("The trace rule brings THOR there sooner", ("paper-thor", "paper-thor-nt"),
           _TIME, _shorter),
    _Claim("Freezing brings it there sooner still", ("paper-thor-stop", "paper-thor"),
           _TIME, _shorter),
    _Claim("An epoch of THOR costs at most 1.33 of SGD's", ("paper-thor", "sgd"),
           _EPOCH, lambda value: value <= 1.33),
    _Claim("An epoch of K-FAC costs several of SGD's", ("paper-kfac", "sgd"),
           _EPOCH, lambda value: value >= 2.0),
    _Claim("THOR ends better than SGD", ("paper-thor", "sgd"), _BEST, _positive),
    _Claim("The trace rule alone saves time", ("paper-thor-tr", "paper-kfac"), _SAVED, _positive),
    _Claim("Growing intervals alone save time", ("paper-thor-fre", "paper-kfac"),
           _SAVED, _positive),
    _Claim("The split alone saves time", ("paper-thor-sp", "paper-kfac"), _SAVED, _positive),
)  # fmt: skip


def claims_table(rows: Mapping[str, Summary]) -> TextTable:
    """Returns each claim that the rows allow to answer, with the paper's number and ours.

    Medians over seeds; which ones the table of the comparison says.
    """
    cells = []
    for claim in (one for one in _CLAIMS if set(one.of) <= set(rows)):
        number = claim.number
        here = number.compare(*(number.value(rows[name]) for name in claim.of))
        verdict = "holds" if claim.holds(here) else "does not hold"
        cells.append(
            {
                "claim": claim.text,
                "compared": ", ".join(claim.of),
                "unit": number.unit,
                "paper": f"{number.published(*claim.of):.2f}",
                "here": number_text(here, 2),
                "verdict": "neither arrived" if math.isnan(here) else verdict,
            }
        )
    return TextTable.of(cells)


def ablation_table(rows: Sequence[Summary]) -> TextTable:
    """Returns the time of an epoch of each ablation, and what it saves against K-FAC, the first."""
    return TextTable.of(
        {
            "optimizer": row.optimizer,
            "seeds": str(row.runs),
            "s to horizon": f"{_epoch(row) * row.horizon:.2f}",
            "time saved, %": f"{_saved(_epoch(row), _epoch(rows[0])):.1f}",
            "best": f"{row.best_metric.median:.2f}",
        }
        for row in rows
    )

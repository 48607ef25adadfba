"""The table a reader looks at first: each encoder beside its random twin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_mri.metrics import Interval
    from core_mri.reports import Cell, Report
    from downstream.evaluation.summary import Comparison, SummaryRow

NBSP = "\u00a0"
JOIN = "\u2060"
"""Keeps a line from breaking at a dash or a hyphen."""


def add_comparisons(
    report: Report,
    comparisons: Sequence[Comparison],
    summary: Sequence[SummaryRow],
    names: Mapping[str, str],
    caption: str,
) -> None:
    """One row a comparison; the twin stands in it.

    Args:
        report: The page.
        comparisons: What to show.
        summary: Where the scores of both are.
        names: Metric to its name.
        caption: What p means, and what is descriptive.
    """
    several = len({c.weights for c in comparisons}) > 1
    scores = {(r.task, r.weights, r.method, r.k, r.metric): r for r in summary}
    rows: list[dict[str, Cell]] = []
    for c in comparisons:
        own = scores[(*c.group, c.metric)]
        twin = scores[c.task, c.twin, c.method, c.k, c.metric]
        rows.append(
            {
                "task": c.task,
                **({"weights": c.weights} if several else {}),
                "method": method_text(c.method, c.k),
                "metric": names[c.metric],
                "n": c.difference.n,
                "score": score_text(own.mean, own.ci_low, own.ci_high, digits=2),
                "random twin": score_text(twin.mean, twin.ci_low, twin.ci_high, digits=2),
                "difference": difference_text(c.difference),
                "p (Holm)": c.p_holm,
            }
        )
    if rows:
        report.add_table("Results", rows, caption)


def method_text(method: str, k: int) -> str:
    """Method and number of labels, short."""
    return f"{method}, {f'k{NBSP}{k}' if k else 'all'}"


def score_text(mean: float, low: float, high: float, *, digits: int = 3) -> str:
    """A mean, and its interval, within which a line does not break."""
    if math.isnan(low):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f}{JOIN}\u2013{JOIN}{high:.{digits}f})"


def difference_text(found: Interval) -> str:
    """As `score_text`, with signs and two digits."""
    if math.isnan(found.low):
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ({found.low:+.2f}{NBSP}to{NBSP}{found.high:+.2f})"

"""What so many test patients can show at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from downstream.evaluation.comparison_table import method_text

if TYPE_CHECKING:
    from core_mri.reports import Cell, Report
    from downstream.evaluation.summary import Comparison

MAX_SHOWN = 12
"""Rows of a table that is not folded."""
FEW = 30
"""Below so many patients the note is part of the report."""
ALPHA = 0.05


def add_power(report: Report, comparisons: Sequence[Comparison]) -> None:
    """Which tasks can show nothing, and the smallest difference that each would find."""
    few = [c for c in comparisons if c.difference.n < FEW and not c.baseline]
    if not few:
        return
    num_tests = max(1, sum(c.p is not None for c in comparisons))
    powerless = sorted({f"{c.task} ({c.difference.n})" for c in few if c.smallest_p >= ALPHA})
    blocked = sorted(
        {
            f"{c.task} ({c.difference.n})"
            for c in few
            if c.p is not None and c.smallest_p * num_tests >= ALPHA > c.smallest_p
        }
    )
    texts = [
        "The spread of the paired differences says how large a true difference must be for as many "
        "patients to find it in four of five studies (80 % power, two-sided 5 % level, one test). "
        "A smaller difference that was not shown is not refuted; one that was shown may be "
        "estimated too large."
    ]
    if powerless:
        texts.append(
            f"Too few test patients for any significant difference, however large: "
            f"{', '.join(powerless)}."
        )
    if blocked:
        texts.append(
            f"With {num_tests} tests in this report, Holm's adjustment lets these be significant "
            f"only if others are: {', '.join(blocked)}."
        )
    report.add_text("What these patients can show", texts)
    rows: list[dict[str, Cell]] = [
        {
            "task": c.task,
            "weights": c.weights,
            "method": method_text(c.method, c.k),
            "n": c.difference.n,
            "difference found": c.difference.mean,
            "smallest findable": c.detectable,
            "smallest p": c.smallest_p,
        }
        for c in few
    ]
    report.add_table(
        "What these patients can show",
        rows,
        "Differences to the random twin. Smallest p: what the permutation test can give at best "
        "for n patients, before Holm.",
        folded=len(rows) > MAX_SHOWN,
    )

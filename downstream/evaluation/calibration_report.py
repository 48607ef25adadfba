"""Whether stated probabilities can be believed: scores, and reliability before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core_mri.metrics import reliability
from core_mri.metrics.classification import NUM_BINS
from downstream.evaluation.comparison_table import method_text, score_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from core_mri.reports import Cell, Report
    from downstream.config import SuiteConfig
    from downstream.evaluation.results import Outcome
    from downstream.evaluation.summary import SummaryRow

CALIBRATION = ("auprc", "ece", "ece_uncalibrated", "brier")
"""Metrics of this section, not of the main table."""
HEADING = "Probabilities"
MAX_SHOWN = 12
"""Rows of a table that is not folded."""


def add_calibration(
    report: Report, config: SuiteConfig, outcomes: Sequence[Outcome], summary: Sequence[SummaryRow]
) -> None:
    """A table of all classifiers, and reliability plots of the first weights."""
    rows: dict[tuple[str, str, str, int], dict[str, Cell]] = {}
    for row in summary:
        if row.metric in CALIBRATION:
            cells = rows.setdefault(
                (row.task, row.weights, row.method, row.k),
                {
                    "task": row.task,
                    "weights": row.weights,
                    "method": method_text(row.method, row.k),
                },
            )
            cells[_NAMES[row.metric]] = score_text(row.mean, row.ci_low, row.ci_high)
    if not rows:
        return
    report.add_table(
        HEADING,
        list(rows.values()),
        f"Means over draws with 95 % bootstrap intervals over patients. AUPRC: average precision, "
        "mean over classes; chance is the prevalence. ECE: expected calibration error of the "
        f"likeliest class in {NUM_BINS} bins of equal width, with probabilities as they are and "
        "after one temperature chosen on the validation patients; few examples per bin raise it. "
        "Brier score: squared distance to the truth over all classes (0 best, 2 worst), after it.",
        folded=len(rows) > MAX_SHOWN,
    )
    weights = next(iter(config.weights))
    first: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.weights == weights and outcome.probed and outcome.k == config.per_class[0]:
            first.setdefault(outcome.task, []).append(outcome)
    report.add_gallery(HEADING, [picture for own in first.values() for picture in _pictures(own)])


def _pictures(draws: Sequence[Outcome]) -> list[tuple[Figure, str]]:
    """One a method, all draws together."""
    from core_mri.plots import reliability_plot

    found = []
    rows = [row for outcome in draws for row in outcome.probed]
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        truth = [row.truth for row in own]
        series = {
            "as it is": reliability(truth, [row.scores for row in own]),
            "with temperature": reliability(truth, [row.calibrated for row in own]),
        }
        title = f"{draws[0].task}, {method_text(method, draws[0].k)}"
        figure = reliability_plot(series, title=title)
        caption = (
            f"{title}: {draws[0].weights}, {len(own) // len(draws)} test examples in each of "
            f"{len(draws)} draws. Larger points hold more of them."
        )
        found.append((figure, caption))
    return found


_NAMES = {
    "auprc": "AUPRC",
    "ece_uncalibrated": "ECE as it is",
    "ece": "ECE with temperature",
    "brier": "Brier score",
}

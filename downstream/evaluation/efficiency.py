"""Label-efficiency curves: what each further label, or each further cluster, is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core_mri.metrics import Interval

if TYPE_CHECKING:
    from core_mri.reports import Report
    from downstream.config import SuiteConfig, Task
    from downstream.evaluation.summary import SummaryRow

_METRICS = {
    "segmentation": ("dice", "Dice"),
    "prompting": ("dice_2d", "Dice per slice"),
    "clustering": ("dice_2d", "Dice per slice"),
    "classification": ("balanced_accuracy", "balanced accuracy"),
}
Series = dict[str, list[tuple[int, Interval]]]


def add_efficiency(
    report: Report, config: SuiteConfig, task: Task, summary: Sequence[SummaryRow]
) -> None:
    """A figure for each method with several numbers of labels; what uses all of them has none.

    Baselines stand in every figure.
    """
    from core_mri.plots import efficiency_curves

    metric, name = _METRICS[task.kind]
    counted = {
        "segmentation": f"labelled {config.recipe.shots_unit}",
        "prompting": f"labelled {config.recipe.shots_unit}",
        "clustering": "clusters",
        "classification": f"labelled {task.level}s per class",
    }[task.kind]
    own = [
        row for row in summary if (row.task, row.metric) == (task.name, metric) and row.k and row.n
    ]
    for method in dict.fromkeys(row.method for row in own if row.weights not in config.baselines):
        series: Series = {}
        for row in own:
            if row.method == method or row.weights in config.baselines:
                found = Interval(row.mean, row.ci_low, row.ci_high, row.n)
                series.setdefault(row.weights, []).append((row.k, found))
        if len({k for points in series.values() for k, _ in points}) < 2:
            continue
        figure = efficiency_curves(series, counted, name, title=f"{task.name}, {method}")
        report.add_figure(
            "Curves",
            figure,
            f"{task.name}, {method}: mean {name} over test patients against the number of "
            f"{counted}, with 95 % intervals. Intervals of two curves may overlap although the "
            "paired difference is clear: the tests are in the table.",
        )

"""The results of a report: encoders beside their twins and the baselines, all means, structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from downstream.evaluation.calibration_report import CALIBRATION
from downstream.evaluation.comparison_table import (
    add_comparisons,
    difference_text,
    method_text,
    score_text,
)
from downstream.evaluation.summary import MIN_PATIENTS, PRIMARY, Comparison, SummaryRow
from downstream.evaluation.verdict import METRIC_NAMES, counts_of, is_primary

if TYPE_CHECKING:
    from core_mri.reports import Cell, Report
    from downstream.config import SuiteConfig


def add_results(
    report: Report,
    config: SuiteConfig,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
) -> None:
    """Every table of scores, the first ones open, the long ones folded."""
    tests = {(*c.group, c.metric): c for c in comparisons if not c.baseline}
    main: list[dict[str, Cell]] = []
    structures: list[dict[str, Cell]] = []
    for row in summary:
        if row.metric in CALIBRATION:
            continue
        labelled = row.k or row.weights not in config.baselines  # a released model had none
        common: dict[str, Cell] = {
            "task": row.task,
            "weights": row.weights,
            "method": method_text(row.method, row.k) if row.n and labelled else row.method,
        }
        if ":" in row.metric:
            metric, _, structure = row.metric.partition(":")
            text = score_text(row.mean, row.ci_low, row.ci_high, digits=2)
            named = {"metric": _metric(metric, row.unit), "structure": structure, "text": text}
            structures.append({**common, **named, "n": row.n})
            continue
        test = tests.get((row.task, row.weights, row.method, row.k, row.metric))
        scores: dict[str, Cell] = {
            "metric": _metric(row.metric, row.unit),
            "mean": row.mean if row.n else None,
            "95 % interval": f"{row.ci_low:.3f} to {row.ci_high:.3f}" if row.n > 1 else None,
            "n": row.n,
            "minus twin": test.difference.mean if test else None,
            "p (Holm)": row.p_holm,
        }
        main.append(common | scores)
    descriptive = sorted({c.task for c in comparisons if c.descriptive})
    caption = (
        "Means over n test patients with 95 % bootstrap intervals; k is the number of labelled "
        f"training {config.recipe.shots_unit} (classification: examples per class, or all; "
        "clustering: number of clusters). p: paired permutation test against the "
        "random-initialised twin on the same patients, draws and budget, in Dice or balanced "
        "accuracy; surface scores are described, not tested."
    )
    if descriptive:
        caption += (
            f" Descriptive, without p-values, because fewer than {MIN_PATIENTS} test patients: "
            f"{', '.join(descriptive)}."
        )
    tasks = {task.name: task for task in config.tasks}
    shown = [c for c in comparisons if not c.baseline and is_primary(c.method, tasks[c.task])]
    add_comparisons(report, shown, summary, METRIC_NAMES, caption)
    _add_baselines(report, comparisons)
    _add_intervals(report, config, summary)
    report.add_table(
        "Results", main, f"All {len(main)} means: every method and metric.", folded=True
    )
    if structures:
        report.add_table(
            "Results",
            _by_structure(structures),
            "By structure, with 95 % intervals, over whole volumes with their empty slices, on the "
            "stored grid. Dice; NSD, the share of both surfaces within the task's tolerance of "
            "each other (1 mm, or 1 pixel where no spacing is known, unless the task says "
            "otherwise); HD95, the larger 95th percentile of the distances from one surface to the "
            "other. A structure absent from reference and estimate scores 1, 1 and 0; absent from "
            "one of them 0, 0 and the diagonal of the grid. Clustering: per slice, over the slices "
            "that show the structure; `oracle` takes the best cluster of every slice by its "
            "reference, `matched` the one that is best on the training patients; k-means on each "
            "test patient alone or on the set of training patients. Prompting: per slice too; the "
            "box is the tightest one, the careless box that one with noise on its sides, a click "
            "is the pixel deepest in what the last answer missed or added.",
            folded=True,
        )


def _by_structure(rows: Sequence[Mapping[str, Cell]]) -> list[dict[str, Cell]]:
    """One row a model and metric, a column a structure."""
    shared = ("task", "weights", "method", "metric", "n")
    wide: dict[tuple[Cell, ...], dict[str, Cell]] = {}
    for row in rows:
        key = tuple(row[name] for name in shared[:-1])
        wide.setdefault(key, {name: row[name] for name in shared})
        wide[key][str(row["structure"])] = row["text"]
    return list(wide.values())


def _add_baselines(report: Report, comparisons: Sequence[Comparison]) -> None:
    rows: list[dict[str, Cell]] = [
        {
            "task": c.task,
            "weights": c.weights,
            "method": method_text(c.method, c.k),
            "minus": c.twin,
            "difference": difference_text(c.difference),
            "n": c.difference.n,
            "p (Holm)": c.p_holm,
        }
        for c in comparisons
        if c.baseline
    ]
    if rows:
        caption = (
            "Dice of the weights minus that of a baseline, with 95 % intervals, same patients and "
            "draws. A baseline has the examples, validation and tuning of every other model, and "
            "its steps unless baseline_steps says otherwise; `unet` is planned and trained like "
            "nnU-Net, `nnunetv2` is the program itself with the shortest of its schedules that has "
            "as many steps."
        )
        report.add_table("Results", rows, caption)


def _metric(name: str, unit: str) -> str:
    return METRIC_NAMES[name] + ("" if unit == "1" else f" ({unit})")


def _add_intervals(report: Report, config: SuiteConfig, summary: Sequence[SummaryRow]) -> None:
    """At the first number of labels; the others are points of the curves."""
    from core_mri.metrics import Interval
    from core_mri.plots import interval_plot

    firsts = {task.name: counts_of(task, config)[0] for task in config.tasks}
    rows = [
        (
            f"{row.task}, {row.method}\n{METRIC_NAMES[row.metric]}",
            row.weights,
            Interval(row.mean, row.ci_low, row.ci_high, row.n),
        )
        for row in summary
        if row.metric in (*PRIMARY, "balanced_accuracy")
        and row.n
        and (row.k == firsts[row.task] or (row.weights in config.baselines and not row.k))
    ]
    if rows:
        caption = (
            "Means and 95 % intervals over test patients, each model beside its random twin, at "
            "the first k of each task."
        )
        report.add_figure("Results", interval_plot(rows, "score (1 is perfect)"), caption)

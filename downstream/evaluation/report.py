"""The page a reader opens: who wins, by how much, how sure that is, and what it looks like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.config import to_mapping
from core_mri.reports import Cell, Report
from core_mri.volume import SLICE_ORIENTATION
from downstream.config import SuiteConfig, Task
from downstream.evaluation.calibration_report import CALIBRATION, add_calibration
from downstream.evaluation.cases import load_case
from downstream.evaluation.comparison_table import add_comparisons, method_text, score_text
from downstream.evaluation.efficiency import add_efficiency
from downstream.evaluation.power_note import add_power
from downstream.evaluation.results import Outcome
from downstream.evaluation.summary import MIN_PATIENTS, Comparison, SummaryRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRIMARY_METHODS = ("frozen", "head", "full", "linear probe", "set-matched")
"""The verdict speaks of these, and of attention where it was asked for; knn and oracles stand in
the table."""
METRIC_NAMES = {
    "dice": "Dice",
    "dice_2d": "Dice per slice",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "ece_uncalibrated": "ECE, uncalibrated",
    "brier": "Brier score",
}
SIGNIFICANT = 0.05


def build_report(
    config: SuiteConfig,
    outcomes: Sequence[Outcome],
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    folders: Sequence[Path],
) -> Report:
    """Assemble the page.

    Args:
        config: What was asked.
        outcomes: All cells, failed ones too.
        summary: Their means and intervals.
        comparisons: Models against their random twins.
        folders: Where the pictures of the cells are.
    """
    synthetic = [outcome.synthetic for outcome in outcomes if not outcome.error]
    title = f"Transfer of {', '.join(config.weights)}"
    tasks = "1 task" if len(config.tasks) == 1 else f"{len(config.tasks)} tasks"
    subtitle = f"{tasks}, {len(outcomes)} cells, seed {config.seed}"
    report = Report(title, verdict(config, summary, comparisons, synthetic), subtitle)
    report.add_text("Results", sentences(config, summary, comparisons))
    _add_results(report, config, summary, comparisons)
    add_calibration(report, config, outcomes, summary)
    _add_curves(report, config, outcomes, summary)
    _add_cases(report, config, outcomes, folders)
    add_power(report, comparisons)
    _add_data(report, outcomes)
    _add_failures(report, outcomes)
    _add_configuration(report, config, outcomes)
    _add_limits(report, comparisons)
    return report


def verdict(
    config: SuiteConfig,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    synthetic: Sequence[bool],
) -> str:
    """On which tasks the first weights help, one paragraph; of a single task with its numbers."""
    chosen = _chosen(config, comparisons)
    told = sentences(config, summary, comparisons)
    if len(config.tasks) > 1:
        weights = next(iter(config.weights))
        unfinished = [task.name for task in config.tasks if task.name not in chosen]
        told = overall(weights, list(chosen.values()))
        if unfinished:
            told.append(f"No comparison could be finished on {', '.join(unfinished)}.")
    if synthetic and all(synthetic):
        told.append(
            "All scans are synthetic: this shows that the chain works, not what it is worth on "
            "patients."
        )
    elif any(synthetic):
        told.append("Some scans are synthetic.")
    return " ".join(told)


def sentences(
    config: SuiteConfig, summary: Sequence[SummaryRow], comparisons: Sequence[Comparison]
) -> list[str]:
    """A sentence per task on the first weights at the first k."""
    chosen = _chosen(config, comparisons)
    told = []
    for task in config.tasks:
        if task.name not in chosen:
            told.append(f"{task.name}: no comparison could be finished.")
            continue
        first = chosen[task.name]
        means = {
            row.weights: row.mean
            for row in summary
            if (row.task, row.method, row.k, row.metric)
            == (first.task, first.method, first.k, first.metric)
        }
        told.append(_sentence(first, means, task, config.recipe.shots_unit))
    return told


def _chosen(config: SuiteConfig, comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    """Task to the comparison that the verdict speaks of."""
    weights = next(iter(config.weights))
    chosen = {}
    for task in config.tasks:
        found = [
            c
            for c in comparisons
            if c.task == task.name and c.weights == weights and is_primary(c.method, task)
        ]
        order = config.per_class if task.kind == "classification" else config.k
        if found:
            chosen[task.name] = min(found, key=lambda c: order.index(c.k) if c.k in order else 0)
    return chosen


def _sentence(c: Comparison, means: Mapping[str, float], task: Task, unit: str) -> str:
    d = c.difference
    method = "" if task.kind == "segmentation" else f", {c.method}"
    labels = labels_of(c.k, task, unit)
    start = (
        f"{task.name}{method}, {labels}: {c.weights} reaches "
        f"{METRIC_NAMES[c.metric]} {means[c.weights]:.2f}, its random twin {means[c.twin]:.2f}; "
        f"difference {_signed(d.mean)} (95 % interval {_signed(d.low)} to {_signed(d.high)}; "
        f"{d.n} test {'patients' if d.n > 1 else 'patient'}"
    )
    if c.descriptive:
        return f"{start}: descriptive only, fewer than {MIN_PATIENTS})."
    assert c.p_holm is not None
    claim = "" if c.p_holm < SIGNIFICANT else ": no difference shown"
    return f"{start}, p = {_p(c.p_holm)} after Holm{claim})."


def overall(weights: str, chosen: Sequence[Comparison]) -> list[str]:
    """Where pretraining helped, harmed, or neither could be shown; one sentence, or none."""
    tested = [c for c in chosen if c.p_holm is not None]
    shown = [c for c in tested if c.p_holm is not None and c.p_holm < SIGNIFICANT]
    parts = {
        "it is better on": [c for c in shown if c.difference.mean > 0],
        "it is worse on": [c for c in shown if c.difference.mean < 0],
        "no difference is shown on": [c for c in tested if c not in shown],
        f"fewer than {MIN_PATIENTS} test patients, so only described:": [
            c for c in chosen if c not in tested
        ],
    }
    told = [f"{text} {', '.join(c.task for c in own)}" for text, own in parts.items() if own]
    return (
        [f"{weights} against its random twin, at the first k: {'; '.join(told)}."] if told else []
    )


def is_primary(method: str, task: Task) -> bool:
    """Whether the verdict speaks of this method: one a task."""
    if "attention" in task.methods and task.kind == "classification":
        return method.startswith("attention")
    return method in PRIMARY_METHODS


def labels_of(k: int, task: Task, unit: str) -> str:
    """How much was labelled, or how many clusters, in words."""
    if task.kind == "clustering":
        return f"{k} clusters"
    if task.kind == "segmentation":
        return f"{k} labelled {unit if k > 1 else unit[:-1]}"
    return f"{k} labelled {task.level}{'s' * (k > 1)} per class" if k else "all labels"


def _signed(value: float) -> str:
    """Two digits with a sign, and no sign where they are all zero."""
    return "undefined" if math.isnan(value) else f"{value:+.2f}".replace("-0.00", "0.00")


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def _add_results(
    report: Report,
    config: SuiteConfig,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
) -> None:
    tests = {(*c.group, c.metric): c for c in comparisons}
    main: list[dict[str, Cell]] = []
    structures: list[dict[str, Cell]] = []
    for row in summary:
        if row.metric in CALIBRATION:
            continue
        common: dict[str, Cell] = {
            "task": row.task,
            "weights": row.weights,
            "method": method_text(row.method, row.k),
        }
        scores: dict[str, Cell] = {
            "mean": row.mean,
            "95 % interval": f"{row.ci_low:.3f} to {row.ci_high:.3f}" if row.n > 1 else None,
            "n": row.n,
        }
        if ":" in row.metric:
            text = score_text(row.mean, row.ci_low, row.ci_high, digits=2)
            named: dict[str, Cell] = {"structure": row.metric.partition(":")[2], "text": text}
            structures.append(common | named | {"n": row.n})
            continue
        test = tests.get((row.task, row.weights, row.method, row.k, row.metric))
        difference: dict[str, Cell] = {
            "minus twin": test.difference.mean if test else None,
            "p (Holm)": row.p_holm,
        }
        main.append(common | {"metric": METRIC_NAMES[row.metric]} | scores | difference)
    descriptive = sorted({c.task for c in comparisons if c.descriptive})
    caption = (
        "Means over n test patients with 95 % bootstrap intervals; k is the number of labelled "
        f"training {config.recipe.shots_unit} (classification: examples per class, or all; "
        "clustering: number of clusters). p: paired permutation test against the "
        "random-initialised twin on the same patients, draws and budget."
    )
    if descriptive:
        caption += (
            f" Descriptive, without p-values, because fewer than {MIN_PATIENTS} test patients: "
            f"{', '.join(descriptive)}."
        )
    tasks = {task.name: task for task in config.tasks}
    shown = [c for c in comparisons if is_primary(c.method, tasks[c.task])]
    add_comparisons(report, shown, summary, METRIC_NAMES, caption)
    _add_intervals(report, config, summary)
    report.add_table(
        "Results", main, f"All {len(main)} means: every method and metric.", folded=True
    )
    if structures:
        report.add_table(
            "Results",
            _by_structure(structures),
            "Dice by structure, with 95 % intervals, over whole volumes with their empty slices, "
            "on the stored grid; 1 when a structure is absent from reference and estimate, 0 when "
            "it is absent from one of them. Clustering: per slice, over the slices that show the "
            "structure; `oracle` takes the best cluster of every slice by its reference, `matched` "
            "the one that is best on the training patients; k-means on each test patient alone or "
            "on the set of training patients.",
            folded=True,
        )


def _by_structure(rows: Sequence[Mapping[str, Cell]]) -> list[dict[str, Cell]]:
    """One row a model, a column a structure."""
    wide: dict[tuple[Cell, ...], dict[str, Cell]] = {}
    for row in rows:
        key = (row["task"], row["weights"], row["method"])
        start: dict[str, Cell] = {name: row[name] for name in ("task", "weights", "method", "n")}
        wide.setdefault(key, start)[str(row["structure"])] = row["text"]
    return list(wide.values())


def _add_intervals(report: Report, config: SuiteConfig, summary: Sequence[SummaryRow]) -> None:
    """At the first number of labels; the others are points of the curves."""
    from core_mri.metrics import Interval
    from core_mri.plots import interval_plot

    firsts = {
        task.name: {"segmentation": config.k, "classification": config.per_class}.get(
            task.kind, config.clusters
        )[0]
        for task in config.tasks
    }

    rows = [
        (
            f"{row.task}, {row.method}\n{METRIC_NAMES[row.metric]}",
            row.weights,
            Interval(row.mean, row.ci_low, row.ci_high, row.n),
        )
        for row in summary
        if row.metric in ("dice", "dice_2d", "balanced_accuracy") and row.k == firsts[row.task]
    ]
    if rows:
        caption = (
            "Means and 95 % intervals over test patients, each model beside its random twin, at "
            "the first k of each task."
        )
        report.add_figure("Results", interval_plot(rows, "score (1 is perfect)"), caption)


def _add_curves(
    report: Report,
    config: SuiteConfig,
    outcomes: Sequence[Outcome],
    summary: Sequence[SummaryRow],
) -> None:
    from core_mri.plots import curves

    for task in config.tasks:
        add_efficiency(report, config, task, summary)
        if task.kind != "segmentation":
            continue
        series = _validation(task, outcomes, config.k[0])
        if series:
            figure = curves(series, "step", "validation Dice", title=task.name)
            caption = (
                f"{task.name}: Dice on the validation patients during training, draw 0, k = "
                f"{config.k[0]}; the best step is the one that was tested."
            )
            report.add_figure("Curves", figure, caption)


Series = dict[str, tuple[list[float], list[float]]]


def _validation(task: Task, outcomes: Sequence[Outcome], k: int) -> Series:
    series: Series = {}
    for outcome in outcomes:
        if outcome.task == task.name and outcome.k == k and outcome.draw == 0:
            points = [(step, dice) for step, _, dice in outcome.curve if dice is not None]
            if points:
                series[outcome.weights] = (
                    [float(step) for step, _ in points],
                    [dice for _, dice in points],
                )
    return series


def _add_cases(
    report: Report, config: SuiteConfig, outcomes: Sequence[Outcome], folders: Sequence[Path]
) -> None:
    from core_mri.pictures import CONVENTION

    weights = next(iter(config.weights))
    for task in config.tasks:
        outcome = next(
            (
                o
                for o in outcomes
                if (o.task, o.weights, o.draw) == (task.name, weights, 0) and o.cases
            ),
            None,
        )
        if outcome is None:
            continue
        pictures = _case_pictures(task, outcome, folders)
        report.add_text(
            "Worst, median and best",
            f"{task.name}: {weights}, k = {outcome.k}, draw 0. Solid lines are the reference, "
            "dashed lines the estimate; each picture is the slice that shows most of the "
            f"structures. {CONVENTION}",
        )
        report.add_gallery("Worst, median and best", pictures)


def _case_pictures(
    task: Task, outcome: Outcome, folders: Sequence[Path]
) -> list[tuple[Figure, str]]:
    from core_mri.pictures import overlay

    names = dict(enumerate(task.labels, start=1))
    pictures = []
    for case in outcome.cases:
        slices = load_case(folders, outcome.key, case.rank)
        if slices is None:
            continue
        image, reference, estimate = slices
        figure = overlay(
            image,
            reference,
            estimate,
            f"{case.rank}: Dice {case.dice:.2f}",
            names=names,
            orientation=SLICE_ORIENTATION[case.plane][1:],  # type: ignore[index]
            spacing_mm=case.spacing_mm,
            window=(0.0, 1.0),
        )
        kind = "synthetic phantom" if case.synthetic else "patient"
        caption = (
            f"{task.name}, the {case.rank} test volume: {kind} {case.patient[:12]}, slice "
            f"{case.slice_index}."
        )
        pictures.append((figure, caption))
    return pictures


def _add_data(report: Report, outcomes: Sequence[Outcome]) -> None:
    rows: dict[str, dict[str, Cell]] = {}
    leakage: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.error:
            continue
        rows.setdefault(
            outcome.task,
            {
                "task": outcome.task,
                **{
                    split: f"{outcome.num_volumes[split]} volumes of {len(found)} patients"
                    for split, found in outcome.patients.items()
                },
                "synthetic": outcome.synthetic,
                "sources (licence)": ", ".join(outcome.sources),
            },
        )
        leakage.setdefault(f"{outcome.task}, {outcome.weights}", outcome.leakage)
    if not rows:
        return
    report.add_table(
        "Data and leakage",
        list(rows.values()),
        "Scans of the first draw. Splits are by patient and were checked to be disjoint; the test "
        "split is scored once, with all its volumes.",
    )
    report.add_facts("Data and leakage", dict(leakage))


def _add_failures(report: Report, outcomes: Sequence[Outcome]) -> None:
    failed = [
        {"cell": outcome.key, "error": outcome.error} for outcome in outcomes if outcome.error
    ]
    if failed:
        report.add_table(
            "Failed cells",
            failed,
            "Nothing else was lost; the same command tries these again.",
        )


def _add_configuration(report: Report, config: SuiteConfig, outcomes: Sequence[Outcome]) -> None:
    plain = to_mapping(config)
    recipe = plain.pop("recipe")
    tasks = plain.pop("tasks")
    for name in ("registry", "out", "reuse"):  # paths of a machine are no part of a result
        plain.pop(name)
    plain["weights"] = ", ".join(plain["weights"])
    facts = {key: str(value) for key, value in plain.items() if value != ""}
    facts |= {f"recipe.{key}": str(value) for key, value in recipe.items()}
    facts |= {
        f"task {task['name']}": "; ".join(f"{k}: {v}" for k, v in task.items() if v and k != "name")
        for task in tasks
    }
    report.add_facts("Configuration", facts)
    notes = {
        f"{o.task}, {o.weights}, k {o.k}, draw {o.draw}": "; ".join(o.notes)
        for o in outcomes
        if o.notes
    }
    if notes:
        report.add_facts("Configuration", notes)


def _add_limits(report: Report, comparisons: Sequence[Comparison]) -> None:
    limits = [
        "The random twin has the same architecture, seed, draws and budget; other baselines (a "
        "U-Net from scratch, public encoders) are not part of this report.",
        "Intervals cover the choice of test patients. They do not cover the choice of pretraining "
        "seed or of hospital.",
    ]
    if any(c.descriptive for c in comparisons):
        limits.append(
            f"Tables of fewer than {MIN_PATIENTS} test patients describe these patients and "
            "support no claim."
        )
    limits.append("Research use only; not a medical device.")
    report.add_text("Limits", limits)

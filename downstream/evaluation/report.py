"""The page a reader opens: who wins, by how much, how sure that is, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.config import to_mapping
from core_mri.reports import Cell, Report
from core_mri.volume import SLICE_ORIENTATION
from downstream.config import SuiteConfig, Task
from downstream.evaluation.calibration_report import add_calibration
from downstream.evaluation.cases import load_case
from downstream.evaluation.efficiency import add_efficiency
from downstream.evaluation.likeness import add_likeness
from downstream.evaluation.power_note import add_power
from downstream.evaluation.result_tables import add_results
from downstream.evaluation.results import Outcome
from downstream.evaluation.summary import MIN_PATIENTS, Comparison, SummaryRow
from downstream.evaluation.verdict import counts_of, sentences, verdict
from downstream.prompting.answers import METHODS
from downstream.segmentation.paper import DIFFERENCES, LEFT_OUT
from downstream.segmentation.paper import NAME as PAPER_MODE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        comparisons: Models against their random twins and the baselines.
        folders: Where the pictures of the cells are.
    """
    synthetic = [outcome.synthetic for outcome in outcomes if not outcome.error]
    title = f"Transfer of {', '.join(config.weights)}"
    tasks = "1 task" if len(config.tasks) == 1 else f"{len(config.tasks)} tasks"
    subtitle = f"{tasks}, {len(outcomes)} cells, seed {config.seed}"
    if config.protocol == "paper":
        subtitle += f"; {PAPER_MODE}"
    report = Report(title, verdict(config, summary, comparisons, synthetic), subtitle)
    if config.protocol == "paper":
        heading = PAPER_MODE.capitalize()
        report.add_text(heading, ["How it differs from our protocol:", *DIFFERENCES])
        report.add_text(heading, ["What of the published one is not reproduced:", *LEFT_OUT])
    report.add_text("Results", sentences(config, summary, comparisons))
    add_results(report, config, summary, comparisons)
    add_calibration(report, config, outcomes, summary)
    _add_curves(report, config, outcomes, summary)
    _add_cases(report, config, outcomes, folders)
    add_power(report, comparisons)
    _add_data(report, outcomes)
    add_likeness(report, config)
    _add_failures(report, outcomes)
    _add_configuration(report, config, outcomes)
    _add_limits(report, comparisons)
    return report


def _add_curves(
    report: Report,
    config: SuiteConfig,
    outcomes: Sequence[Outcome],
    summary: Sequence[SummaryRow],
) -> None:
    from core_mri.plots import curves

    for task in config.tasks:
        add_efficiency(report, config, task, summary)
        if task.kind not in ("segmentation", "prompting"):
            continue
        k = counts_of(task, config)[0]
        if task.kind == "prompting":
            figure = curves(_by_clicks(task, summary, k), "clicks", "Dice per slice")
            caption = f"{task.name}: mean Dice over test patients against the number of clicks."
            report.add_figure("Curves", figure, caption)
        series = _validation(task, outcomes, k)
        if series:
            figure = curves(series, "step", "validation Dice", title=task.name)
            caption = (
                f"{task.name}: Dice on the validation patients during training, draw 0, k = {k}; "
                "the best step is the one that was tested."
            )
            report.add_figure("Curves", figure, caption)


Series = dict[str, tuple[list[float], list[float]]]


def _by_clicks(task: Task, summary: Sequence[SummaryRow], k: int) -> Series:
    series: Series = {}
    for count, method in METHODS.items():
        for row in summary:
            if (row.task, row.metric, row.method, row.k) == (task.name, "dice_2d", method, k):
                x, y = series.setdefault(row.weights, ([], []))
                x.append(float(count))
                y.append(row.mean)
    return series


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
    empty = [{"cell": outcome.key, "why": outcome.empty} for outcome in outcomes if outcome.empty]
    if empty:
        report.add_table("Empty cells", empty, "Asked for, not run, and no failure.")
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
        "The random twin has the same architecture, seed, draws and budget."
        if any(c.baseline for c in comparisons)
        else "The random twin has the same architecture, seed, draws and budget; no other baseline "
        "is part of this report.",
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

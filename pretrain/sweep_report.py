"""What a sweep leaves: ``sweep.csv``, ``sweep.json``, and a page that compares its trials."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core_mri.reports import Report
from core_mri.runs import Run, write_atomically, writing
from pretrain.sweep import MODES, SWEEP_FILE, Ends, Trial

_MOST_POINTS = 200
_MOST_CURVES, _LONGEST_LABEL = 12, 60
_NAMES = {
    "knn": "accuracy of nearest neighbors",
    "rank": "effective rank (RankMe)",
    "loss": "loss",
}
_CAPTIONS = {
    "knn": "Region, sequence and plane by nearest neighbors, mean over these tasks and over "
    "validation patients; the first point is that of the initial weights.",
    "rank": "Directions that centered class tokens use. KoLeo can keep it high while the heads are "
    "dead: read it beside the health of each run.",
    "loss": "Losses of different objectives, temperatures or prototypes cannot be compared.",
}


def figures(line: Mapping[str, Any]) -> dict[str, float]:
    """What of a line of ``metrics.jsonl`` can be compared between runs, under the keys of `MODES`.

    ``knn`` is the mean over its tasks.
    """
    found = {name: line[name] for name in ("rank", "loss") if line.get(name) is not None}
    knn = [line[name] for name in line if name.startswith("knn_") and line[name] is not None]
    return found | ({"knn": statistics.fmean(knn)} if knn else {})


def steps_done(line: Mapping[str, Any]) -> int:
    """Finished steps that the probes of a line belong to; the first one has the initial weights."""
    return int(line["step"]) + 1 if line["step"] else 0


def write_results(
    out: Path, trials: Sequence[Trial], metric: str, ends: Ends
) -> list[dict[str, Any]]:
    """Write what the run folders hold now.

    Args:
        out: Folder of the sweep.
        trials: All of it.
        metric: What is compared, a key of `MODES`.
        ends: How trials ended that are not finished.

    Returns:
        A row for each trial.
    """
    courses = {trial.name: Run(trial.config.out, main=False).metrics() for trial in trials}
    rows = [_row(trial, courses[trial.name], *ends.of(trial)) for trial in trials]
    summary = _summary(trials, rows, metric)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    facts = {"schema": 1, "metric": metric, "trials": rows, "summary": summary}
    with writing(out):
        write_atomically(out / "sweep.csv", text.getvalue().encode())
        write_atomically(out / SWEEP_FILE, f"{json.dumps(facts, indent=1)}\n".encode())
    _report(out, trials, courses, rows, summary, metric)
    return rows


def _row(trial: Trial, course: list[dict[str, Any]], state: str, error: str) -> dict[str, Any]:
    values: dict[str, list[float]] = {name: [] for name in MODES}
    for line in course:
        for name, value in figures(line).items():
            values[name].append(value)
    last = values["loss"][-max(1, len(course) // 20) :]
    return {
        "trial": trial.name,
        **trial.settings,
        "seed": trial.config.seed,
        "state": state,
        "steps": course[-1]["step"] + 1 if course else 0,
        "knn": values["knn"][-1] if values["knn"] else None,
        "knn of initial weights": values["knn"][0] if values["knn"] else None,
        "rank": values["rank"][-1] if values["rank"] else None,
        "loss": statistics.fmean(last) if last else None,
        "seconds": round(sum(line["seconds"] for line in course), 1),
        "error": error,
    }


def _summary(
    trials: Sequence[Trial], rows: Sequence[Mapping[str, Any]], metric: str
) -> list[dict[str, Any]]:
    """For each setting the seeds that are finished; the best mean first."""
    by_label: dict[str, list[float]] = {trial.label: [] for trial in trials}
    for trial, row in zip(trials, rows, strict=True):
        if row["state"] == "finished" and row[metric] is not None:
            by_label[trial.label].append(row[metric])
    found = [
        {
            "setting": label,
            "seeds": len(values),
            "mean": statistics.fmean(values),
            "lowest": min(values),
            "highest": max(values),
        }
        for label, values in by_label.items()
        if values
    ]
    return sorted(found, key=lambda row: row["mean"], reverse=MODES[metric] == "max")


def _verdict(
    rows: Sequence[Mapping[str, Any]], summary: Sequence[Mapping[str, Any]], metric: str
) -> str:
    states = [row["state"] for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    begin, name = f"{len(rows)} trials: {counts}.", _NAMES[metric]
    if len(summary) < 2:
        return f"{begin} Fewer than two settings can be compared yet."
    if min(row["seeds"] for row in summary) < 2:
        return (
            f"{begin} Some settings have one finished seed, and {name} may differ by chance alone: "
            "no setting is called best. Run at least two seeds of each (--seeds 0 1 2)."
        )
    best, second = summary[:2]
    others = summary[1:]
    apart = (
        best["lowest"] > max(row["highest"] for row in others)
        if MODES[metric] == "max"
        else best["highest"] < min(row["lowest"] for row in others)
    )
    means = (
        f"{best['setting']}: {best['mean']:.3f} (n = {best['seeds']} seeds), then "
        f"{second['setting']}: {second['mean']:.3f} (n = {second['seeds']})"
    )
    if apart:
        return f"{begin} By {name} every seed of one setting is better than all others. {means}."
    return f"{begin} The seeds of settings overlap in {name}: no setting is called best. {means}."


def _report(
    out: Path,
    trials: Sequence[Trial],
    courses: Mapping[str, list[dict[str, Any]]],
    rows: Sequence[Mapping[str, Any]],
    summary: Sequence[Mapping[str, Any]],
    metric: str,
) -> None:
    from core_mri.plots import curves

    name = _NAMES[metric]
    report = Report("Sweep of pretraining", _verdict(rows, summary, metric), out.name)
    if summary:
        report.add_table(
            "Settings", summary,
            f"{name[0].upper()}{name[1:]} over finished seeds. Settings are chosen "
            "on validation patients: report the chosen one on test patients.",
        )  # fmt: skip
    hidden = ("trial", "error", *trials[0].settings)
    report.add_table(
        "Trials",
        [
            {"setting": trial.label, **{key: row[key] for key in row if key not in hidden}}
            for trial, row in zip(trials, rows, strict=True)
        ],
        "Each is a run of its own under trials/, with report and checkpoints. Loss is the mean of "
        "the last twentieth of the steps.",
    )
    if errors := [f"{row['trial']}: {row['error']}" for row in rows if row["error"]]:
        report.add_text("Errors", [error.replace(f"{out}/", "") for error in errors])
    order = {row["setting"]: place for place, row in enumerate(summary)}
    best = sorted(trials, key=lambda trial: order.get(trial.label, len(order)))[:_MOST_CURVES]
    more = f" Of {len(trials)} trials {_MOST_CURVES} are drawn." if len(trials) > len(best) else ""
    for name in (metric, *(name for name in MODES if name != metric)):
        series = {
            f"{trial.label[-_LONGEST_LABEL:]}, seed {trial.config.seed}": points
            for trial in best
            if (points := _points(courses[trial.name], name))[0]
        }
        if series:
            longest = max(len(steps) for steps, _ in series.values())
            figure = curves(
                series, "finished steps", _NAMES[name], points_per_bin=-(-longest // _MOST_POINTS)
            )
            report.add_figure("Curves", figure, _CAPTIONS[name] + more)
    report.write(out / "report.html")


def _points(course: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(steps_done(line), figures(line)[name]) for line in course if name in figures(line)]
    return [steps for steps, _ in found], [value for _, value in found]

"""The board for readers: facts for programs, and a page that needs nothing else."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from core_mri.reports import Report
from downstream.evaluation.summary import MIN_PATIENTS
from downstream.leaderboard.board import Board
from downstream.leaderboard.ranking import Row, ranked
from downstream.leaderboard.store import Store
from downstream.leaderboard.task import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 30
"""Submissions in the figure."""


def facts(board: Board) -> dict[str, Any]:
    """The board as JSON: means and intervals, no table of patients, nothing of a reference."""
    task = board.task
    return {
        "schema": 1,
        "name": task.name,
        "title": task.title,
        "kind": task.kind,
        "metric": task.metric,
        "more_is_better": task.sign > 0,
        "patients": len(board.patients),
        "files": [{"name": case.name, "shape": list(case.shape)} for case in board.cases],
        "per_day": task.per_day,
        "submissions": [_facts(row) for row in _rows(board)],
    }


def _facts(row: Row) -> dict[str, Any]:
    return {
        "rank": row.rank,
        "name": row.entry.name,
        "owner": row.entry.owner,
        "day": _day(row.entry.created),
        "scores": {
            metric: {"mean": _digits(i.mean), "ci_low": _digits(i.low), "ci_high": _digits(i.high)}
            for metric, i in row.means.items()
        },
        "behind": list(row.behind),
        "card": vars(row.entry.card),
    }


def as_json(board: Board) -> str:
    """`facts` as text."""
    return json.dumps(facts(board), indent=1) + "\n"


def note(board: Board) -> str:
    """What the ranks mean, in a sentence."""
    if len(board.patients) < MIN_PATIENTS:
        return (
            f"Fewer than {MIN_PATIENTS} patients: the means are described, no rank is claimed, and "
            "all share rank 1."
        )
    return (
        "Submissions share a rank unless everybody above is better than everybody below: the 95 % "
        "interval of the mean difference on the same patients leaves out 0, not adjusted for the "
        "number of pairs."
    )


def page(board: Board) -> str:
    """HTML of one self-contained page; the same board gives the same bytes."""
    task, rows = board.task, _rows(board)
    first = [row.entry.name for row in rows if row.rank == 1]
    verdict = (
        f"{len(rows)} submissions on {len(board.patients)} hidden patients. Rank 1: "
        f"{', '.join(first[:10])}{' and more' if len(first) > 10 else ''}."
        if rows
        else f"No submission yet; {len(board.patients)} hidden patients wait."
    )
    report = Report(task.title, verdict, f"leaderboard {task.name}, ranked by {task.metric}")
    if rows:
        report.add_figure(
            "Ranking", _figure(board, rows),
            f"Mean {task.metric} over patients with its 95 % interval. Lines part the ranks.",
        )  # fmt: skip
        report.add_table("Ranking", [_cells(board, row, rows) for row in rows], note(board))
        report.add_table(
            "Ranking", [_all_metrics(board, row) for row in rows],
            f"All metrics, mean over patients and 95 % interval; {task.metric} alone ranks.",
        )  # fmt: skip
    report.add_text("Task", task.description.split("\n\n"))
    report.add_facts(
        "Task",
        {
            "kind": task.kind,
            "ranked by": f"{task.metric} ({'more' if task.sign > 0 else 'less'} is better)",
            "files": len(board.cases),
            "hidden patients": len(board.patients),
            "structures": ", ".join(task.structures) or None,
            "submissions a day": task.per_day,
            "a copy": f"{task.near:g} or less: " + (
                "root mean squared difference, without offset and scale, over the standard "
                "deviation" if task.kind == "reconstruction"
                else "voxels that differ over labelled voxels"
            ),
        },
    )  # fmt: skip
    if rows:
        cards = [{"submission": row.entry.name, **vars(row.entry.card)} for row in rows]
        for card in cards:
            del card["saw_test_patients"]  # a card that says yes is refused
        report.add_table("Model cards", cards, "As their owners wrote them.")
    return report.html()


def _rows(board: Board) -> list[Row]:
    return ranked(Store(board).entries(), board.task)


def _cells(board: Board, row: Row, rows: list[Row]) -> dict[str, str | int | float | None]:
    alike = {other.entry.name for other in rows if other.rank == row.rank}
    return {
        "rank": row.rank,
        "submission": row.entry.name,
        "owner": row.entry.owner,
        _titled(board, board.task.metric): _interval(row, board.task.metric),
        "surely behind, in its rank": ", ".join(n for n in row.behind if n in alike) or None,
        "day": _day(row.entry.created),
    }


def _all_metrics(board: Board, row: Row) -> dict[str, str | int | float | None]:
    metrics = {_titled(board, name): _interval(row, name) for name in row.means}
    return {"rank": row.rank, "submission": row.entry.name, **metrics}


def _titled(board: Board, metric: str) -> str:
    unit = METRICS[board.task.kind][metric][1]
    return metric if unit == "1" else f"{metric} ({unit})"


def _interval(row: Row, metric: str) -> str:
    interval = row.means[metric]
    return f"{interval.mean:#.4g} ({interval.low:#.4g} to {interval.high:#.4g})"


def _figure(board: Board, rows: list[Row]) -> Figure:
    from core_mri.figure_style import FAINT, INK, LINE_COLORS, new_axes

    rows = rows[:_SHOWN]
    figure, axes = new_axes(8, 0.9 + 0.3 * len(rows), "")
    for place, row in enumerate(rows):
        interval = row.means[board.task.metric]
        color = LINE_COLORS[0 if row.rank == 1 else 4]
        axes.plot([interval.low, interval.high], [place, place], color=color, linewidth=2)
        axes.plot([interval.mean], [place], "o", color=color, markersize=6)
        if place and row.rank != rows[place - 1].rank:
            axes.axhline(place - 0.5, color=FAINT, linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row.rank}  {row.entry.name}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_xlabel(f"{board.task.metric}", color=INK)
    return figure


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _digits(value: float) -> float:
    """Five significant digits: more would tell of single voxels of the references."""
    return float(f"{value:.5g}")

"""Gains of results.json against the distances that a registry keeps: table, plot, verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core_mri.errors import DataError
from core_mri.figure_style import FAINT, LINE_COLORS, SMALL_PT, cycle, new_axes
from core_mri.reports import Report
from data_registry.similarity.transfer import (
    MIN_CELLS,
    MIN_PATIENTS,
    Cell,
    Correlation,
    correlate,
    join,
    read_gains,
    row_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from data_registry.catalogue import Registry

_DISTANCES = """
SELECT task, pretraining, distance, features, value, shared_patients FROM similarities
WHERE value IS NOT NULL QUALIFY row_number() OVER (
    PARTITION BY task, pretraining, distance ORDER BY commit DESC) = 1
"""


@dataclass(kw_only=True)
class TransferReport:
    """What gains say of distances."""

    cells: dict[str, dict[str, list[Cell]]] = field(default_factory=dict)
    """Metric to distance to cells."""
    found: dict[str, list[Correlation]] = field(default_factory=dict)
    """By metric."""
    unmatched: list[tuple[str, str]] = field(default_factory=list)
    """(task, weights) with a gain and no distance."""

    @property
    def verdict(self) -> str:
        """One or two sentences; with several distances no single p decides."""
        told = [one for many in self.found.values() for one in many if one.spearman is not None]
        if not told:
            most = max((one.cells for many in self.found.values() for one in many), default=0)
            return (
                f"No correlation is told: at most {most} cells of {MIN_PATIENTS} or more test "
                f"patients, and it takes {MIN_CELLS}."
            )
        from core_mri.metrics import holm

        adjusted = holm([one.p if one.p is not None else 1.0 for one in told])
        best = int(np.argmin(adjusted))
        one = told[best]
        better = (
            ""
            if one.error is None or one.baseline_error is None
            else f"; the gain of a task left out is predicted with a mean error of "
            f"{one.error:.3g}, by the mean of the others {one.baseline_error:.3g}"
        )
        return (
            f"Of {len(told)} distances {one.distance} goes best with the gain: Spearman "
            f"{one.spearman:.2f} (95 % interval {one.low:.2f} to {one.high:.2f}), p {one.p:.3g}, "
            f"adjusted by Holm {adjusted[best]:.3g}, from {one.cells} cells (tasks: {one.tasks}, "
            f"weights: {one.weights}, effective n {one.effective_n}){better}."
        )

    def rows(self) -> list[dict[str, Any]]:
        """A line for each metric and distance."""
        return [
            {"metric": metric, **row_of(one)} for metric, many in self.found.items() for one in many
        ]

    def to_mapping(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "verdict": self.verdict,
            "correlations": self.rows(),
            "cells": [
                {"distance_name": name, **asdict(cell.gain), "distance": cell.distance,
                 "structure_size": cell.structure_size, "fitted": cell.gain.fitted}
                for many in self.cells.values() for name, cells in many.items() for cell in cells
            ],
            "without_distance": [list(pair) for pair in self.unmatched],
        }  # fmt: skip

    def page(self) -> Report:
        """Tables and plots."""
        report = Report("Does likeness predict what pretraining brings?", self.verdict)
        report.add_table(
            "Correlations", self.rows(),
            "Gain: pretrained minus random twin, mean over test patients. Low and high: tasks and "
            "weights resampled. Partial: what the named quantities leave unexplained.",
        )  # fmt: skip
        for metric, many in self.cells.items():
            for name, cells in many.items():
                report.add_figure(
                    "Cells", _scatter(cells, name, metric),
                    f"{metric} against {name}; hollow: under {MIN_PATIENTS} test patients, shown "
                    "and not fitted.",
                )  # fmt: skip
        if self.unmatched:
            report.add_text(
                "Without a distance", [f"{task}, {weights}" for task, weights in self.unmatched]
            )
        report.add_text(
            "Limits",
            "A correlation over few tasks and weights is no cause. Interventions, pretraining with "
            "and without a region at equal compute, tell more: "
            "tests/benchmarks/similarity_study.py.",
        )
        return report


def report_transfer(
    registry: Registry, results: Sequence[Path], sizes: Mapping[str, float] | None = None
) -> TransferReport:
    """Set the gains of results against the newest distances of the same tasks and weights.

    Args:
        registry: Keeps the distances; cohorts are named as the tasks, weights folders as the
            weights.
        results: Files of `core-mri evaluate`.
        sizes: Task to the share of a slice that its structures take, where it is known.

    Raises:
        DataError: DATA-39 when a file cannot be used, or no cell has a distance.
    """
    gains = [gain for path in results for gain in read_gains(path)]
    distances: dict[tuple[str, str], dict[str, float]] = {}
    for task, weights, name, _, value, _ in registry.rows(_DISTANCES):
        distances.setdefault((task, weights), {})[name] = value
    report = TransferReport(
        unmatched=sorted({(g.task, g.weights) for g in gains} - distances.keys())
    )
    for metric in sorted({gain.metric for gain in gains}):
        own = [gain for gain in gains if gain.metric == metric]
        report.cells[metric] = join(own, distances, sizes or {})
        report.found[metric] = [
            correlate(name, cells) for name, cells in report.cells[metric].items()
        ]
    if not any(report.cells.values()):
        names = ", ".join(f"{task} with {weights}" for task, weights in report.unmatched[:5])
        raise DataError(
            "DATA-39",
            f"{registry.path} keeps no distance of the tasks and weights of these results "
            f"({names}).",
            fix="Run `core-mri data similarity` first, with cohorts named as the tasks and weights "
            "folders named as the weights.",
        )
    return report


def _scatter(cells: Sequence[Cell], name: str, metric: str) -> Figure:
    figure, axes = new_axes(7.2, 3.8, "")
    axes.axhline(0, color=FAINT, linewidth=1)
    tasks = list(dict.fromkeys(cell.gain.task for cell in cells))
    for index, task in enumerate(tasks):
        own = [cell for cell in cells if cell.gain.task == task]
        color = cycle(LINE_COLORS, index)
        for cell in own:
            gain = cell.gain
            if gain.low is not None and gain.high is not None:
                axes.plot([cell.distance] * 2, [gain.low, gain.high], color=color, linewidth=1)
            face = color if gain.fitted else "white"
            axes.plot([cell.distance], [gain.gain], cycle("osD^vP", index), color=color,
                      markerfacecolor=face, markersize=5)  # fmt: skip
        axes.plot([], [], cycle("osD^vP", index), color=color, label=task, markersize=5)
    axes.set_xlabel(name)
    axes.set_ylabel(f"gain in {metric}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=SMALL_PT)
    return figure

"""Do distances predict what pretraining brings? Gains over random twins against distances.

A cell is one task with one model: how much better the pretrained encoder is than its random twin,
on the same test patients, as ``results.json`` of `core-mri evaluate` has it. Weights and tasks come
in clusters (all cells of one task share its patients), so both are resampled as such, and no cell
counts for more than its clusters allow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core_mri.errors import DataError
from core_mri.metrics.intervals import expanded_tail
from core_mri.moments import Float64s

MIN_PATIENTS = 5
"""Test patients of a cell that is fitted; others are shown."""
MIN_CELLS = 10
"""Below this many no correlation is told."""
NUM_PERMUTATIONS, NUM_RESAMPLES = 9999, 2000


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One cell."""

    task: str
    weights: str
    method: str
    k: int
    """Labelled examples."""
    metric: str
    gain: float
    """Pretrained minus random twin, mean over test patients."""
    low: float | None
    high: float | None
    patients: int

    @property
    def fitted(self) -> bool:
        """Whether it has patients enough to count."""
        return self.patients >= MIN_PATIENTS


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A gain with what may explain it."""

    gain: Gain
    distance: float
    structure_size: float | None = None
    """Share of a slice that the structure takes, where it is known."""


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """How gains go with one distance."""

    distance: str
    cells: int
    """That are fitted."""
    tasks: int
    weights: int
    shown: int
    """Cells that have too few patients."""
    spearman: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % interval of Spearman's rho, tasks and weights resampled."""
    p: float | None = None
    """Two-sided, distances permuted among whole tasks or, with one task, among weights."""
    kendall: float | None = None
    partial: float | None = None
    """Spearman's rho of what number of labels and structure size leave unexplained."""
    partial_of: str = ""
    """Of which of the two: those that vary and are known."""
    error: float | None = None
    """Mean absolute error of the gain of a task that is predicted from all others; of two tasks
    each is predicted from the other. None for a single task."""
    baseline_error: float | None = None
    """The same when the mean gain of the other tasks is the prediction."""
    refused: str = ""
    """Why nothing is told."""

    @property
    def effective_n(self) -> int:
        """The number of clusters on the smaller side that varies: what an interval rests on."""
        return min((n for n in (self.tasks, self.weights) if n > 1), default=min(1, self.cells))


def read_gains(path: Path) -> list[Gain]:
    """The comparisons of models with their random twins in ``results.json``.

    Raises:
        DataError: DATA-39 when the file is missing or damaged, or has no random twin.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        twins = {
            (cell["task"], cell["weights"], cell["k"]) for cell in content["cells"] if cell["twin"]
        }
        gains = [
            Gain(
                task=row["task"], weights=row["weights"], method=row["method"], k=row["k"],
                metric=row["metric"], gain=row["difference"], low=row["ci_low"],
                high=row["ci_high"], patients=row["n"],
            )
            for row in content["comparisons"]
            if (row["task"], row["minus"], row["k"]) in twins
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "DATA-39", f"{path}: no results.json of `core-mri evaluate` ({error!r})."
        ) from None
    if not gains:
        raise DataError(
            "DATA-39",
            f"{path}: no model is compared with a random twin, so no gain can be told.",
            fix="Evaluate pretrained weights: their twins are evaluated beside them.",
        )
    return gains


def correlate(name: str, cells: Sequence[Cell], *, seed: int = 0) -> Correlation:
    """How gains go with one distance; nothing is claimed from under 10 cells.

    Args:
        name: Of the distance.
        cells: All of one metric, with that distance.
        seed: Of permutations and resamples.
    """
    fitted = [cell for cell in cells if cell.gain.fitted]
    tasks, task_of = np.unique([cell.gain.task for cell in fitted], return_inverse=True)
    weights, weights_of = np.unique([cell.gain.weights for cell in fitted], return_inverse=True)
    base = Correlation(
        distance=name,
        cells=len(fitted),
        tasks=len(tasks),
        weights=len(weights),
        shown=len(cells) - len(fitted),
    )
    x = np.array([cell.distance for cell in fitted])
    y = np.array([cell.gain.gain for cell in fitted])
    if len(fitted) < MIN_CELLS:
        return replace(
            base,
            refused=f"{len(fitted)} cells of {MIN_PATIENTS} or more test patients; a correlation "
            f"is told from {MIN_CELLS} on",
        )
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return replace(base, refused="all distances or all gains are equal")
    low, high = _interval(x, y, task_of, weights_of, seed)
    names, others = _covariates(fitted)
    predicted = _leave_one_task_out(x, y, task_of)
    return replace(
        base,
        spearman=spearman(x, y),
        low=low,
        high=high,
        p=_permutation_p(x, y, task_of, weights_of, seed),
        kendall=kendall(x, y),
        partial=partial_spearman(x, y, others) if names else None,
        partial_of=" and ".join(names),
        error=None if predicted is None else float(np.abs(predicted[0] - y).mean()),
        baseline_error=None if predicted is None else float(np.abs(predicted[1] - y).mean()),
    )


def spearman(x: Float64s, y: Float64s) -> float:
    """Spearman's rho; ties share their mean rank; nan when one side is constant."""
    return _pearson(_ranks(x), _ranks(y))


def kendall(x: Float64s, y: Float64s) -> float:
    """Kendall's tau-b."""
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic)


def partial_spearman(x: Float64s, y: Float64s, others: Float64s) -> float:
    """Spearman's rho of the ranks that are left when those of `others` [N, C] are regressed out."""
    design = np.column_stack([np.ones(len(x)), *(_ranks(column) for column in others.T)])

    def left(values: Float64s) -> Float64s:
        ranks = _ranks(values)
        return ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]

    return _pearson(left(x), left(y))


def _covariates(cells: Sequence[Cell]) -> tuple[list[str], Float64s]:
    """Number of labels and structure size, as far as they vary and are known of all cells."""
    columns = {
        "number of labels": [float(cell.gain.k) for cell in cells],
        "structure size": [
            math.nan if cell.structure_size is None else cell.structure_size for cell in cells
        ],
    }
    kept = {
        name: values
        for name, values in columns.items()
        if not np.isnan(values).any() and len(set(values)) > 1
    }
    return list(kept), np.array(list(kept.values()), np.float64).T


def _interval(
    x: Float64s, y: Float64s, task_of: np.ndarray, weights_of: np.ndarray, seed: int
) -> tuple[float, float]:
    """Tasks and weights are drawn with replacement; a cell counts as often as both were drawn."""
    rng = np.random.default_rng(seed)
    sizes = [int(codes.max()) + 1 for codes in (task_of, weights_of)]
    drawn = []
    for _ in range(NUM_RESAMPLES):
        times = np.ones(len(x), np.int64)
        for codes, size in zip((task_of, weights_of), sizes, strict=True):
            if size > 1:
                times *= rng.multinomial(size, np.full(size, 1 / size))[codes]
        drawn.append(spearman(np.repeat(x, times), np.repeat(y, times)))
    if np.isnan(drawn).all():
        return math.nan, math.nan
    tail = expanded_tail(min(size for size in sizes if size > 1))
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _permutation_p(
    x: Float64s, y: Float64s, task_of: np.ndarray, weights_of: np.ndarray, seed: int
) -> float:
    """Distances change places among tasks (with one task, among weights), all of one together.

    Each task keeps its cells in the order of its weights and gets those of another one, repeated
    where that has fewer. ``(1 + count) / (1 + permutations)`` (Phipson and Smyth 2010).
    """
    codes = task_of if task_of.max() > 0 else weights_of
    blocks = [np.flatnonzero(codes == code) for code in range(int(codes.max()) + 1)]
    rng = np.random.default_rng(seed)
    observed = abs(spearman(x, y)) - 1e-12
    count = 0
    for _ in range(NUM_PERMUTATIONS):
        moved = np.empty_like(x)
        for own, other in zip(blocks, rng.permutation(len(blocks)), strict=True):
            moved[own] = np.resize(x[blocks[other]], len(own))
        count += abs(spearman(moved, y)) >= observed
    return (1 + count) / (1 + NUM_PERMUTATIONS)


def _leave_one_task_out(
    x: Float64s, y: Float64s, task_of: np.ndarray
) -> tuple[Float64s, Float64s] | None:
    """Gain of each task from a line through the cells of all others, and from their mean."""
    if task_of.max() < 1:
        return None
    line, mean = np.empty_like(y), np.empty_like(y)
    for task in range(int(task_of.max()) + 1):
        own = task_of == task
        design = np.column_stack([np.ones((~own).sum()), x[~own]])
        intercept, slope = np.linalg.lstsq(design, y[~own], rcond=None)[0]
        line[own] = intercept + slope * x[own]
        mean[own] = y[~own].mean()
    return line, mean


def join(
    gains: Sequence[Gain],
    distances: Mapping[tuple[str, str], Mapping[str, float]],
    sizes: Mapping[str, float],
) -> dict[str, list[Cell]]:
    """Cells of each distance.

    Args:
        gains: Of one metric.
        distances: (task, weights) to distance to value.
        sizes: Task to structure size, where it is known.
    """
    found: dict[str, list[Cell]] = {}
    for gain in gains:
        for name, value in distances.get((gain.task, gain.weights), {}).items():
            cell = Cell(gain=gain, distance=value, structure_size=sizes.get(gain.task))
            found.setdefault(name, []).append(cell)
    return found


def _ranks(values: Float64s) -> Float64s:
    from scipy.stats import rankdata

    ranks: Float64s = rankdata(values)
    return ranks


def _pearson(x: Float64s, y: Float64s) -> float:
    if len(x) < 3:
        return math.nan
    a, b = x - x.mean(), y - y.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size > 1e-12 else math.nan


def row_of(found: Correlation) -> dict[str, Any]:
    """A line of a table."""
    return {
        "distance": found.distance, "cells": found.cells, "tasks": found.tasks,
        "weights": found.weights, "effective n": found.effective_n, "shown only": found.shown,
        "Spearman": found.spearman, "low": found.low, "high": found.high, "p": found.p,
        "Kendall": found.kendall, "partial": found.partial, "partial for": found.partial_of,
        "leave-one-task-out error": found.error, "error of the mean": found.baseline_error,
        "why not": found.refused,
    }  # fmt: skip

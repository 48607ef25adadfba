"""Ranks with ties: who is surely better than whom, on the same patients.

Two submissions differ surely when the 95 % bootstrap interval of the mean of their differences,
patient by patient, leaves out 0. This is no order: A and B may be alike, B and C too, while A is
better than C. A rank therefore ends, going down the means, only where everybody above is surely
better than everybody below: whoever is alike shares a rank, and another rank always is a sure
difference. What differs surely within a rank is told beside it (`Row.behind`). The intervals are
not adjusted for the number of pairs. With fewer than `MIN_PATIENTS` patients nothing is claimed:
all share rank 1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core_mri.metrics import Interval, bootstrap_interval
from downstream.evaluation.summary import MIN_PATIENTS
from downstream.leaderboard.store import Entry
from downstream.leaderboard.task import METRICS, TaskConfig


@dataclass(frozen=True, kw_only=True)
class Row:
    """A submission on the board."""

    rank: int
    entry: Entry
    means: dict[str, Interval]
    """Metric -> mean over patients and its 95 % interval."""
    behind: tuple[str, ...]
    """Submissions that are surely better."""


def ranked(entries: Sequence[Entry], task: TaskConfig) -> list[Row]:
    """The board, best mean first; equal means by time.

    Args:
        entries: Scored submissions.
        task: With the metric that ranks.
    """
    patients = sorted(next(iter(entries[0].scores.values()))) if entries else []
    values = [tuple(e.scores[task.metric][p] * task.sign for p in patients) for e in entries]
    order = sorted(
        range(len(entries)), key=lambda i: (-float(np.mean(values[i])), entries[i].created)
    )
    entries, values = [entries[i] for i in order], [values[i] for i in order]
    number = len(entries)
    claims = len(patients) >= MIN_PATIENTS
    surely = np.zeros((number, number), bool)  # [better, worse]
    for above in range(number):
        for below in range(above + 1, number):
            surely[above, below] = claims and _is_better(values[above], values[below])
    rows, rank = [], 1
    for place, entry in enumerate(entries):
        if place and surely[:place, place:].all():
            rank = place + 1
        means = {
            metric: bootstrap_interval([entry.scores[metric][p] for p in patients])
            for metric in METRICS[task.kind]
        }
        behind = tuple(entries[i].name for i in range(place) if surely[i, place])
        rows.append(Row(rank=rank, entry=entry, means=means, behind=behind))
    return rows


@functools.lru_cache(maxsize=100_000)
def _is_better(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether the interval of the paired difference lies above 0."""
    return bootstrap_interval(np.subtract(one, other)).low > 0

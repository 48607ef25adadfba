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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.metrics import Interval, bootstrap_statistic
from core_mri.metrics.intervals import expanded_tail
from downstream.evaluation.summary import MIN_PATIENTS
from downstream.leaderboard.store import Entry
from downstream.leaderboard.task import METRICS, TaskConfig

Array = npt.NDArray[np.float64]


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
    if not entries:
        return []
    patients = sorted(entries[0].scores[task.metric])
    values = {
        metric: np.array([[e.scores[metric][p] for e in entries] for p in patients])
        for metric in METRICS[task.kind]
    }  # [patients, entries] each
    best = values[task.metric].mean(0) * task.sign
    order = sorted(range(len(entries)), key=lambda i: (-best[i], entries[i].created))
    entries = [entries[i] for i in order]
    resampled = {metric: _resampled_means(table[:, order]) for metric, table in values.items()}
    tail = expanded_tail(len(patients))
    surely = np.zeros((len(entries), len(entries)), bool)  # [better, worse]
    if len(patients) >= MIN_PATIENTS:
        means = resampled[task.metric] * task.sign
        for above in range(len(entries) - 1):
            differences = means[:, above, None] - means[:, above + 1 :]
            surely[above, above + 1 :] = np.quantile(differences, tail, axis=0) > 0
    rows, rank = [], 1
    for place, entry in enumerate(entries):
        if place and surely[:place, place:].all():
            rank = place + 1
        intervals = {}
        for metric, table in values.items():
            low, high = np.quantile(resampled[metric][:, place], [tail, 1 - tail])
            mean = float(table[:, order[place]].mean())
            intervals[metric] = Interval(mean, float(low), float(high), len(patients))
        behind = tuple(entries[i].name for i in range(place) if surely[i, place])
        rows.append(Row(rank=rank, entry=entry, means=intervals, behind=behind))
    return rows


def _resampled_means(values: Array) -> Array:
    """Means of all columns over the same resampled patients, those of `bootstrap_interval`.

    One resampling serves every mean and every paired difference of the board.

    Args:
        values: ``[patients, entries]``.

    Returns:
        ``[resamples, entries]``.
    """
    parts: list[Array] = []

    def means(weights: Array) -> Array:
        parts.append(weights @ values / len(values))
        return weights[:, 0]

    bootstrap_statistic(means, len(values))
    return np.concatenate(parts[1:])  # the first one is of the patients as they are

"""Which data to add: what brings the pretraining data closest to a task for every slice added.

The squared distance of mean embeddings (KID without its bias) of a mixture to the task is a
quadratic form of the shares of its parts, so that any amount of any source can be tried without
touching a feature again:

    ``d(w) = w^T K w - 2 w^T k + c``,  w the shares, K the mean kernel between sources and k that
    between source and task; pairs of one patient are left out.

Greedy: the source with the largest drop for each of its slices comes first, whole, and is part of
the mixture from then on. Scans of an index are known by their labels only; the same is done with
the mean Jensen-Shannon divergence of region, sequence, vendor and plane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core_mri.feature_sample import FeatureSample
from core_mri.moments import Float64s
from data_registry.similarity.distances import jensen_shannon

if TYPE_CHECKING:
    from core_mri.reports import Cell

IMPROVES = 1e-3
"""A step must take this part of the distance off."""
_LABELS = ("region", "sequence", "vendor", "plane")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Data that may be added."""

    name: str
    licence: str
    slices: int
    patients: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """Data to add next."""

    candidate: Candidate
    measure: str
    """What gets smaller."""
    before: float
    after: float

    def row(self) -> dict[str, Cell]:
        """A line of a table."""
        one = self.candidate
        return {
            "add": one.name, "licence": one.licence, "slices": one.slices,
            "patients": one.patients, "measure": self.measure, "before": self.before,
            "after": self.after,
            "drop for 1,000 slices": 1000 * (self.before - self.after) / one.slices,
        }  # fmt: skip


def greedy(
    present: int,
    candidates: Sequence[Candidate],
    distance: Callable[[Float64s], float],
    measure: str,
    most: int = 10,
) -> list[Step]:
    """Steps until nothing brings the mixture closer.

    Args:
        present: Slices that are there.
        candidates: What may be added.
        distance: Of a mixture to the task, from the slices ``[1 + C]`` of what is there and of each
            candidate.
        measure: What `distance` is.
        most: Steps at most.
    """
    amounts = np.array([present, *([0] * len(candidates))], dtype=np.float64)
    left = set(range(len(candidates)))
    now = distance(amounts)
    steps: list[Step] = []
    while left and len(steps) < most:
        after = {}
        for i in left:
            tried = amounts.copy()
            tried[1 + i] = candidates[i].slices
            after[i] = distance(tried)
        best = max(left, key=lambda i: (now - after[i]) / candidates[i].slices)
        if now - after[best] <= IMPROVES * abs(now):
            break
        steps.append(
            Step(candidate=candidates[best], measure=measure, before=now, after=after[best])
        )
        amounts[1 + best] = candidates[best].slices
        now = after[best]
        left.remove(best)
    return steps


def kernel_mixture(
    task: FeatureSample, parts: Sequence[FeatureSample]
) -> Callable[[Float64s], float]:
    """The distance of mixtures by features.

    Args:
        task: Of the task.
        parts: What is there, then each candidate; all of other patients.
    """
    samples = [(one.rows.astype(np.float64), one.patients) for one in (task, *parts)]
    means = np.zeros((len(samples), len(samples)))
    for i, (x, px) in enumerate(samples):
        for j, (y, py) in enumerate(samples[: i + 1]):
            kernel = (x @ y.T / x.shape[1] + 1) ** 3
            others = (px[:, None] != py[None, :]) | (i != j)
            means[i, j] = means[j, i] = kernel[others].mean() if others.any() else kernel.mean()

    def distance(amounts: Float64s) -> float:
        shares = amounts / amounts.sum()
        return float(shares @ means[1:, 1:] @ shares - 2 * shares @ means[1:, 0] + means[0, 0])

    return distance


def label_mixture(
    task: Mapping[str, Mapping[str, float]], parts: Sequence[Mapping[str, Mapping[str, float]]]
) -> Callable[[Float64s], float]:
    """The distance of mixtures by labels.

    Args:
        task: Label to value to number of slices of the task, unknown ones left out.
        parts: The same of what is there and of each candidate.
    """
    tables = []
    for label in _LABELS:
        words = sorted({word for one in (task, *parts) for word in one.get(label, {})})
        own = np.array([task.get(label, {}).get(word, 0.0) for word in words])
        others = np.array([[part.get(label, {}).get(w, 0.0) for w in words] for part in parts])
        if own.sum():
            others = others / np.maximum(others.sum(1, keepdims=True), 1)
            tables.append((own, others))

    def distance(amounts: Float64s) -> float:
        mixed = [(own, amounts @ others) for own, others in tables]
        return float(np.mean([jensen_shannon(own, m) if m.sum() else 1.0 for own, m in mixed]))

    return distance

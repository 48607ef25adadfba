"""Means over patients of volume scores, with intervals, and paired differences of methods.

The unit is the patient: volumes of a patient, then seeds, are averaged first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from core_mri.metrics import bootstrap_interval, detectable_difference, holm, paired_permutation
from downstream.evaluation.results import Outcome
from downstream.evaluation.summary import MIN_PATIENTS, Comparison, SummaryRow

PRIMARY = "PSNR"
"""The metric that is tested."""

Group = tuple[str, str, str, int]
"""(task, weights, method, k)."""


def summarized(outcomes: Iterable[Outcome], seed: int) -> list[SummaryRow]:
    """A row a task, method and metric; what failed is left out."""
    rows = []
    for (task, weights, method, k), metrics in grouped(outcomes).items():
        for (metric, unit), patients in sorted(metrics.items()):
            interval = bootstrap_interval(list(patients.values()), seed=seed)
            rows.append(
                SummaryRow(
                    task=task, weights=weights, method=method, k=k, metric=metric, unit=unit,
                    mean=interval.mean, n=interval.n, ci_low=interval.low, ci_high=interval.high,
                )
            )  # fmt: skip
    return rows


def compared(
    outcomes: Iterable[Outcome], pairs: Sequence[tuple[Group, Group]], seed: int
) -> list[Comparison]:
    """Paired differences in PSNR, same patients and seeds; Holm over all that are tested.

    Args:
        outcomes: Of all methods.
        pairs: Which group minus which; pairs with a group that is not there are left out.
        seed: Of intervals and permutations.
    """
    groups = grouped(outcomes)
    found = []
    for own, other in pairs:
        if own not in groups or other not in groups:
            continue
        ours, theirs = (groups[group][PRIMARY, "dB"] for group in (own, other))
        shared = sorted(ours.keys() & theirs.keys())
        a, b = (np.array([values[name] for name in shared]) for values in (ours, theirs))
        difference = bootstrap_interval(a - b, seed=seed)
        p = paired_permutation(a, b, seed=seed) if difference.n >= MIN_PATIENTS else None
        found.append(
            Comparison(
                task=own[0], weights=own[1], twin=_named(own, other), method=own[2], k=own[3],
                metric=PRIMARY, difference=difference, p=p, baseline=True,
                detectable=detectable_difference(a - b),
            )
        )  # fmt: skip
    adjusted = iter(holm([c.p for c in found if c.p is not None]).tolist())
    return [c if c.p is None else replace(c, p_holm=next(adjusted)) for c in found]


def _named(own: Group, other: Group) -> str:
    """The other's name, with its labels where they are not the same."""
    if other[2] in ("classical", "self-supervised") or other[3] == own[3]:
        return other[1]
    return f"{other[1]} ({other[3] or 'all'} labelled)"


def grouped(
    outcomes: Iterable[Outcome],
) -> dict[Group, dict[tuple[str, str], dict[str, float]]]:
    """Group to (metric, unit) to patient to mean."""
    values: dict[Group, dict[tuple[str, str], dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for outcome in outcomes:
        for score in outcome.scores:
            if score.value is not None:
                group = (score.task, score.weights, score.method, score.k)
                values[group][score.metric, score.unit][score.patient].append(score.value)
    return {
        group: {
            kind: {patient: float(np.mean(own)) for patient, own in sorted(patients.items())}
            for kind, patients in metrics.items()
        }
        for group, metrics in sorted(values.items())
    }

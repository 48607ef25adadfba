"""From scores of cells to means with intervals, and from pairs of models to differences.

The unit is the patient: draws of a patient are averaged first, then patients are resampled. A model
is compared with its random twin on the same patients and the same draws. With fewer than
`MIN_PATIENTS` test patients numbers are descriptive and carry no p-value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core_mri.metrics import (
    Interval,
    bootstrap_interval,
    detectable_difference,
    holm,
    paired_permutation,
    smallest_p,
)
from downstream.evaluation.classified import METRICS, ClassifierTable
from downstream.evaluation.results import Outcome

MIN_PATIENTS = 8
NUM_RESAMPLES = 2000

Group = tuple[str, str, str, int]
"""(task, weights, method, k)."""


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One metric of one model on one task."""

    task: str
    weights: str
    method: str
    k: int
    metric: str
    """dice or dice_2d (mean over structures), dice:STRUCTURE or dice_2d:STRUCTURE, or one of
    `downstream.evaluation.classified.METRICS`."""
    mean: float
    n: int
    """Test patients."""
    ci_low: float
    """95 % interval over patients; nan with one patient."""
    ci_high: float
    p: float | None = None
    """Paired permutation test against the random twin, for dice and balanced_accuracy."""
    p_holm: float | None = None
    """Adjusted for all tests of the run."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model minus its random twin, same patients and draws."""

    task: str
    weights: str
    twin: str
    method: str
    k: int
    metric: str
    difference: Interval
    p: float | None
    p_holm: float | None = None
    detectable: float = math.nan
    """The smallest true difference that as many patients would show in 4 of 5 studies
    (`core_mri.metrics.detectable_difference`); nan with one patient."""

    @property
    def smallest_p(self) -> float:
        """That the test can give for so many patients, before Holm."""
        return smallest_p(self.difference.n)

    @property
    def group(self) -> Group:
        """Which model, on which task."""
        return (self.task, self.weights, self.method, self.k)

    @property
    def descriptive(self) -> bool:
        """Too few patients for a claim."""
        return self.difference.n < MIN_PATIENTS


def summarize(
    outcomes: Iterable[Outcome], *, seed: int
) -> tuple[list[SummaryRow], list[Comparison]]:
    """Summary rows and comparisons of all finished cells, whatever order they come in."""
    finished = sorted(
        (o for o in outcomes if not o.error),
        key=lambda o: (o.task, o.twin, o.weights, o.k, o.draw, o.key),
    )
    rows: list[SummaryRow] = []
    comparisons: list[Comparison] = []
    groups: dict[Group, list[Outcome]] = {}
    for outcome in finished:
        for method in sorted({score.method for score in outcome.scores}):
            key = (outcome.task, outcome.weights, method, outcome.k)
            groups.setdefault(key, []).append(outcome)
    for key, own in groups.items():
        rows += _rows(key, own, seed)
        twin_key = (key[0], own[0].against, key[2], key[3])
        if twin_key in groups:
            comparison = _compare(key, own, groups[twin_key], seed)
            comparisons += [comparison] if comparison else []
    comparisons = _adjusted(comparisons)
    tests = {(*c.group, c.metric): c for c in comparisons}
    return [_with_test(row, tests) for row in rows], comparisons


def _rows(key: Group, outcomes: Sequence[Outcome], seed: int) -> list[SummaryRow]:
    common = dict(zip(("task", "weights", "method", "k"), key, strict=True))
    intervals: dict[str, Interval] = {}
    if outcomes[0].classes:
        table = ClassifierTable(outcomes, key[2])
        intervals |= {metric: table.interval(metric, seed) for metric in METRICS}
    else:
        metric = outcomes[0].scores[0].metric
        structures = sorted({score.structure for o in outcomes for score in o.scores})
        intervals[metric] = _dice_interval(_per_patient(outcomes, key[2], structures), seed)
        for structure in structures:
            values = _per_patient(outcomes, key[2], [structure])
            intervals[f"{metric}:{structure}"] = _dice_interval(values, seed)
    return [
        SummaryRow(
            **common,  # type: ignore[arg-type]
            metric=metric,
            mean=found.mean,
            n=found.n,
            ci_low=found.low,
            ci_high=found.high,
        )
        for metric, found in intervals.items()
    ]


def _compare(
    key: Group, own: Sequence[Outcome], twins: Sequence[Outcome], seed: int
) -> Comparison | None:
    """None when model and twin share no finished draw."""
    draws = {o.draw for o in own} & {o.draw for o in twins}
    own = [o for o in own if o.draw in draws]
    twins = [o for o in twins if o.draw in draws]
    if not draws:
        return None
    if own[0].classes:
        metric = "balanced_accuracy"
        table, other = (ClassifierTable(found, key[2]) for found in (own, twins))
        difference = table.interval(metric, seed, minus=other)
        a, b = table.contributions(), other.contributions()
        spread = len(a) * (a - b)  # their mean is the difference
    else:
        metric = own[0].scores[0].metric
        structures = sorted({score.structure for o in own for score in o.scores})
        ours, theirs = (_per_patient(found, key[2], structures) for found in (own, twins))
        a, b = (np.array([values[p] for p in sorted(ours)]) for values in (ours, theirs))
        spread = a - b
        difference = bootstrap_interval(spread, num_resamples=NUM_RESAMPLES, seed=seed)
    p = paired_permutation(a, b, seed=seed) if difference.n >= MIN_PATIENTS else None
    return Comparison(
        task=key[0],
        weights=key[1],
        twin=twins[0].weights,
        method=key[2],
        k=key[3],
        metric=metric,
        difference=difference,
        p=p,
        detectable=detectable_difference(spread),
    )


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Holm over every test of the run."""
    tested = [c.p for c in comparisons if c.p is not None]
    adjusted = iter(holm(tested).tolist())
    return [c if c.p is None else replace(c, p_holm=next(adjusted)) for c in comparisons]


def _with_test(
    row: SummaryRow, tests: Mapping[tuple[str, str, str, int, str], Comparison]
) -> SummaryRow:
    test = tests.get((row.task, row.weights, row.method, row.k, row.metric))
    return row if test is None else replace(row, p=test.p, p_holm=test.p_holm)


def _per_patient(
    outcomes: Sequence[Outcome], method: str, structures: Sequence[str]
) -> dict[str, float]:
    """Patient to the mean over draws and structures."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        for score in outcome.scores:
            wanted = score.method == method and score.structure in structures
            if wanted and score.value is not None:
                values.setdefault(score.patient, []).append(score.value)
    return {patient: math.fsum(found) / len(found) for patient, found in sorted(values.items())}


def _dice_interval(values: dict[str, float], seed: int) -> Interval:
    return bootstrap_interval(list(values.values()), num_resamples=NUM_RESAMPLES, seed=seed)

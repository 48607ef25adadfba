"""From scores of cells to means with intervals, and from pairs of models to differences.

The unit is the patient: draws of a patient are averaged first, then patients are resampled. A model
is compared with its random twin and with the baselines on the same patients and the same draws, in
Dice or balanced accuracy alone: surface scores are described with their intervals, so that the
number of tests does not depend on how many ways there are to look at one mask. With fewer than
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
PRIMARY = ("dice", "dice_2d")
"""The metric of masks that is tested."""

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
    """dice, nsd, hd95 or dice_2d (mean over structures), the same with :STRUCTURE, or one of
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
    unit: str = "1"
    """Of mean and interval, as `Score.unit`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A model minus its random twin or a baseline, same patients and draws."""

    task: str
    weights: str
    twin: str
    """Name of the twin or baseline."""
    method: str
    k: int
    metric: str
    difference: Interval
    p: float | None
    p_holm: float | None = None
    baseline: bool = False
    """Whether the other is a baseline."""
    detectable: float = math.nan
    """The smallest true difference that as many patients would show in 4 of 5 studies
    (`core_mri.metrics.detectable_difference`); nan with one patient."""

    @property
    def smallest_p(self) -> float:
        """That the test can give for so many patients, before Holm."""
        return smallest_p(self.difference.n)

    def row(self) -> dict[str, object]:
        """The comparison as ``results.json`` has it."""
        found = self.difference
        return {
            "task": self.task, "weights": self.weights, "minus": self.twin, "method": self.method,
            "k": self.k, "metric": self.metric, "difference": found.mean, "n": found.n,
            "ci_low": found.low, "ci_high": found.high, "p": self.p, "p_holm": self.p_holm,
        }  # fmt: skip

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
        if outcome.empty and not outcome.draw:
            rows.append(_empty_row(outcome))
        for method in sorted({score.method for score in outcome.scores}):
            key = (outcome.task, outcome.weights, method, outcome.k)
            groups.setdefault(key, []).append(outcome)
    for key, own in groups.items():
        rows += _rows(key, own, seed)
        if not own[0].against:
            continue
        for other, others in groups.items():
            is_twin = other == (key[0], own[0].against, key[2], key[3])
            if is_twin or (others[0].baseline and (other[0], other[3]) == (key[0], key[3])):
                comparison = _compare(key, own, others, seed, other[2])
                comparisons += [comparison] if comparison else []
    comparisons = _adjusted(comparisons)
    tests = {(*c.group, c.metric): c for c in comparisons if not c.baseline}
    return [_with_test(row, tests) for row in rows], comparisons


def _rows(key: Group, outcomes: Sequence[Outcome], seed: int) -> list[SummaryRow]:
    common = dict(zip(("task", "weights", "method", "k"), key, strict=True))
    intervals: dict[tuple[str, str], Interval] = {}
    if outcomes[0].classes:
        table = ClassifierTable(outcomes, key[2])
        intervals |= {(metric, "1"): table.interval(metric, seed) for metric in METRICS}
    else:
        structures = sorted({score.structure for o in outcomes for score in o.scores})
        kinds = {(s.metric, s.unit) for o in outcomes for s in o.scores if s.method == key[2]}
        for metric, unit in sorted(kinds):
            values = _per_patient(outcomes, key[2], structures, metric, unit)
            intervals[metric, unit] = _mean_interval(values, seed)
            for structure in structures:
                values = _per_patient(outcomes, key[2], [structure], metric, unit)
                intervals[f"{metric}:{structure}", unit] = _mean_interval(values, seed)
    return [
        SummaryRow(
            **common,  # type: ignore[arg-type]
            metric=metric,
            mean=found.mean,
            n=found.n,
            ci_low=found.low,
            ci_high=found.high,
            unit=unit,
        )
        for (metric, unit), found in intervals.items()
    ]


def _empty_row(outcome: Outcome) -> SummaryRow:
    return SummaryRow(
        task=outcome.task, weights=outcome.weights, method="-", k=outcome.k, metric=PRIMARY[0],
        mean=math.nan, n=0, ci_low=math.nan, ci_high=math.nan,
    )  # fmt: skip


def _compare(
    key: Group, own: Sequence[Outcome], twins: Sequence[Outcome], seed: int, method: str
) -> Comparison | None:
    """None when model and twin or baseline, which has its own `method`, share no finished draw."""
    draws = {o.draw for o in own} & {o.draw for o in twins}
    own = [o for o in own if o.draw in draws]
    twins = [o for o in twins if o.draw in draws]
    if not draws:
        return None
    if own[0].classes:
        metric = "balanced_accuracy"
        table, other = ClassifierTable(own, key[2]), ClassifierTable(twins, method)
        difference = table.interval(metric, seed, minus=other)
        a, b = table.contributions(), other.contributions()
        spread = len(a) * (a - b)  # their mean is the difference
    else:
        metric = next(m for m in PRIMARY if any(s.metric == m for s in own[0].scores))
        structures = sorted({score.structure for o in own for score in o.scores})
        ours = _per_patient(own, key[2], structures, metric)
        theirs = _per_patient(twins, method, structures, metric)
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
        baseline=twins[0].baseline,
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
    outcomes: Sequence[Outcome],
    method: str,
    structures: Sequence[str],
    metric: str,
    unit: str = "1",
) -> dict[str, float]:
    """Patient to the mean over draws and structures."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        for score in outcome.scores:
            kind = (score.method, score.metric, score.unit)
            wanted = kind == (method, metric, unit) and score.structure in structures
            if wanted and score.value is not None:
                values.setdefault(score.patient, []).append(score.value)
    return {patient: math.fsum(found) / len(found) for patient, found in sorted(values.items())}


def _mean_interval(values: dict[str, float], seed: int) -> Interval:
    return bootstrap_interval(list(values.values()), num_resamples=NUM_RESAMPLES, seed=seed)

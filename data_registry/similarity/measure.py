"""A distance with what makes it readable: how many slices and patients, its interval, its null.

No number comes without them. Where there are too few slices or patients for one, the reason stands
in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core_mri.feature_sample import LABELS, FeatureSample, check_comparable
from core_mri.metrics.intervals import expanded_tail
from core_mri.moments import Float64s, Moments
from data_registry.similarity import distances as d
from data_registry.similarity.distances import Pair, Side, Weighted

MOST_SLICES = 1000
"""Of each side."""
NUM_SPLITS = 10
"""Halves of the pretraining patients that are compared with each other for the null."""
FEW_PATIENTS = 5
"""Below this many a number describes these patients and supports no claim."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A quantity and when it can be asked for."""

    name: str
    prepare: Callable[[Pair], Weighted]
    closer: str = "lower"
    """``lower`` or ``higher`` values mean closer."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    min_slices: int = 20
    min_patients: int = 2
    num_resamples: int = 400
    label: str = ""
    """Of `LABELS`, when labels are compared."""
    formulas: bool = False
    """Whether radiomic features are compared, not those of an encoder."""


DISTANCES = (
    Distance(name="KID", prepare=d.kernel_distance),
    Distance(name="FD at 200 slices", prepare=d.frechet_at_fixed_n, bounds=(0, math.inf),
             min_slices=d.FIXED_N, num_resamples=100),
    Distance(name="FD extrapolated", prepare=d.frechet_extrapolated, min_slices=d.FIXED_N,
             min_patients=8, num_resamples=100),
    Distance(name="coverage", prepare=d.coverage, closer="higher", bounds=(0, 1)),
    Distance(name="density", prepare=d.density, closer="higher", bounds=(0, math.inf)),
    Distance(name="domain AUROC", prepare=d.domain_auroc, bounds=(0, 1)),
    Distance(name="proxy A-distance", prepare=d.proxy_a, bounds=(-2, 2)),
    Distance(name="sliced Wasserstein", prepare=d.sliced_wasserstein, bounds=(0, math.inf),
             num_resamples=100),
    Distance(name="FRD", prepare=d.radiomic_distance, min_slices=d.FIXED_N, num_resamples=60,
             formulas=True),
    *(
        Distance(name=f"JS {label}".replace("_", " "), prepare=d.label_divergence, bounds=(0, 1),
                 min_patients=2, label=label)
        for label in LABELS if label != "source"
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One distance between a task and pretraining data."""

    distance: str
    features: str
    """What was compared: name of the encoder, the formulas, or the metadata."""
    closer: str
    value: float | None = None
    """None when refused."""
    low: float | None = None
    high: float | None = None
    """95 % interval, patients of both sides resampled; the bias of resampling is taken off."""
    null: float | None = None
    """Mean of the same between halves of the pretraining patients; None with under 4 patients."""
    null_high: float | None = None
    """The farthest of these halves."""
    slices: int
    """Of the task, that were compared."""
    patients: int
    """Of the task."""
    pretraining_slices: int
    pretraining_patients: int
    refused: str = ""
    """Why there is no number."""

    @property
    def few(self) -> bool:
        """Whether there are too few patients for a claim."""
        return min(self.patients, self.pretraining_patients) < FEW_PATIENTS

    @property
    def told_apart(self) -> bool:
        """Whether the interval lies beyond all of the null."""
        if self.low is None or self.high is None or self.null_high is None:
            return False
        return self.low > self.null_high if self.closer == "lower" else self.high < self.null_high


def measure(
    task: FeatureSample, pretraining: FeatureSample, name: str, kinds: Sequence[Distance], *,
    moments: Moments | None = None, seed: int = 0,
) -> list[Measurement]:  # fmt: skip
    """Distances between two samples of features of one kind.

    Args:
        task: Of the task.
        pretraining: Of pretraining.
        name: Of what made the features.
        kinds: Which distances.
        moments: Of all pretraining slices; without them distances on principal components
            cannot be asked for.
        seed: Of splits and resamples.

    Raises:
        DataError: DATA-36 for features of two encoders, DATA-37 when a feature is not finite.
    """
    check_comparable(task, pretraining)
    axes = np.zeros((task.rows.shape[1], 0)) if moments is None else d.principal_axes(moments)
    results = []
    for kind in kinds:
        x, y = (_known(sample, kind) for sample in (task, pretraining))
        small = x.first(MOST_SLICES)
        other = y.first(MOST_SLICES)
        found = Measurement(
            distance=kind.name,
            features="metadata" if kind.label else name,
            closer=kind.closer,
            slices=len(small),
            patients=small.num_patients,
            pretraining_slices=len(other),
            pretraining_patients=other.num_patients,
        )
        if refused := _refused(x, y, kind):
            results.append(replace(found, refused=refused))
            continue
        pair = Pair(_side(small, kind, axes), _side(other, kind, axes))
        value, low, high = _interval(kind, pair, seed)
        nulls = _nulls(kind, y, len(small), axes, seed)
        if nulls:
            far = max(nulls) if kind.closer == "lower" else min(nulls)
            found = replace(found, null=float(np.mean(nulls)), null_high=far)
        results.append(replace(found, value=value, low=low, high=high))
    return results


def _refused(x: FeatureSample, y: FeatureSample, kind: Distance) -> str:
    """Why a distance cannot be told; empty when it can."""
    for sample, side in ((x, "the task"), (y, "pretraining")):
        what = f" whose {kind.label.replace('_', ' ')} is known" if kind.label else ""
        if sample.num_patients < kind.min_patients or len(sample) < kind.min_slices:
            return (
                f"{side} has {len(sample)} slices of {sample.num_patients} "
                f"patient{'s' * (sample.num_patients != 1)}{what}; "
                f"{kind.min_slices} of {kind.min_patients} are needed"
            )
    if not kind.label and not (np.ptp(x.rows, axis=0) + np.ptp(y.rows, axis=0)).any():
        return "all features are constant: nothing can be told from them"
    return ""


def _known(sample: FeatureSample, kind: Distance) -> FeatureSample:
    if not kind.label:
        return sample
    return sample.take(np.flatnonzero(sample.labels[kind.label] != "unknown"))


def _side(sample: FeatureSample, kind: Distance, axes: Float64s) -> Side:
    rows = sample.rows.astype(np.float64)
    labels = sample.labels[kind.label] if kind.label else np.array([], str)
    return Side(rows, rows @ axes, sample.patients, labels)


def _interval(kind: Distance, pair: Pair, seed: int) -> tuple[float, float, float]:
    """The distance and its interval: the spread of resamples of patients about their own mean."""
    distance = kind.prepare(pair)
    counts = (pair.task.num_patients, pair.pretraining.num_patients)
    value = distance(*(np.ones(n) for n in counts))
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            distance(*(rng.multinomial(n, np.full(n, 1 / n)).astype(np.float64) for n in counts))
            for _ in range(kind.num_resamples)
        ]
    )
    tail = expanded_tail(min(counts))
    low, high = np.nanquantile(drawn - np.nanmean(drawn), [tail, 1 - tail]) + value
    return value, max(float(low), kind.bounds[0]), min(float(high), kind.bounds[1])


def _nulls(
    kind: Distance, pretraining: FeatureSample, size: int, axes: Float64s, seed: int
) -> list[float]:
    """Distances between random halves of the pretraining patients, the first of `size` slices."""
    rng = np.random.default_rng(seed + 1)
    patients = pretraining.num_patients
    found = []
    for _ in range(NUM_SPLITS if patients >= 4 else 0):
        first = np.isin(pretraining.patients, rng.permutation(patients)[: patients // 2])
        halves = [pretraining.take(np.flatnonzero(half)) for half in (first, ~first)]
        halves = [halves[0].first(min(size, MOST_SLICES)), halves[1].first(MOST_SLICES)]
        if any(len(half) < kind.min_slices for half in halves):
            continue
        pair = Pair(*(_side(half, kind, axes) for half in halves))
        counts = (pair.task.num_patients, pair.pretraining.num_patients)
        found.append(kind.prepare(pair)(*(np.ones(n) for n in counts)))
    return found

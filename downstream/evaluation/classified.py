"""The test examples of one classifier in all its draws, and what they say over patients.

A metric is computed on all examples of a set of patients, draw by draw, then averaged over draws;
patients are resampled with all their examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from core_mri.metrics import Interval, bootstrap_statistic, resampled
from core_mri.metrics.classification import NUM_BINS
from downstream.evaluation.results import Outcome

NUM_RESAMPLES = 2000
METRICS = ("balanced_accuracy", "auroc", "auprc", "ece", "ece_uncalibrated", "brier")

Array = npt.NDArray[np.float64]


class ClassifierTable:
    """One method of one model.

    Args:
        outcomes: Its draws; the test examples are the same and in the same order.
        method: Which one.
    """

    def __init__(self, outcomes: Sequence[Outcome], method: str) -> None:
        rows = [[row for row in o.probed if row.method == method] for o in outcomes]
        names = np.array([row.patient for row in rows[0]])
        self.patients, self.owner = np.unique(names, return_inverse=True)
        self.truth = np.array([row.truth for row in rows[0]])
        self.scores: Array = np.array([[row.scores for row in own] for own in rows])  # [D, N, C]
        self.calibrated: Array = np.array([[row.calibrated for row in own] for own in rows])

    @property
    def num_patients(self) -> int:
        """With at least one test example."""
        return len(self.patients)

    def values(self, metric: str, weights: Array) -> Array:
        """[R]: the metric in every resampling of patients, averaged over draws.

        Args:
            metric: One of `METRICS`.
            weights: [R, P], how often each patient counts.
        """
        of_examples = weights[:, self.owner]  # [R, N]
        draws = [
            _METRICS[metric](self.truth, scores, calibrated, of_examples)
            for scores, calibrated in zip(self.scores, self.calibrated, strict=True)
        ]
        return np.stack(draws).mean(0)

    def interval(self, metric: str, seed: int, minus: ClassifierTable | None = None) -> Interval:
        """The metric, or its difference to that of another classifier of the same examples."""

        def statistic(weights: Array) -> Array:
            found = self.values(metric, weights)
            return found if minus is None else found - minus.values(metric, weights)

        return bootstrap_statistic(
            statistic, self.num_patients, num_resamples=NUM_RESAMPLES, seed=seed
        )

    def contributions(self) -> Array:
        """[P]: one number per patient, which sum to the balanced accuracy.

        Exchanging two classifiers on a patient exchanges these numbers, so the sign-flip test on
        them is exact.
        """
        classes, place, counts = np.unique(self.truth, return_inverse=True, return_counts=True)
        hits = (self.scores.argmax(2) == self.truth).mean(0)  # [N]
        worth = hits / (len(classes) * counts[place])
        sums = np.bincount(self.owner, worth, minlength=self.num_patients)
        return sums.astype(np.float64)


_Metric = Callable[[npt.NDArray[np.int64], Array, Array, Array], Array]
"""(truth [N], scores [N, C], calibrated [N, C], weights [R, N]) to [R]."""

_METRICS: dict[str, _Metric] = {
    "balanced_accuracy": lambda t, s, _, w: resampled.recalls(t, s.argmax(1) == t, w),
    "auroc": lambda t, s, _, w: resampled.areas_under_roc(t, s, w),
    "auprc": lambda t, s, _, w: resampled.average_precisions(t, s, w),
    "ece": lambda t, _, c, w: resampled.calibration_errors(t, c, w, NUM_BINS),
    "ece_uncalibrated": lambda t, s, _, w: resampled.calibration_errors(t, s, w, NUM_BINS),
    "brier": lambda t, _, c, w: resampled.brier_scores(t, c, w),
}

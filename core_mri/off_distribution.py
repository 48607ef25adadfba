"""Whether a scan is unlike what the weights saw: a score with a calibrated rate of false alarms.

The score of a volume is the mean over some of its slices of the squared Mahalanobis distance of
their class tokens from the training slices, divided by their width (about 1 for a training slice):

    ``s = mean over slices of (x - m)^T S^-1 (x - m) / D``,  ``S = (1 - a) C + a tr(C) / D I``

with m and C mean and covariance of the training slices and a = 0.05. The threshold comes from
volumes of patients who are not in m and C. A new volume of a new patient from the same source of
patients is above it with at most the stated probability, whatever the distribution of the scores
(conformal prediction with repeated measures: Lee, Barber and Willett, Distribution-free inference
with hierarchical data, arXiv:2306.06342).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.moments import Float64s, Moments

SHRINKAGE = 0.05
JUDGED_SLICES = 16
"""Slices of a volume that are looked at, evenly spread over those with foreground."""
FOREGROUND_LEVEL, MIN_FOREGROUND = 0.1, 0.02
"""A slice shows something when this share of its voxels (the second) is brighter than this part of
the volume's intensity window (the first); others count as air."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How a volume compares with what the weights saw."""

    score: float
    """About 1 for slices like those of training, more for others."""
    threshold: float
    """Scores above it are unlike."""
    false_alarm_rate: float
    """At most this share of new scans of the same kind lies above the threshold."""

    @property
    def unlike(self) -> bool:
        """Whether the volume is unlike what the weights saw."""
        return self.score > self.threshold

    def facts(self) -> dict[str, float | bool]:
        """For JSON."""
        return {
            "unlike": self.unlike,
            "score": round(self.score, 4),
            "threshold": round(self.threshold, 4),
            "false_alarm_rate": self.false_alarm_rate,
        }

    def __str__(self) -> str:
        word = "unlike" if self.unlike else "like"
        return (
            f"{word} the scans these weights saw: score {self.score:.2f}, threshold "
            f"{self.threshold:.2f} (at most {self.false_alarm_rate:.0%} of scans like them are "
            "above it)"
        )


class Familiarity:
    """Scores volumes against the moments of training slices.

    Args:
        moments: Of the class tokens of training slices.
    """

    def __init__(self, moments: Moments) -> None:
        covariance = moments.covariance
        width = len(covariance)
        level = max(float(np.trace(covariance)) / width, 1e-30)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * level * np.eye(width)
        self._mean = moments.mean
        self._factor: Float64s = np.linalg.cholesky(shrunk).astype(np.float64)

    def score(self, rows: npt.NDArray[np.floating]) -> float:
        """The score of a volume of which `judged_slices` have the class tokens [S, D]."""
        from scipy.linalg import solve_triangular

        apart = solve_triangular(self._factor, (rows - self._mean).T, lower=True)
        return float((apart**2).mean())


def judged_slices(slices: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Positions of the slices [S, H, W] in [0, 1] that are looked at.

    Evenly spread over those with foreground; over all when none has any.
    """
    shown = np.flatnonzero((slices > FOREGROUND_LEVEL).mean((1, 2)) >= MIN_FOREGROUND)
    return evenly(shown if len(shown) else np.arange(len(slices)))


def evenly(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At most `JUDGED_SLICES` of ascending positions, evenly spread."""
    if len(positions) <= JUDGED_SLICES:
        return positions
    return positions[np.linspace(0, len(positions) - 1, JUDGED_SLICES).round().astype(np.int64)]


def calibrate(
    scores: npt.NDArray[np.floating], patients: npt.NDArray[np.integer], rate: float = 0.05
) -> tuple[float, float]:
    """The threshold that a volume of a new patient exceeds with at most probability `rate`.

    Each of P patients has weight 1 / (P + 1), shared by that patient's volumes, and the rest stands
    for the new one. The threshold is the smallest score up to which weights sum to ``1 - rate``.

    Args:
        scores: [V], of volumes of patients whose slices are not in the moments.
        patients: [V], the patient of each.
        rate: Share of false alarms that is accepted.

    Returns:
        The threshold, and the rate that it has: ``1 / (P + 1)`` where that is more than `rate`,
        as fewer patients can promise no less.
    """
    _, own, counts = np.unique(patients, return_inverse=True, return_counts=True)
    possible = max(rate, 1 / (len(counts) + 1))
    weights = 1 / (len(counts) + 1) / counts[own]
    order = np.argsort(scores)
    reached = np.cumsum(weights[order]) >= 1 - possible - 1e-12
    return float(scores[order][reached.argmax()]), possible

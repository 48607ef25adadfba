"""Scores of a classifier in many resamplings of its cases at once.

Letters: ``N`` cases, ``C`` classes, ``R`` resamplings. `weights` ``[R, N]`` says how often a case
counts in a resampling; a row of ones is the data itself. A score that a resampling does not define
is nan. The definitions stand beside the functions of `core_mri.metrics.classification`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def recalls(reference: npt.NDArray[np.generic], hit: Bools, weights: Array) -> Array:
    """[R]: mean over the classes present of the share of their cases that were recognized."""
    of_class = reference[:, None] == np.unique(reference)  # [N, C]
    return _mean_of_defined(_ratio(weights @ (of_class & hit[:, None]), weights @ of_class))


def areas_under_roc(reference: npt.NDArray[np.generic], scores: Array, weights: Array) -> Array:
    """[R]: mean over classes, class against rest, of the area under the ROC curve.

    Args:
        reference: Classes ``[N]``, 0 ... C-1.
        scores: ``[N, C]``.
        weights: ``[R, N]``.
    """
    columns = [_roc_area(reference == c, scores[:, c], weights) for c in range(scores.shape[1])]
    return _mean_of_defined(np.stack(columns, 1))


def average_precisions(reference: npt.NDArray[np.generic], scores: Array, weights: Array) -> Array:
    """[R]: mean over classes, class against rest, of the average precision; as above."""
    columns = [_precision(reference == c, scores[:, c], weights) for c in range(scores.shape[1])]
    return _mean_of_defined(np.stack(columns, 1))


def brier_scores(reference: npt.NDArray[np.generic], probabilities: Array, weights: Array) -> Array:
    """[R]: mean over cases of the squared distance from probabilities to the true class."""
    truth = reference[:, None] == np.arange(probabilities.shape[1])
    distance = np.square(probabilities - truth).sum(1)
    return _ratio(weights @ distance, weights.sum(1))


def calibration_errors(
    reference: npt.NDArray[np.generic], probabilities: Array, weights: Array, num_bins: int
) -> Array:
    """[R]: expected calibration error of the most likely class, in bins of equal width."""
    confidence, hit, in_bin = binned(reference, probabilities, num_bins)
    gap = weights @ (in_bin * (hit - confidence)[:, None])  # [R, bins], count x (acc - conf)
    return _ratio(np.abs(gap).sum(1), weights.sum(1))


def binned(
    reference: npt.NDArray[np.generic], probabilities: Array, num_bins: int
) -> tuple[Array, Array, Bools]:
    """Confidence ``[N]``, whether right ``[N]`` (0 or 1), and membership ``[N, num_bins]``.

    Bin b holds confidences in ``(b / num_bins, (b + 1) / num_bins]``, the first one 0 too.
    """
    confidence = probabilities.max(1)
    hit = (probabilities.argmax(1) == reference).astype(np.float64)
    place = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    return confidence, hit, place[:, None] == np.arange(num_bins)


def _roc_area(positive: Bools, scores: Array, weights: Array) -> Array:
    inside, outside = _by_score(positive, scores, weights)  # ascending
    below = np.cumsum(outside, 1) - outside / 2  # a tie counts one half
    return _ratio((inside * below).sum(1), inside.sum(1) * outside.sum(1))


def _precision(positive: Bools, scores: Array, weights: Array) -> Array:
    inside, outside = _by_score(positive, -scores, weights)  # from the highest score down
    found, claimed = np.cumsum(inside, 1), np.cumsum(inside + outside, 1)
    precision = np.divide(found, claimed, out=np.zeros_like(found), where=claimed > 0)
    return _ratio((inside * precision).sum(1), inside.sum(1))


def _by_score(positive: Bools, scores: Array, weights: Array) -> tuple[Array, Array]:
    """Positive and negative cases [R, T] at each of the T distinct scores, ascending."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    ordered = weights[:, order]
    parts = (ordered * side[order] for side in (positive, ~positive))
    inside, outside = (np.add.reduceat(part, starts, axis=1) for part in parts)
    return inside, outside


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def _mean_of_defined(columns: Array) -> Array:
    """Mean over the last axis of what is not nan."""
    defined = ~np.isnan(columns)
    return _ratio(np.where(defined, columns, 0.0).sum(1), defined.sum(1).astype(np.float64))

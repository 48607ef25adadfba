"""Balanced accuracy and area under the ROC curve, defined as in scikit-learn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def balanced_accuracy(reference: npt.ArrayLike, estimate: npt.ArrayLike) -> float:
    """The mean over classes of the share of their cases that were recognized.

    ``mean_c |{i: r_i = c, e_i = c}| / |{i: r_i = c}|`` over the classes c of `reference`. Source:
    Brodersen et al., The balanced accuracy and its posterior distribution, ICPR 2010.

    Args:
        reference: True classes ``[N]``, numbers or strings.
        estimate: Predicted classes ``[N]``.

    Returns:
        A number in [0, 1]; chance is 1 / number of classes.

    Raises:
        ValueError: The arrays are empty, not one-dimensional or of different length.
    """
    reference, estimate = np.asarray(reference), np.asarray(estimate)
    if reference.ndim != 1 or reference.shape != estimate.shape or not reference.size:
        raise ValueError(
            f"expected two non-empty lists of classes, got {reference.shape} and {estimate.shape}"
        )
    hit = reference == estimate
    return float(np.mean([hit[reference == label].mean() for label in np.unique(reference)]))


def auroc(reference: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive case scores above a negative one.

    ``(sum of the positives' ranks - n1 (n1 + 1) / 2) / (n1 n0)`` with n1 positive and n0 negative
    cases; tied scores share their mean rank, so a tie counts one half. With one column per class:
    the mean over classes of class against rest. Source: Hanley and McNeil, The meaning and use of
    the area under a receiver operating characteristic curve, Radiology 143 (1982).

    Args:
        reference: True classes ``[N]``: 0 or 1 when `scores` has one axis, else 0 ... C-1.
        scores: ``[N]``, larger means more likely class 1; or ``[N, C]``, one column per class.

    Returns:
        A number in [0, 1]; chance is 0.5. Classes without a case, or without a case of the rest,
        have no ROC curve and are left out of the mean; nan when none is left.

    Raises:
        ValueError: Shapes do not fit, a class is out of range, or a score is nan.
    """
    reference, scores = np.asarray(reference), np.asarray(scores, dtype=np.float64)
    if reference.ndim != 1 or scores.ndim not in (1, 2) or len(reference) != len(scores):
        raise ValueError(
            "expected classes [N] and scores [N] or [N, C], "
            f"got {reference.shape} and {scores.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError("a score is nan")
    num_classes = 2 if scores.ndim == 1 else scores.shape[1]
    if not np.isin(reference, np.arange(num_classes)).all():
        raise ValueError(f"classes must be 0 to {num_classes - 1}, got {np.unique(reference)}")
    if scores.ndim == 1:
        return _area(reference == 1, scores)
    areas = np.array([_area(reference == c, scores[:, c]) for c in range(num_classes)])
    defined = areas[~np.isnan(areas)]
    return float(defined.mean()) if defined.size else float("nan")


def _area(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    num_positive = int(positive.sum())
    num_negative = positive.size - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    smallest = num_positive * (num_positive + 1) / 2
    return float((ranks[positive].sum() - smallest) / (num_positive * num_negative))

"""How well classes are told apart, and how far stated probabilities can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.metrics import resampled

NUM_BINS = 15
"""Of the calibration error, as in Guo et al. (2017)."""


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
    once = np.ones((1, reference.size))
    return float(resampled.recalls(reference, reference == estimate, once)[0])


def auroc(reference: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive case scores above a negative one.

    ``sum over positives i of (n0 below s_i + n0 tied with s_i / 2) / (n1 n0)`` with n1 positive and
    n0 negative cases. With one column per class: the mean over classes of class against rest.
    Source: Hanley and McNeil, The meaning and use of the area under a receiver operating
    characteristic curve, Radiology 143 (1982).

    Args:
        reference: True classes ``[N]``: 0 or 1 when `scores` has one axis, else 0 ... C-1.
        scores: ``[N]``, larger means more likely class 1; or ``[N, C]``, one column per class.

    Returns:
        A number in [0, 1]; chance is 0.5. Classes without a case, or without a case of the rest,
        have no ROC curve and are left out of the mean; nan when none is left.

    Raises:
        ValueError: Shapes do not fit, a class is out of range, or a score is nan.
    """
    classes, table = _scored(reference, scores)
    return float(resampled.areas_under_roc(classes, table, np.ones((1, len(table))))[0])


def auprc(reference: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the precision-recall curve, as average precision.

    ``sum over thresholds t of (recall_t - recall_(t-1)) precision_t``, without interpolation, from
    the highest score down; tied cases enter together. With one column per class: the mean over the
    classes that have a case, class against rest; with one axis: of class 1 alone. Source: Davis and
    Goadrich, The relationship between precision-recall and ROC curves, ICML 2006, which shows why
    not to interpolate linearly.

    Args:
        reference: As `auroc`.
        scores: As `auroc`.

    Returns:
        A number in [0, 1]; chance is the prevalence, so that values of test sets with other shares
        of the classes cannot be compared. nan without a positive case.

    Raises:
        ValueError: As `auroc`.
    """
    classes, table = _scored(reference, scores)
    once = np.ones((1, len(table)))
    if np.asarray(scores).ndim == 1:
        only = resampled.average_precisions(1 - classes, table[:, 1:], once)
        return float(only[0])
    return float(resampled.average_precisions(classes, table, once)[0])


def brier(reference: npt.ArrayLike, probabilities: npt.ArrayLike) -> float:
    """Brier score over all classes, ``mean_i sum_c (p_ic - [r_i = c])^2``.

    In [0, 2], 0 is best; saying 1 / C for every class gives 1 - 1 / C. For two classes it is twice
    the score of one probability. Source: Brier, Verification of forecasts expressed in terms of
    probability, Monthly Weather Review 78 (1950).

    Args:
        reference: True classes ``[N]``, 0 ... C-1.
        probabilities: ``[N, C]``, rows sum to one.

    Raises:
        ValueError: As `auroc`, or a row is no distribution.
    """
    classes, table = _distributions(reference, probabilities)
    return float(resampled.brier_scores(classes, table, np.ones((1, len(table))))[0])


def calibration_error(
    reference: npt.ArrayLike, probabilities: npt.ArrayLike, *, num_bins: int = NUM_BINS
) -> float:
    """Expected calibration error (ECE) of the most likely class.

    ``sum_b |B_b| / N |acc(B_b) - conf(B_b)|`` over bins ``B_b`` of equal width of the confidence
    ``max_c p_ic``; acc is the share of right answers, conf the mean confidence. Biased upwards for
    few cases per bin: even a perfectly calibrated classifier scores above 0. Source: Guo et al., On
    calibration of modern neural networks, ICML 2017.

    Args:
        reference: True classes ``[N]``, 0 ... C-1.
        probabilities: ``[N, C]``, rows sum to one.
        num_bins: Number of bins on (0, 1].

    Raises:
        ValueError: As `brier`.
    """
    classes, table = _distributions(reference, probabilities)
    once = np.ones((1, len(table)))
    return float(resampled.calibration_errors(classes, table, once, num_bins)[0])


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases of similar confidence."""

    confidence: float
    """Their mean confidence."""
    accuracy: float
    """Share of right answers."""
    count: int
    """Number of cases."""


def reliability(
    reference: npt.ArrayLike, probabilities: npt.ArrayLike, *, num_bins: int = NUM_BINS
) -> list[ReliabilityBin]:
    """The bins of `calibration_error` that hold a case, by confidence; arguments as there."""
    classes, table = _distributions(reference, probabilities)
    confidence, hit, in_bin = resampled.binned(classes, table, num_bins)
    return [
        ReliabilityBin(float(confidence[own].mean()), float(hit[own].mean()), int(own.sum()))
        for own in in_bin.T
        if own.any()
    ]


def _scored(
    reference: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Classes [N] and scores [N, C], checked; one axis becomes two classes of opposite order."""
    classes, table = np.asarray(reference), np.asarray(scores, dtype=np.float64)
    if classes.ndim != 1 or table.ndim not in (1, 2) or len(classes) != len(table):
        raise ValueError(
            f"expected classes [N] and scores [N] or [N, C], got {classes.shape} and {table.shape}"
        )
    if np.isnan(table).any():
        raise ValueError("a score is nan")
    if table.ndim == 1:
        table = np.stack([-table, table], 1)
    if not np.isin(classes, np.arange(table.shape[1])).all():
        raise ValueError(f"classes must be 0 to {table.shape[1] - 1}, got {np.unique(classes)}")
    return classes.astype(np.int64), table


def _distributions(
    reference: npt.ArrayLike, probabilities: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    classes, table = _scored(reference, probabilities)
    if np.ndim(probabilities) != 2 or (table < 0).any() or not len(table):
        raise ValueError(f"expected probabilities [N, C] of 0 or more, got {table.shape}")
    if not np.allclose(table.sum(1), 1, atol=1e-4):
        raise ValueError("the probabilities of a case must sum to one")
    return classes, table

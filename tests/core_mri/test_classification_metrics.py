"""Tests of core_mri.metrics.classification."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from core_mri.metrics import (
    auprc,
    auroc,
    balanced_accuracy,
    brier,
    calibration_error,
    reliability,
    resampled,
)

GOLD = Path(__file__).parents[1] / "references" / "statistics_gold.json"


class TestBalancedAccuracy:
    @pytest.mark.parametrize("seed", range(5))
    def test_equals_scikit_learn(self, seed: int) -> None:
        from sklearn.metrics import balanced_accuracy_score

        rng = np.random.default_rng(seed)
        reference = np.array([0, 1, 2, 3, *rng.choice(4, 60, p=[0.7, 0.1, 0.1, 0.1])])
        estimate = np.where(rng.random(64) < 0.6, reference, rng.integers(0, 4, 64))
        expected = balanced_accuracy_score(reference, estimate)
        assert balanced_accuracy(reference, estimate) == pytest.approx(expected, abs=1e-12)

    def test_a_constant_guess_is_chance_whatever_the_prevalence(self) -> None:
        assert balanced_accuracy([0] * 99 + [1], [0] * 100) == 0.5

    def test_names_are_classes_too(self) -> None:
        assert balanced_accuracy(["T1", "T1", "T2"], ["T1", "T2", "T2"]) == 0.75

    def test_bad_lists_are_refused(self) -> None:
        for num_reference, num_estimate in [((0,), (0,)), ((2,), (1,)), ((1, 2), (1, 2))]:
            with pytest.raises(ValueError, match="lists of classes"):
                balanced_accuracy(np.zeros(num_reference), np.zeros(num_estimate))


class TestAuroc:
    @pytest.mark.parametrize("num_values", [3, 10, 10**6])
    def test_binary_equals_scikit_learn_with_ties(self, num_values: int) -> None:
        from sklearn.metrics import roc_auc_score

        rng = np.random.default_rng(num_values)
        reference = np.array([0, 1, *rng.choice(2, 80, p=[0.8, 0.2])])
        scores = rng.integers(0, num_values, 82) + 0.3 * num_values * reference
        expected = roc_auc_score(reference, scores)
        assert auroc(reference, scores) == pytest.approx(expected, abs=1e-12)

    def test_one_against_rest_equals_scikit_learn(self) -> None:
        from sklearn.metrics import roc_auc_score

        rng = np.random.default_rng(0)
        reference = np.array([0, 1, 2, *rng.choice(3, 60)])
        scores = rng.dirichlet([1, 1, 1], 63) + np.eye(3)[reference] * 0.2
        scores /= scores.sum(axis=1, keepdims=True)
        expected = roc_auc_score(reference, scores, multi_class="ovr", average="macro")
        assert auroc(reference, scores) == pytest.approx(expected, abs=1e-12)

    def test_is_the_share_of_ordered_pairs(self) -> None:
        rng = np.random.default_rng(1)
        reference, scores = np.repeat([0, 1], [7, 5]), rng.integers(0, 4, 12)
        pairs = np.sign(scores[reference == 1][:, None] - scores[reference == 0][None, :])
        assert auroc(reference, scores) == pytest.approx(((pairs + 1) / 2).mean())

    def test_only_the_order_counts_and_negation_mirrors(self) -> None:
        rng = np.random.default_rng(2)
        reference, scores = np.array([0, 1] * 10), rng.normal(size=20)
        assert auroc(reference, np.exp(scores)) == auroc(reference, scores)
        assert auroc(reference, -scores) == pytest.approx(1 - auroc(reference, scores))
        assert auroc(reference.astype(bool), scores) == auroc(reference, scores)

    def test_classes_without_a_curve_are_left_out(self) -> None:
        assert math.isnan(auroc([1, 1], [0.2, 0.3]))
        scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
        assert auroc([0, 1, 0], scores) == auroc([0, 1, 0], scores[:, :2]) == 1.0

    def test_bad_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match="expected classes"):
            auroc([0, 1], [0.1, 0.2, 0.3])
        with pytest.raises(ValueError, match="nan"):
            auroc([0, 1], [0.1, math.nan])
        with pytest.raises(ValueError, match="0 to 1"):
            auroc([1, 2], [0.1, 0.2])


def distributions(seed: int, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Classes drawn from their stated probabilities: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([1, 1, 1], size)
    return np.array([rng.choice(3, p=row) for row in probabilities]), probabilities


class TestAuprc:
    @pytest.mark.parametrize("num_values", [3, 10, 10**6])
    def test_equals_scikit_learn_with_ties(self, num_values: int) -> None:
        from sklearn.metrics import average_precision_score

        rng = np.random.default_rng(num_values)
        reference = np.array([0, 1, *rng.choice(2, 80, p=[0.8, 0.2])])
        scores = rng.integers(0, num_values, 82) + 0.3 * num_values * reference
        expected = average_precision_score(reference, scores)
        assert auprc(reference, scores) == pytest.approx(expected, abs=1e-12)

    def test_classes_against_rest_equal_scikit_learn(self) -> None:
        from sklearn.metrics import average_precision_score

        classes, probabilities = distributions(0)
        expected = average_precision_score(np.eye(3)[classes], probabilities, average="macro")
        assert auprc(classes, probabilities) == pytest.approx(expected, abs=1e-12)

    def test_equal_scores_give_the_prevalence(self) -> None:
        assert auprc([1, 0, 0, 0], [0.5] * 4) == 0.25
        assert math.isnan(auprc([0, 0], [0.1, 0.2]))


class TestCalibration:
    def test_ece_equals_torchmetrics(self) -> None:
        gold = json.loads(GOLD.read_text())["calibration"]
        found = calibration_error(gold["classes"], gold["probabilities"])
        assert found == pytest.approx(gold["ece"], abs=1e-6)

    def test_ece_of_a_sure_liar_is_one_and_of_the_truth_zero(self) -> None:
        truth = np.eye(3)[[0, 1, 2]]
        assert calibration_error([0, 1, 2], truth) == brier([0, 1, 2], truth) == 0
        assert calibration_error([1, 2, 0], truth) == 1
        assert brier([1, 2, 0], truth) == 2

    def test_ece_falls_towards_zero_for_stated_chances(self) -> None:
        few, many = (calibration_error(*distributions(1, size)) for size in (100, 20_000))
        assert many < 0.02 < few

    def test_brier_is_twice_that_of_scikit_learn_for_two_classes(self) -> None:
        from sklearn.metrics import brier_score_loss

        rng = np.random.default_rng(3)
        classes, p = rng.integers(0, 2, 30), rng.random(30)
        expected = 2 * brier_score_loss(classes, p)
        assert brier(classes, np.stack([1 - p, p], 1)) == pytest.approx(expected, abs=1e-12)

    def test_bins_add_up_to_the_error(self) -> None:
        classes, probabilities = distributions(4)
        bins = reliability(classes, probabilities)
        assert sum(b.count for b in bins) == 60
        total = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / 60
        assert total == pytest.approx(calibration_error(classes, probabilities))

    def test_what_is_no_distribution_is_refused(self) -> None:
        with pytest.raises(ValueError, match="sum to one"):
            brier([0], [[0.5, 0.4]])
        with pytest.raises(ValueError, match=r"\[N, C\]"):
            calibration_error([0, 1], [0.5, 0.5])


class TestResamplings:
    """A weight of 2 is a case that is there twice."""

    def test_equal_the_metric_of_the_repeated_cases(self) -> None:
        classes, probabilities = distributions(5)
        counts = np.random.default_rng(6).integers(0, 3, (7, 60)).astype(float)
        for many, one in (
            (resampled.areas_under_roc, auroc),
            (resampled.average_precisions, auprc),
            (resampled.brier_scores, brier),
            (partial(resampled.calibration_errors, num_bins=15), calibration_error),
        ):
            found = many(classes, probabilities, weights=counts)
            rows = [np.repeat(np.arange(60), row.astype(int)) for row in counts]
            expected = [one(classes[row], probabilities[row]) for row in rows]
            assert found == pytest.approx(expected, abs=1e-12)

    def test_recalls_do_too(self) -> None:
        classes, probabilities = distributions(7)
        estimate = probabilities.argmax(1)
        counts = np.random.default_rng(8).integers(0, 2, (5, 60)).astype(float)
        found = resampled.recalls(classes, classes == estimate, counts)
        kept = [row == 1 for row in counts]
        expected = [balanced_accuracy(classes[row], estimate[row]) for row in kept]
        assert found == pytest.approx(expected, abs=1e-12)

    def test_what_a_resampling_does_not_define_is_nan(self) -> None:
        classes, scores = np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]])
        weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
        assert resampled.areas_under_roc(classes, scores, weights) == pytest.approx(
            [1, math.nan, math.nan], nan_ok=True
        )

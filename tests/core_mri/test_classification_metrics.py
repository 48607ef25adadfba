"""Tests of core_mri.metrics.classification."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core_mri.metrics import auroc, balanced_accuracy


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

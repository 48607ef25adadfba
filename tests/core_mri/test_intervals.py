"""Tests of core_mri.metrics.intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from core_mri.metrics import bootstrap_interval, holm, paired_permutation


class TestBootstrap:
    def test_same_seed_same_interval(self) -> None:
        values = np.random.default_rng(0).normal(size=20)
        assert bootstrap_interval(values) == bootstrap_interval(values)
        assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)

    def test_order_of_magnitude_is_the_standard_error(self) -> None:
        values = np.random.default_rng(1).normal(0.8, 0.1, 200)
        interval = bootstrap_interval(values)
        half = 1.96 * values.std() / math.sqrt(200)
        assert interval.mean == pytest.approx(values.mean())
        assert interval.n == 200
        assert interval.high - interval.mean == pytest.approx(half, rel=0.15)
        assert interval.mean - interval.low == pytest.approx(half, rel=0.15)

    def test_two_patients_by_hand(self) -> None:
        # The resampled mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4: the middle 95 % is all of
        # it, the middle 40 % is the center alone.
        wide = bootstrap_interval([0.0, 1.0])
        assert (wide.low, wide.mean, wide.high) == (0.0, 0.5, 1.0)
        narrow = bootstrap_interval([0.0, 1.0], level=0.4)
        assert (narrow.low, narrow.high) == (0.5, 0.5)

    def test_covers_the_true_mean_about_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(2)
        intervals = [
            bootstrap_interval(rng.normal(size=30), num_resamples=400, seed=i) for i in range(200)
        ]
        assert 0.88 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.98

    def test_moves_and_scales_with_the_values(self) -> None:
        values = np.random.default_rng(3).normal(size=12)
        one, other = bootstrap_interval(values), bootstrap_interval(10 * values + 3)
        assert other.low == pytest.approx(10 * one.low + 3)
        assert other.high == pytest.approx(10 * one.high + 3)

    def test_one_patient_has_no_interval(self) -> None:
        interval = bootstrap_interval([0.7])
        assert (interval.mean, interval.n) == (0.7, 1)
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)

    def test_bad_values_are_refused(self) -> None:
        for values in ([], [0.5, math.nan], [0.5, math.inf], [[0.5]]):
            with pytest.raises(ValueError, match="one finite number per patient"):
                bootstrap_interval(values)
        with pytest.raises(ValueError, match="level"):
            bootstrap_interval([0.5, 0.6], level=95)


class TestPairedPermutation:
    def test_equals_enumeration(self) -> None:
        difference = np.array([0.3, -0.1, 0.2, 0.0, 0.4])
        sums = [abs(np.dot(signs, difference)) for signs in itertools.product((-1, 1), repeat=5)]
        expected = np.mean([s >= abs(difference.sum()) - 1e-9 for s in sums])
        assert paired_permutation(difference, np.zeros(5)) == expected

    @pytest.mark.parametrize("n", [5, 8, 14])
    def test_all_patients_better_gives_the_smallest_p(self, n: int) -> None:
        b = np.linspace(0.2, 0.6, n)
        assert paired_permutation(b + 0.1, b) == 2 / 2**n

    def test_equals_scipy(self) -> None:
        from scipy.stats import permutation_test

        rng = np.random.default_rng(4)
        a, b = rng.normal(0.4, 1, 10), rng.normal(size=10)
        expected = permutation_test(
            (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=2**10
        ).pvalue
        assert paired_permutation(a, b) == pytest.approx(expected, abs=1e-12)

    def test_sampled_agrees_with_exact(self) -> None:
        # One more patient, whose two values are equal, turns the exact test into the sampled one
        # without changing the true p.
        rng = np.random.default_rng(5)
        a, b = rng.normal(0.5, 1, 14), rng.normal(size=14)
        exact = paired_permutation(a, b)
        sampled = paired_permutation([*a, 1.0], [*b, 1.0], seed=3)
        assert exact != sampled
        assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 9999))

    def test_sampled_p_is_never_zero_and_repeats(self) -> None:
        b = np.linspace(0, 1, 40)
        assert paired_permutation(b + 1, b, num_resamples=99) == 1 / 100
        noisy = b + np.random.default_rng(6).normal(0.05, 0.3, 40)
        assert paired_permutation(noisy, b, seed=1) == paired_permutation(noisy, b, seed=1)

    def test_symmetric_and_one_when_nothing_differs(self) -> None:
        rng = np.random.default_rng(7)
        for n in (9, 20):
            a, b = rng.normal(size=n), rng.normal(size=n)
            assert paired_permutation(a, b) == paired_permutation(b, a)
            assert paired_permutation(a, a) == 1.0

    def test_other_patients_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same patients"):
            paired_permutation([0.1, 0.2], [0.1])


class TestHolm:
    def test_worked_example(self) -> None:
        # By hand: 0.005*4, 0.01*3 -> 0.03, 0.03*2 -> 0.06, 0.04*1 -> raised to 0.06.
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_keeps_order_of_evidence_and_stays_between_p_and_bonferroni(self) -> None:
        p = np.random.default_rng(8).random(30) ** 3
        adjusted = holm(p)
        assert (adjusted >= p).all()
        assert (adjusted <= np.minimum(1, 30 * p)).all()
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
        shuffle = np.random.default_rng(9).permutation(30)
        assert (holm(p[shuffle]) == adjusted[shuffle]).all()

    def test_small_and_bad_lists(self) -> None:
        assert holm([0.2]).tolist() == [0.2]
        assert holm([]).tolist() == []
        for bad in ([1.1], [math.nan], [[0.1]]):
            with pytest.raises(ValueError, match="p-values"):
                holm(bad)

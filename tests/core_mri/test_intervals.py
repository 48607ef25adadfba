"""Tests of core_mri.metrics.intervals."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core_mri.metrics import (
    bootstrap_interval,
    bootstrap_statistic,
    detectable_difference,
    holm,
    paired_permutation,
    smallest_p,
)

GOLD = json.loads((Path(__file__).parents[1] / "references" / "statistics_gold.json").read_text())


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
        # The resampled mean is 0, 1/2 or 1 with chances 1/4, 1/2, 1/4. Expanded, 95 % ends at the
        # quantile Phi(-sqrt(2) * 12.7), 10 % at Phi(-sqrt(2) * 0.158) = 0.41: the center alone.
        wide = bootstrap_interval([0.0, 1.0])
        assert (wide.low, wide.mean, wide.high) == (0.0, 0.5, 1.0)
        narrow = bootstrap_interval([0.0, 1.0], level=0.1)
        assert (narrow.low, narrow.high) == (0.5, 0.5)

    @pytest.mark.parametrize(("name", "least"), [("normal", 0.91), ("beta", 0.91)])
    @pytest.mark.parametrize("n", [8, 30])
    def test_covers_the_true_mean_about_as_often_as_it_says(
        self, name: str, least: float, n: int
    ) -> None:
        # 1000 studies: two standard errors are 0.014. The plain percentile interval covers 0.87
        # at n = 8 (`bootstrap_statistic`).
        rng = np.random.default_rng(2)
        draw = {"normal": lambda: rng.normal(size=n), "beta": lambda: rng.beta(8, 2, n) - 0.8}[name]
        found = [bootstrap_interval(draw(), num_resamples=500, seed=i) for i in range(1000)]
        assert least <= np.mean([i.low <= 0 <= i.high for i in found]) <= 0.98

    @pytest.mark.parametrize("case", GOLD["bootstrap"], ids=lambda case: str(len(case["values"])))
    def test_quantiles_of_scipys_bootstrap(self, case: dict[str, Any]) -> None:
        found = bootstrap_interval(case["values"], num_resamples=100_000)
        assert (found.low, found.high) == pytest.approx((case["low"], case["high"]), abs=1e-3)

    def test_a_statistic_that_resamples_may_not_define(self) -> None:
        def share(weights: np.ndarray) -> np.ndarray:
            return np.where(weights[:, 0] > 0, weights[:, 0] / weights.sum(1), np.nan)

        found = bootstrap_statistic(share, 4)
        assert found.mean == 0.25
        assert found.low > 0
        never = bootstrap_statistic(lambda w: np.full(len(w), np.nan), 4)
        assert math.isnan(never.low)

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


class TestPower:
    @pytest.mark.parametrize("n", [1, 2, 5, 14, 15, 40])
    def test_the_smallest_p_is_that_of_equal_gains(self, n: int) -> None:
        a, b = np.ones(n), np.zeros(n)
        # Random sign patterns of many patients hardly ever repeat the observed one.
        assert smallest_p(n) == pytest.approx(paired_permutation(a, b), abs=2e-3 * (n > 14))

    @pytest.mark.parametrize("case", GOLD["power"], ids=lambda case: str(len(case["differences"])))
    def test_equals_statsmodels(self, case: dict[str, Any]) -> None:
        found = detectable_difference(case["differences"])
        assert found == pytest.approx(case["detectable"], rel=1e-5)

    def test_is_found_four_times_in_five(self) -> None:
        rng = np.random.default_rng(10)
        n, spread = 10, 0.1
        sample = rng.normal(size=n)
        sample = spread * (sample - sample.mean()) / sample.std(ddof=1)
        gain = detectable_difference(sample)
        studies = rng.normal(gain, spread, (400, n))
        found = np.mean([paired_permutation(row, np.zeros(n)) < 0.05 for row in studies])
        assert 0.74 <= found <= 0.86

    def test_edges(self) -> None:
        assert math.isnan(detectable_difference([0.3]))
        assert detectable_difference([0.1, 0.1, 0.1]) == pytest.approx(0, abs=1e-12)


class TestHolm:
    @pytest.mark.parametrize("case", GOLD["holm"], ids=lambda case: str(len(case["p"])))
    def test_equals_statsmodels(self, case: dict[str, Any]) -> None:
        assert holm(case["p"]) == pytest.approx(case["adjusted"], abs=1e-12)

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

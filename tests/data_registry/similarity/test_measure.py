"""Intervals, nulls and refusals of distances between samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from core_mri.errors import DataError
from core_mri.moments import Moments
from data_registry.similarity.measure import DISTANCES, measure

BY_NAME = {kind.name: kind for kind in DISTANCES}
LEARNED = [kind for kind in DISTANCES if not kind.label and not kind.formulas]


def one(x, y, name, moments=None):
    (found,) = measure(x, y, "made up", [BY_NAME[name]], moments=moments)
    return found


class TestPlantedShift:
    """200 slices of 20 patients, shifted by a fifth of the deviation in every feature, or not."""

    @pytest.fixture
    def rows(self):
        rng = np.random.default_rng(7)
        return rng.normal(size=(200, 32)), rng.normal(size=(2000, 32)), rng.normal(size=(4000, 32))

    @pytest.mark.parametrize(
        "name", ["KID", "FD at 200 slices", "domain AUROC", "proxy A-distance"]
    )
    def test_found(self, sample, rows, name):
        x, y, more = rows
        found = one(sample(x + 0.2, 10), sample(y, 10), name, Moments.of(more))
        assert found.told_apart

    @pytest.mark.parametrize("kind", LEARNED, ids=lambda kind: kind.name)
    def test_nothing_found_without(self, sample, rows, kind):
        x, y, more = rows
        found = one(sample(x, 10), sample(y, 10), kind.name, Moments.of(more))
        assert not found.told_apart
        assert found.low <= found.value <= found.high

    def test_interval_of_the_kernel_distance_covers(self, sample):
        """Of 60 draws of one distribution most intervals hold 0."""
        rng = np.random.default_rng(0)
        hits = 0
        for _ in range(60):
            x, y = (
                np.repeat(rng.normal(size=(15, 8)), 4, 0) + 0.5 * rng.normal(size=(60, 8))
                for _ in range(2)
            )
            found = one(sample(x, 4), sample(y, 4), "KID")
            hits += found.low <= 0 <= found.high
        assert hits >= 53


class TestRefusals:
    def test_one_patient(self, sample):
        rng = np.random.default_rng(0)
        found = one(sample(rng.normal(size=(40, 4)), 40), sample(rng.normal(size=(90, 4))), "KID")
        assert found.value is None
        assert "the task has 40 slices of 1 patient" in found.refused

    def test_too_few_slices_for_a_distance_of_fixed_n(self, sample):
        rng = np.random.default_rng(0)
        x, y = sample(rng.normal(size=(150, 4))), sample(rng.normal(size=(300, 4)))
        assert "150 slices" in one(x, y, "FD at 200 slices", Moments.of(y.rows)).refused
        assert one(x, y, "KID").value is not None

    def test_constant_features(self, sample):
        found = one(sample(np.ones((50, 4))), sample(np.ones((50, 4))), "KID")
        assert "constant" in found.refused

    def test_some_constant_features_change_nothing(self, sample):
        rng = np.random.default_rng(0)
        x, y = (np.pad(rng.normal(size=(n, 6)), ((0, 0), (0, 3))) for n in (250, 500))
        for name in ("FRD", "FD at 200 slices", "domain AUROC", "sliced Wasserstein"):
            assert np.isfinite(one(sample(x), sample(y), name, Moments.of(y)).value)

    def test_features_of_two_encoders(self, sample):
        x = sample(np.ones((30, 4)))
        with pytest.raises(DataError, match="DATA-36"):
            measure(x, dataclasses.replace(x, features="other"), "", DISTANCES)

    def test_features_that_are_not_finite(self, sample):
        rows = np.ones((30, 4))
        rows[3, 2] = np.nan
        with pytest.raises(DataError, match=r"DATA-37: .* 1 of 30"):
            measure(sample(rows), sample(np.ones((30, 4))), "", DISTANCES)


class TestMetadata:
    def test_unknown_labels_are_left_out(self, sample):
        rows = np.zeros((40, 1))
        x = sample(rows, region=np.array(["brain", "unknown"] * 20))
        y = sample(rows, region=np.array(["brain", "knee"] * 20))
        found = one(x, y, "JS region")
        assert found.slices == 20
        assert found.value == pytest.approx(0.311, abs=1e-3)  # H(3/4, 1/4) - H(1/2, 1/2) / 2

    def test_nothing_known(self, sample):
        x = sample(np.zeros((40, 1)), vendor=np.full(40, "unknown"))
        assert "whose vendor is known" in one(x, x, "JS vendor").refused

"""Formulas of gray levels against scikit-image and scipy, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from data_registry.similarity import radiomics as r


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return np.cumsum(rng.normal(size=(60, 48)), axis=0).astype(np.float32)


def named(image, spacing=(2.0, 2.0)):
    return dict(zip(r.NAMES, r.radiomic_features(image, spacing).tolist(), strict=True))


class TestReferences:
    def test_co_occurrence_is_that_of_scikit_image(self):
        """Where both define a quantity: of the mean matrix of four directions, levels from 1."""
        from skimage.feature import graycomatrix, graycoprops

        levels = np.random.default_rng(0).integers(0, r.LEVELS, (40, 30), dtype=np.uint8)
        angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
        p = graycomatrix(levels, [1], angles, r.LEVELS, symmetric=True, normed=True)
        p = p.mean((2, 3), keepdims=True)
        found = dict(zip(r.CO_OCCURRENCE, r._co_occurrence(levels), strict=True))
        for ours, theirs in (
            ("contrast", "contrast"),
            ("correlation", "correlation"),
            ("joint energy", "ASM"),
            ("inverse difference moment", "homogeneity"),
            ("difference average", "dissimilarity"),
            ("sum of squares", "variance"),
        ):
            assert found[ours] == pytest.approx(graycoprops(p, theirs)[0, 0]), ours
        assert found["joint average"] == pytest.approx(graycoprops(p, "mean")[0, 0] + 1)
        expected = stats.entropy(p.ravel(), base=2)
        assert found["joint entropy"] == pytest.approx(expected)

    def test_first_order_is_that_of_scipy(self, image):
        x = image.astype(np.float64)
        found = dict(zip(r.FIRST_ORDER, r._first_order(x, r._levels(x)), strict=True))
        assert found["skewness"] == pytest.approx(stats.skew(x.ravel()))
        assert found["kurtosis"] == pytest.approx(stats.kurtosis(x.ravel(), fisher=False))
        assert found["interquartile range"] == pytest.approx(stats.iqr(x))
        counts = np.bincount(r._levels(x).ravel(), minlength=r.LEVELS)
        assert found["entropy"] == pytest.approx(stats.entropy(counts, base=2))


class TestInvariance:
    def test_gain_and_offset_change_nothing(self, image):
        one, other = named(image), named(7 * image + 3)
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-2), name

    def test_voxel_size_is_taken_into_account(self, image):
        fine = np.kron(image, np.ones((2, 2), np.float32))
        one, other = named(image), named(fine, (1.0, 1.0))
        assert other["slice: entropy"] == pytest.approx(one["slice: entropy"], rel=0.05)

    @pytest.mark.parametrize("shape", [(1, 1), (3, 200), (700, 700), (17, 31)])
    def test_any_size_gives_finite_features(self, shape):
        image = np.random.default_rng(0).random(shape).astype(np.float32)
        found = r.radiomic_features(image, (1.0, 3.0))
        assert found.shape == (351,)
        assert np.isfinite(found).all()

    def test_constant_slices_give_finite_features(self):
        assert np.isfinite(r.radiomic_features(np.ones((20, 20)), (1.0, 1.0))).all()

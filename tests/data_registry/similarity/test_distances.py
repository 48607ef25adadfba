"""Each quantity against its reference, and what must hold whatever the features."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core_mri.moments import Moments
from data_registry.similarity import distances as d
from data_registry.similarity.distances import Pair, Side

REFERENCES = Path(__file__).parents[2] / "references"


@pytest.fixture(scope="module")
def gold() -> dict[str, Any]:
    """What `tests/references/make_similarity_gold.py` wrote."""
    return json.loads((REFERENCES / "similarity_gold.json").read_text())


def rows_of_gold() -> tuple[np.ndarray, np.ndarray]:
    """The rows that went into the references."""
    path = REFERENCES / "make_similarity_gold.py"
    spec = importlib.util.spec_from_file_location("maker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.samples()


def side(rows, per_patient=1, labels=()):
    patients = np.arange(len(rows)) // per_patient
    return Side(rows, rows, patients, np.array(labels, str))


def value(prepare, pair: Pair) -> float:
    return prepare(pair)(*(np.ones(s.num_patients) for s in (pair.task, pair.pretraining)))


@pytest.fixture(scope="module")
def pair() -> Pair:
    x, y = rows_of_gold()
    return Pair(side(x), side(y))


class TestReferences:
    def test_kid_is_that_of_torch_fidelity(self, pair, gold):
        assert value(d.kernel_distance, pair) == pytest.approx(gold["kid"], rel=1e-9)

    def test_kid_is_made_of_the_kernel_of_scikit_learn(self, pair):
        from sklearn.metrics.pairwise import polynomial_kernel

        x, y = rows_of_gold()
        k = {n: polynomial_kernel(a, b) for n, a, b in (("xx", x, x), ("yy", y, y), ("xy", x, y))}
        n = len(x)
        within = sum((k[s].sum() - np.trace(k[s])) / (n * (n - 1)) for s in ("xx", "yy"))
        expected = within - 2 * k["xy"].mean()
        assert value(d.kernel_distance, pair) == pytest.approx(expected, rel=1e-9)

    def test_frechet_is_that_of_torch_fidelity(self, gold):
        factors = [d._factor(rows, np.ones(len(rows))) for rows in rows_of_gold()]
        assert d.frechet(*factors) == pytest.approx(gold["fid"], rel=1e-6)

    def test_frechet_is_the_same_by_either_way(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(30, 40)), rng.normal(0.2, 1.5, size=(30, 40))
        short = [d._factor(rows, np.ones(30)) for rows in (x, y)]
        # Rows of zeros change no covariance, but let the other way be taken.
        long = [np.vstack([factor, np.zeros((20, 40))]) for factor in short]
        assert d.frechet(*short) == pytest.approx(d.frechet(*long), rel=1e-7)

    def test_coverage_and_density_are_those_of_prdc(self, pair, gold):
        assert value(d.coverage, pair) == pytest.approx(gold["coverage"], abs=1e-12)
        assert value(d.density, pair) == pytest.approx(gold["density"], abs=1e-12)

    def test_sliced_wasserstein_is_that_of_pot(self, pair, gold):
        found = value(d.sliced_wasserstein, pair)
        assert found == pytest.approx(gold["sliced_wasserstein"], rel=1e-9)

    def test_divergence_is_that_of_scipy(self):
        from scipy.spatial.distance import jensenshannon

        p, q = np.array([3.0, 1.0, 0.0]), np.array([1.0, 2.0, 5.0])
        assert d.jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)

    def test_area_is_that_of_scikit_learn(self, pair):
        from sklearn.metrics import roc_auc_score

        scores, is_task, _ = d._domain_scores(pair)
        assert value(d.domain_auroc, pair) == pytest.approx(roc_auc_score(is_task, scores))


class TestKernelDistance:
    @pytest.mark.parametrize("n", [20, 60, 200])
    def test_unbiased_at_every_n(self, n):
        """The mean over many draws of one distribution is 0 within 4 standard errors."""
        rng = np.random.default_rng(n)
        found = [
            value(
                d.kernel_distance,
                Pair(side(rng.normal(size=(n, 8))), side(rng.normal(size=(n, 8)))),
            )
            for _ in range(200)
        ]
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))

    def test_unbiased_for_patients_with_many_slices(self):
        """Slices of a patient are alike; taken for independent they would look like a distance."""
        rng = np.random.default_rng(3)

        def draw():
            rows = np.repeat(rng.normal(size=(8, 6)), 12, axis=0)
            return rows + 0.1 * rng.normal(size=rows.shape)

        pairs = [(draw(), draw()) for _ in range(200)]
        by_patient, by_slice = (
            np.array([value(d.kernel_distance, Pair(side(x, n), side(y, n))) for x, y in pairs])
            for n in (12, 1)
        )
        assert abs(by_patient.mean()) < 4 * by_patient.std() / np.sqrt(len(pairs))
        assert by_slice.mean() > 10 * by_slice.std() / np.sqrt(len(pairs))


class TestWeights:
    """Counts of patients mean as many copies of their slices."""

    @pytest.mark.parametrize(
        "prepare", [d.coverage, d.density, d.sliced_wasserstein, d.domain_auroc, d.proxy_a]
    )
    def test_ones_are_no_weights(self, prepare, pair):
        weighted = prepare(pair)
        n = pair.task.num_patients
        assert weighted(np.ones(n), np.ones(n)) == pytest.approx(
            weighted(np.full(n, 3.0), np.full(n, 2.0)), abs=0.02
        )

    def test_a_factor_is_that_of_copied_rows(self):
        rng = np.random.default_rng(0)
        rows, counts = rng.normal(size=(10, 4)), np.array([0, 1, 2, 3, 0, 1, 1, 2, 0, 1])
        copied = np.repeat(rows, counts, axis=0)
        found = d._factor(rows, counts.astype(float))
        assert np.allclose(found[0], copied.mean(0))
        assert np.allclose(found[1:].T @ found[1:], np.cov(copied.T))

    def test_order_of_slices_does_not_matter(self, pair):
        order = np.random.default_rng(0).permutation(60)
        x = pair.task
        turned = Side(x.rows[order], x.low[order], x.patients[order], x.labels)
        for prepare in (d.kernel_distance, d.coverage, d.density, d.sliced_wasserstein):
            assert value(prepare, Pair(turned, pair.pretraining)) == pytest.approx(
                value(prepare, pair)
            )


class TestExtrapolation:
    def test_takes_the_bias_off(self):
        rng = np.random.default_rng(5)
        found, raw = [], []
        for _ in range(20):
            x, y = (side(rng.normal(size=(240, 16))) for _ in range(2))
            found.append(value(d.frechet_extrapolated, Pair(x, y)))
            raw.append(d.frechet(*(d._factor(s.low, np.ones(240)) for s in (x, y))))
        assert np.mean(raw) > 0.1
        assert abs(np.mean(found)) < 0.3 * np.mean(raw)


def test_axes_are_those_of_the_covariance():
    rows = np.random.default_rng(0).normal(size=(500, 5)) * [5, 1, 1, 3, 1]
    axes = d.principal_axes(Moments.of(rows))
    assert abs(axes[0, 0]) > 0.99
    assert abs(axes[3, 1]) > 0.99

"""What to add: the closed form of a mixture, and the greedy order."""

from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from core_mri.errors import DataError
from core_mri.moments import Moments
from data_registry.similarity.advice import Candidate, greedy, kernel_mixture, label_mixture
from data_registry.similarity.candidates import series_to_add
from data_registry.similarity.compare import Features


def candidate(name, slices):
    return Candidate(name=name, licence="CC0-1.0", slices=slices, patients=slices)


class TestMixture:
    def test_is_the_distance_of_the_rows_put_together(self, sample):
        """Unbiased over large samples: the form agrees with KID of the concatenated rows."""
        rng = np.random.default_rng(0)
        task, first, second = (rng.normal(m, 1, (400, 6)) for m in (1, 0, 1))
        distance = kernel_mixture(sample(task), [sample(first), sample(second)])
        together = np.concatenate([first, second])

        def mean(x, y):
            kernel = (x @ y.T / 6 + 1) ** 3
            return kernel.mean()

        expected = mean(together, together) - 2 * mean(together, task) + mean(task, task)
        assert distance(np.array([400.0, 400.0])) == pytest.approx(expected, abs=0.15)
        assert distance(np.array([1.0, 0.0])) > distance(np.array([1.0, 1.0]))

    def test_labels(self):
        task = {"region": {"knee": 10.0}}
        parts = [{"region": {"brain": 5.0}}, {"region": {"knee": 2.0}}]
        distance = label_mixture(task, parts)
        assert distance(np.array([10.0, 0.0])) == pytest.approx(1)
        assert distance(np.array([0.0, 3.0])) == pytest.approx(0)


class TestGreedy:
    def test_the_most_for_a_slice_comes_first_and_useless_ones_never(self, sample):
        rng = np.random.default_rng(0)
        task = sample(rng.normal(2, 1, (300, 6)))
        there, near, half, far = (sample(rng.normal(m, 1, (300, 6))) for m in (0, 2, 1, -2))
        distance = kernel_mixture(task, [there, near, half, far])
        candidates = [candidate("near", 1000), candidate("half", 1000), candidate("far", 1000)]
        steps = greedy(5000, candidates, distance, "KID")
        names = [step.candidate.name for step in steps]
        assert names[0] == "near"
        assert "far" not in names
        assert all(step.after < step.before for step in steps)
        assert [s.before for s in steps[1:]] == [s.after for s in steps[:-1]]


class TestPlan:
    def test_groups_of_series(self, sample, tmp_path):
        rows = [
            {"collection": c, "licence": "CC-BY-4.0", "patient_id": f"{c}{i}", "num_slices": 20,
             "region": region, "sequence": "T1", "vendor": "GE", "plane": "axial"}
            for c, region in (("heads", "brain"), ("legs", "knee")) for i in range(3)
        ]  # fmt: skip
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "series.parquet")
        labels = {name: np.full(40, "GE") for name in ("vendor",)}
        x = np.random.default_rng(0).normal(size=(40, 4))
        task = sample(x, region=np.full(40, "knee"), sequence=np.full(40, "T1"), **labels)
        there = sample(x, region=np.full(40, "brain"), sequence=np.full(40, "T1"), **labels)
        features = Features(name="", task=task, pretraining=there, moments=Moments.of(x))
        steps = series_to_add(tmp_path, features)
        assert steps[0].candidate.name == "legs: knee, T1"
        assert (steps[0].candidate.slices, steps[0].candidate.patients) == (60, 3)

    def test_no_plan(self, sample, tmp_path):
        x = sample(np.zeros((4, 2)))
        features = Features(name="", task=x, pretraining=x, moments=Moments.of(x.rows))
        with pytest.raises(DataError, match="DATA-34"):
            series_to_add(tmp_path, features)

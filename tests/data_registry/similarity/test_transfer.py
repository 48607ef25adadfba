"""Gains against distances: what is told, and what is not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats

from core_mri.errors import DataError
from data_registry.similarity import transfer as t


def cells(tasks=6, weights=4, slope=-1.0, noise=0.1, patients=10, seed=0):
    """Made-up cells whose gain falls with the distance."""
    rng = np.random.default_rng(seed)
    found = []
    for task in range(tasks):
        for model in range(weights):
            distance = float(rng.random() + task)
            gain = t.Gain(
                task=f"task {task}", weights=f"weights {model}", method="frozen", k=5,
                metric="dice", gain=float(slope * distance + noise * rng.normal()), low=None,
                high=None, patients=patients,
            )  # fmt: skip
            found.append(t.Cell(gain=gain, distance=distance))
    return found


class TestCorrelation:
    def test_planted_one_is_found(self):
        found = t.correlate("KID", cells())
        assert found.spearman < -0.9
        assert found.low < found.spearman < found.high < -0.5
        assert found.p < 0.02
        assert found.error < found.baseline_error / 3
        assert (found.cells, found.tasks, found.weights, found.effective_n) == (24, 6, 4, 4)

    def test_none_is_found_where_none_is(self, monkeypatch):
        """Gains of independent noise: p is below 0.1 in about a tenth of studies."""
        monkeypatch.setattr(t, "NUM_PERMUTATIONS", 199)
        monkeypatch.setattr(t, "NUM_RESAMPLES", 2)
        studies = [
            t.correlate("KID", cells(tasks=8, weights=2, slope=0, noise=1, seed=seed))
            for seed in range(40)
        ]
        assert sum(found.p < 0.1 for found in studies) <= 9

    def test_is_that_of_scipy(self):
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
        assert t.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
        assert t.kendall(x, y) == pytest.approx(scipy.stats.kendalltau(x, y).statistic)

    def test_partial_is_the_textbook_formula(self):
        rng = np.random.default_rng(0)
        x, z = rng.normal(size=(2, 50))
        y = x + z
        rxy, rxz, ryz = (t.spearman(a, b) for a, b in ((x, y), (x, z), (y, z)))
        expected = (rxy - rxz * ryz) / np.sqrt((1 - rxz**2) * (1 - ryz**2))
        assert t.partial_spearman(x, y, z[:, None]) == pytest.approx(expected)

    def test_nothing_is_claimed_from_few_cells(self):
        found = t.correlate("KID", cells(tasks=3, weights=3))
        assert found.spearman is None
        assert "9 cells" in found.refused

    def test_cells_of_few_patients_are_not_fitted(self):
        few = cells(seed=1, patients=4)
        found = t.correlate("KID", [*cells(), *few])
        assert found.cells == 24
        assert found.shown == 24
        assert found.spearman == t.correlate("KID", cells()).spearman

    def test_two_tasks_predict_each_other(self):
        found = t.correlate("KID", cells(tasks=2, weights=12))
        assert found.error < found.baseline_error / 3

    def test_one_task_alone(self):
        found = t.correlate("KID", cells(tasks=1, weights=12))
        assert found.error is None
        assert found.effective_n == 12

    def test_equal_distances(self):
        same = [t.Cell(gain=cell.gain, distance=1.0) for cell in cells()]
        assert "equal" in t.correlate("KID", same).refused


class TestResults:
    def write(self, path, minus="random"):
        content = {
            "cells": [
                {"task": "a", "weights": "random", "k": 5, "twin": True},
                {"task": "a", "weights": "ours", "k": 5, "twin": False},
            ],
            "comparisons": [
                {"task": "a", "weights": "ours", "minus": minus, "method": "frozen", "k": 5,
                 "metric": "dice", "difference": 0.1, "n": 7, "ci_low": 0.0, "ci_high": 0.2},
                {"task": "a", "weights": "ours", "minus": "u-net", "method": "frozen", "k": 5,
                 "metric": "dice", "difference": 0.5, "n": 7, "ci_low": 0.0, "ci_high": 0.2},
            ],
        }  # fmt: skip
        path.write_text(json.dumps(content))
        return path

    def test_gains_are_those_over_twins(self, tmp_path):
        (gain,) = t.read_gains(self.write(tmp_path / "results.json"))
        assert (gain.task, gain.weights, gain.gain, gain.patients) == ("a", "ours", 0.1, 7)

    def test_no_twin(self, tmp_path):
        with pytest.raises(DataError, match="DATA-39"):
            t.read_gains(self.write(tmp_path / "results.json", minus="u-net"))

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cells": 1}'])
    def test_other_files(self, tmp_path, text):
        path = tmp_path / "results.json"
        path.write_text(text)
        with pytest.raises(DataError, match="DATA-39") as raised:
            t.read_gains(path)
        assert str(path) in str(raised.value)

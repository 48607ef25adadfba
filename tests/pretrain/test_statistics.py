"""A run keeps what its weights saw beside them."""

from __future__ import annotations

import numpy as np
import pytest

import core_mri
import pretrain
import pretrain.train
from core_mri.training_statistics import STATISTICS, load_statistics
from core_mri.weights.folder import read_config
from tests.pretrain.conftest import MemorySlices


@pytest.fixture
def slices(monkeypatch):
    """Eight training patients, and as many patients for validation as are asked for."""

    def use(num_validation):
        train = MemorySlices()
        others = MemorySlices(("brain",), range(50, 50 + num_validation), num_slices=3)
        monkeypatch.setattr(pretrain.train, "open_slices", lambda _: train)
        monkeypatch.setattr(
            pretrain.train, "open_validation", lambda _: others if num_validation else None
        )
        monkeypatch.setattr(pretrain.train, "check_overlap", lambda *_: "not checked")
        return train

    return use


def run(tiny, **changes):
    return pretrain.train.train(tiny(steps=2, **changes))


class TestStatistics:
    def test_of_training_slices(self, slices, tiny):
        train = slices(0)
        weights = run(tiny, statistics_slices=20)
        found = load_statistics(weights, read_config(weights)["sha256"])
        assert found.moments.n == 20
        assert len(found.slices) == 20
        assert found.population == {"slices": len(train), "volumes": 8, "patients": 8}
        assert "8 training patients" in found.calibrated_on
        assert found.false_alarm_rate == pytest.approx(1 / 9)
        assert "What it saw" in (weights / "README.md").read_text()
        model = core_mri.load_model(weights, device="cpu")
        assert np.isfinite(model.statistics.judge(found.slices.rows[:3]).score)

    def test_threshold_from_patients_held_out(self, slices, tiny):
        slices(19)
        weights = run(tiny, statistics_slices=20)
        found = load_statistics(weights, read_config(weights)["sha256"])
        assert "19 patients held out of training" in found.calibrated_on
        assert found.false_alarm_rate == 0.05

    def test_none_when_not_asked_for(self, slices, tiny):
        slices(0)
        assert not (run(tiny, statistics_slices=0) / STATISTICS).exists()

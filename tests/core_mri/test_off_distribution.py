"""The warning of unlike scans: its promise of false alarms, and what goes with the weights."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

import core_mri
from core_mri.errors import DataError
from core_mri.feature_sample import LABELS, FeatureSample
from core_mri.moments import Moments
from core_mri.off_distribution import (
    JUDGED_SLICES,
    Familiarity,
    calibrate,
    evenly,
    judged_slices,
)
from core_mri.physics.phantoms import phantom_volume
from core_mri.training_statistics import (
    STATISTICS,
    TrainingStatistics,
    load_statistics,
    save_statistics,
)
from core_mri.weights.folder import read_config


class TestCalibration:
    def test_rate_of_new_patients(self):
        """Volumes of a patient are alike; the rate holds for volumes of new patients."""
        rng = np.random.default_rng(0)

        def volumes(patients):
            levels = rng.normal(size=patients)
            own = np.repeat(np.arange(patients), rng.integers(1, 12, patients))
            return np.exp(levels[own] + 0.2 * rng.normal(size=len(own))), own

        above = []
        for _ in range(300):
            threshold, rate = calibrate(*volumes(40))
            assert rate == 0.05
            scores, own = volumes(40)
            above.append(np.mean([(scores[own == p] > threshold).mean() for p in range(40)]))
        assert np.mean(above) < 0.05 + 3 * np.std(above) / np.sqrt(len(above))
        assert np.mean(above) > 0.02  # and not because nothing is ever above it

    def test_few_patients_promise_less(self):
        threshold, rate = calibrate(np.array([1.0, 3.0, 2.0]), np.array([0, 1, 2]))
        assert rate == pytest.approx(0.25)
        assert threshold == 3.0

    def test_each_patient_counts_once(self):
        scores = np.array([*np.linspace(0, 1, 39), 9.0])
        alone = calibrate(scores, np.arange(40))[0]
        many = calibrate(
            np.concatenate([scores, np.full(500, 9.0)]), np.concatenate([np.arange(40), [39] * 500])
        )[0]
        assert alone == many == 1.0


class TestScore:
    def test_is_about_one_for_the_same_distribution(self):
        rng = np.random.default_rng(0)
        mix = rng.normal(size=(16, 16))
        rows = rng.normal(size=(4000, 16)) @ mix
        familiarity = Familiarity(Moments.of(rows))
        like = familiarity.score(rng.normal(size=(50, 16)) @ mix)
        assert 0.7 < like < 1.3
        assert familiarity.score((rng.normal(size=(50, 16)) + 1) @ mix) > 1.5 * like

    def test_constant_features_are_no_reason_to_fail(self):
        familiarity = Familiarity(Moments.of(np.ones((30, 4))))
        assert familiarity.score(np.ones((3, 4))) == 0
        assert familiarity.score(np.zeros((3, 4))) > 1e3


class TestJudgedSlices:
    def test_air_is_left_out(self):
        slices = np.zeros((6, 8, 8), np.float32)
        slices[[1, 4], :4] = 1
        assert judged_slices(slices).tolist() == [1, 4]
        assert judged_slices(np.zeros((3, 8, 8), np.float32)).tolist() == [0, 1, 2]

    def test_evenly_spread(self):
        found = evenly(np.arange(10, 500))
        assert len(found) == JUDGED_SLICES
        assert found[0] == 10
        assert found[-1] == 499


@pytest.fixture(scope="module")
def brains():
    """24 synthetic brains of other people."""
    return [phantom_volume("brain", i, size=48, num_slices=6)[0] for i in range(24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, brains):
    """Random weights whose statistics are those of the first 16 brains."""
    path = tmp_path_factory.mktemp("weights")
    encoder = core_mri.create_model("vit_micro_patch8")
    core_mri.save_model(encoder, path)
    predictor = core_mri.Predictor(encoder)
    vectors = [predictor.embed(scan, patches=False).cls for scan in brains[:16]]
    rows = np.concatenate(vectors)
    moments = [Moments.of(own) for own in vectors]
    whole = sum(moments[1:], moments[0])
    held_out = [
        Familiarity(whole - own).score(one) for own, one in zip(moments, vectors, strict=True)
    ]
    threshold, rate = calibrate(np.array(held_out), np.arange(16))
    sample = FeatureSample(
        features="digest",
        rows=rows,
        numbers=np.arange(len(rows), dtype=np.uint64) << np.uint64(57),
        patients=np.repeat(np.arange(16), [len(own) for own in vectors]),
        labels={name: np.full(len(rows), name) for name in LABELS},
        population=len(rows),
    )
    statistics = TrainingStatistics(
        weights=read_config(path)["sha256"],
        image_size=predictor.image_size,
        moments=whole,
        slices=sample,
        formulas=None,
        population={"slices": len(rows), "volumes": 16, "patients": 16},
        threshold=threshold,
        false_alarm_rate=rate,
        calibrated_on="a test",
    )
    save_statistics(statistics, path)
    return path


class TestFile:
    def test_comes_back_as_it_went(self, folder):
        weights = read_config(folder)["sha256"]
        found = load_statistics(folder, weights)
        save_statistics(found, folder)
        again = load_statistics(folder, weights)
        for one in (found, again):
            assert one.slices.labels["region"].tolist() == ["region"] * len(one.slices)
        assert np.array_equal(found.moments.outer, again.moments.outer)
        assert np.array_equal(found.slices.rows, again.slices.rows)
        assert np.array_equal(found.slices.numbers, again.slices.numbers)
        assert found.threshold == again.threshold

    def test_of_other_weights(self, folder):
        with pytest.raises(DataError, match=r"DATA-38: .*other weights"):
            load_statistics(folder, "0" * 64)

    def test_none(self, tmp_path):
        with pytest.raises(DataError, match=r"DATA-38: .*holds no statistics"):
            load_statistics(tmp_path, "")

    @pytest.mark.parametrize("keep", [0, 40, 3000])
    def test_cut_off(self, folder, tmp_path, keep):
        content = (folder / STATISTICS).read_bytes()
        (tmp_path / STATISTICS).write_bytes(content[:keep])
        with pytest.raises(DataError, match=r"DATA-38: .*damaged"):
            load_statistics(tmp_path, read_config(folder)["sha256"])

    def test_gone_when_other_weights_are_saved_there(self, tmp_path, folder):
        (tmp_path / STATISTICS).write_bytes((folder / STATISTICS).read_bytes())
        core_mri.save_model(core_mri.create_model("vit_micro_patch8"), tmp_path)
        assert not (tmp_path / STATISTICS).exists()


class TestPredictor:
    @pytest.fixture(scope="class")
    def predictor(self, folder):
        return core_mri.Predictor(core_mri.load_model(folder, device="cpu"))

    def test_held_out_scans_of_the_same_kind_are_like(self, predictor, brains):
        """8 new people at a rate of 1 in 17: three alarms would be a chance of 1 %."""
        judged = [predictor.judge(scan) for scan in brains[16:]]
        assert sum(one.unlike for one in judged) <= 2

    def test_other_anatomy_and_noise_are_unlike(self, predictor):
        knee = phantom_volume("knee", 3, size=48, num_slices=6)[0]
        noise = np.random.default_rng(0).random(knee.array.shape).astype(np.float32)
        assert predictor.judge(knee.with_array(noise)).unlike
        assert predictor.judge(knee).score > predictor.judge(knee).threshold

    def test_embedding_warns_and_says_the_same(self, predictor, brains, caplog):
        knee = phantom_volume("knee", 3, size=48, num_slices=6)[0]
        with caplog.at_level(logging.WARNING):
            predictor.embed(knee)
        assert str(predictor.judge(knee)) in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            predictor.embed(brains[2])
        assert not caplog.text

    def test_silent_at_another_size(self, folder, brains):
        model = core_mri.load_model(folder, device="cpu")
        assert core_mri.Predictor(model, image_size=32).judge(brains[0]) is None

    def test_silent_without_statistics(self, brains):
        model = core_mri.create_model("vit_micro_patch8")
        assert core_mri.Predictor(model).judge(brains[0]) is None

    def test_statistics_are_frozen(self, folder):
        found = load_statistics(folder, read_config(folder)["sha256"])
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.threshold = 0

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from core_mri.config import to_mapping
from core_mri.errors import RunError
from core_mri.models import create_model
from core_mri.runs import Run
from data_registry.slices import StoredSlice
from pretrain.data import Sample
from pretrain.health import head_statistics, mean_cosine
from pretrain.health.alarms import Alarms
from pretrain.health.anchor import Anchor
from pretrain.health.network import duplicate_rate, gradient_norms
from pretrain.health.patches import PatchWatch
from pretrain.health.spectrum import FeatureQueue, spectrum
from pretrain.health_config import HealthConfig
from pretrain.overlap import OVERLAP_FILE
from pretrain.prototypes import TargetSums
from pretrain.train import Trainer, train
from tests.pretrain.conftest import in_memory_worker
from tests.workers import run_workers

K = 16


def statistics(probs):
    entropy = -torch.special.xlogy(probs, probs).sum()
    return {k: v.item() for k, v in head_statistics(TargetSums.of(probs), entropy).items()}


class TestStatistics:
    def test_one_prototype_for_all_has_no_information(self):
        probs = torch.zeros(32, K)
        probs[:, 3] = 1
        found = statistics(probs)
        assert found["information"] == pytest.approx(0, abs=1e-6)
        assert found["entropy"] == pytest.approx(0, abs=1e-6)
        assert found["used"] == 1

    def test_uniform_targets_have_no_information(self):
        found = statistics(torch.full((32, K), 1 / K))
        assert found["information"] == pytest.approx(0, abs=1e-5)
        assert found["entropy"] == pytest.approx(math.log(K), abs=1e-5)

    def test_a_prototype_for_each_row_has_all_information(self):
        found = statistics(torch.eye(K))
        assert found["information"] == pytest.approx(math.log(K), abs=1e-5)
        assert found["used"] == K
        assert found["rows"] == K

    def test_divergence_is_zero_for_a_perfect_student_and_exact_for_another(self):
        probs = torch.softmax(torch.randn(32, K), -1)
        weights = torch.rand(32)
        assert statistics(probs)["kl"] == pytest.approx(0, abs=1e-6)
        student = torch.softmax(torch.randn(32, K), -1)
        cross_entropy = (-(probs * student.log()).sum(-1) * weights).sum()
        expected = ((probs * (probs / student).log()).sum(-1) * weights).sum() / weights.sum()
        found = head_statistics(TargetSums.of(probs), cross_entropy, weights)["kl"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_no_rows_are_finite(self):
        found = head_statistics(TargetSums.of(torch.zeros(0, K)), torch.tensor(0.0), torch.zeros(0))
        assert all(math.isfinite(value.item()) for value in found.values())

    def test_mean_cosine(self):
        x = torch.randn(20, 8)
        unit = torch.nn.functional.normalize(x, dim=1)
        cosine = unit @ unit.mT
        expected = (cosine.sum() - cosine.trace()) / (20 * 19)
        torch.testing.assert_close(mean_cosine(x), expected)
        assert mean_cosine(x[:1].expand(5, 8)).item() == pytest.approx(1, abs=1e-5)


class TestSpectrum:
    def test_rank_is_that_of_the_singular_values(self):
        x = torch.randn(64, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
        singular = torch.linalg.svdvals(x - x.mean(0))
        share = singular / singular.sum()
        expected = (-(share * share.log()).sum()).exp()
        assert spectrum(x)["rank"].item() == pytest.approx(expected.item(), rel=1e-3)

    def test_common_mean_does_not_count(self):
        x = torch.randn(64, 8)
        torch.testing.assert_close(
            spectrum(x)["rank"], spectrum(x + 100)["rank"], rtol=1e-2, atol=0
        )

    def test_one_direction_and_no_direction_have_rank_one(self):
        line = torch.randn(64, 1) @ torch.randn(1, 8)
        assert spectrum(line)["rank"].item() == pytest.approx(1, abs=0.05)
        assert spectrum(torch.ones(64, 8))["rank"].item() == pytest.approx(1, abs=1e-3)

    def test_alpha_is_the_exponent_of_a_power_law(self):
        place = torch.arange(1, 101, dtype=torch.float64)
        basis, _ = torch.linalg.qr(torch.randn(400, 100, dtype=torch.float64))
        basis, _ = torch.linalg.qr(basis - basis.mean(0))
        assert spectrum(basis * place ** (-0.6))["alpha"].item() == pytest.approx(1.2, abs=0.05)

    def test_queue_keeps_the_newest_rows(self):
        queue = FeatureQueue(5)
        rows = torch.arange(14.0).reshape(7, 2)
        queue.push(rows[:3])
        assert torch.equal(queue.features(), rows[:3])
        queue.push(rows[3:7])
        assert {tuple(row.tolist()) for row in queue.features()} == {
            tuple(row.tolist()) for row in rows[2:]
        }

    @pytest.mark.parametrize("length", [2, 5, 8])
    def test_another_length_keeps_the_newest(self, length):
        queue, other = FeatureQueue(5), FeatureQueue(length)
        for first in (0, 3, 6):
            queue.push(torch.arange(first, first + 3.0)[:, None])
        other.restore(queue.state())
        other.push(torch.tensor([[9.0]]))
        kept = sorted(other.features()[:, 0].tolist())
        assert kept == [4.0, 5.0, 6.0, 7.0, 8.0, 9.0][-min(length, 6) :]

    def test_queue_continues_from_its_state(self):
        first, second = FeatureQueue(5), FeatureQueue(5)
        first.push(torch.randn(4, 2))
        second.restore(first.state())
        more = torch.randn(3, 2)
        first.push(more), second.push(more)
        assert torch.equal(first.features(), second.features())


class TestNetwork:
    def test_gradient_norms_by_module(self):
        student = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(2, 1)})
        student["b"](student["a"](torch.randn(5, 3))).sum().backward()
        found = gradient_norms(student)
        for name in "ab":
            expected = torch.cat([p.grad.flatten() for p in student[name].parameters()]).norm()
            torch.testing.assert_close(found[f"grad_norm_{name}"], expected)
        student["a"].zero_grad()
        assert set(gradient_norms(student)) == {"grad_norm_b"}

    def test_duplicates_are_equal_slices_not_equal_sizes(self):
        def sample(seed):
            image = np.random.default_rng(seed).random((32, 32), dtype=np.float32)
            return Sample(StoredSlice(image, 0.0, 1.0, str(seed), 0, "brain", "axial"), None)

        assert duplicate_rate([sample(0), sample(1), sample(2), sample(3)]) == 0
        assert duplicate_rate([sample(0), sample(1), sample(0), sample(0)]) == 0.5


class TestPatches:
    def test_drift_is_zero_for_the_same_teacher_and_not_for_another(self):
        torch.manual_seed(0)
        images = torch.rand(2, 1, 32, 32)
        one, other = (create_model("vit_micro_patch8", image_size=32).eval() for _ in range(2))
        watch = PatchWatch(images)
        first = watch.measure(one, renew=False)
        assert first["patch_drift"].item() == 0
        assert -1 < first["patch_cosine"].item() < 1
        assert watch.measure(one, renew=False)["patch_drift"].item() == pytest.approx(0, abs=1e-6)
        moved = watch.measure(other, renew=False)["patch_drift"].item()
        assert moved > 0.01
        watch.measure(other, renew=True)
        assert watch.measure(one, renew=False)["patch_drift"].item() == pytest.approx(moved)

    def test_equal_patches_have_cosine_one(self):
        encoder = create_model("vit_micro_patch8", image_size=32).eval()
        torch.nn.init.zeros_(encoder.vit.pos_embed)
        found = PatchWatch(torch.full((2, 1, 32, 32), 0.5)).measure(encoder, renew=False)
        assert found["patch_cosine"].item() == pytest.approx(1, abs=1e-5)


class TestAlarms:
    @staticmethod
    def alarms(prototypes=1024, steps=100, **limits):
        anchored = limits.pop("anchored", False)
        return Alarms(
            HealthConfig(**limits), num_prototypes=prototypes, steps=steps, anchored=anchored
        )

    @staticmethod
    def levels(alarms, information, steps, start=0):
        """Levels of the alarms raised while a head has this much information."""
        numbers = {"dino_information": information, "dino_rows": 64.0}
        return [
            (step, alarm.level)
            for step in range(start, start + steps)
            for alarm in alarms.update(step, numbers)
        ]

    def test_snapshot_after_forty_low_steps_and_stop_after_eighty(self, caplog):
        with caplog.at_level(logging.WARNING):
            assert self.levels(self.alarms(), 0.0, 90) == [(39, "snapshot"), (79, "stop")]
        assert len(caplog.records) == 2
        assert "dino head has collapsed" in caplog.text

    def test_targets_that_are_alike_stop_a_run_of_ijepa(self):
        alarms = self.alarms()
        spread = [0.5] * 10 + [0.01] * 90
        found = [alarms.update(step, {"target_spread": value}) for step, value in enumerate(spread)]
        assert [(a.step, a.level) for each in found for a in each] == [
            (49, "snapshot"), (89, "stop"),
        ]  # fmt: skip

    @pytest.mark.parametrize(("action", "level"), [("warn", "warn"), ("snapshot", "snapshot")])
    def test_action_is_the_most_an_alarm_may_do(self, action, level):
        assert self.levels(self.alarms(action=action), 0.0, 200) == [(39, level)]

    def test_limit_is_a_twentieth_of_what_rows_and_prototypes_allow(self):
        limit = 0.05 * math.log(64)
        assert not self.levels(self.alarms(), limit * 1.01, 50)
        assert self.levels(self.alarms(), limit * 0.99, 50)
        assert not self.levels(self.alarms(prototypes=4), limit * 0.99, 50)

    def test_one_good_step_starts_the_count_again(self):
        alarms = self.alarms()
        self.levels(alarms, 0.0, 39)
        self.levels(alarms, 2.0, 1, start=39)
        assert not self.levels(alarms, 0.0, 39, start=40)

    def test_long_runs_wait_for_one_percent(self):
        assert self.levels(self.alarms(steps=10000), 0.0, 100) == [(99, "snapshot")]

    def test_state_continues_the_count(self):
        first, second = self.alarms(), self.alarms()
        self.levels(first, 0.0, 39)
        second.restore(first.state())
        assert self.levels(second, 0.0, 41, start=39) == [(39, "snapshot"), (79, "stop")]

    def test_figures_measured_now_and_then_count_for_the_steps_between(self):
        alarms, found = self.alarms(), []
        for step in range(0, 100, 10):
            alarms.update(step + 5, {"dino_information": 3.0, "dino_rows": 64.0})
            found += [(step, a.level) for a in alarms.update(step, {"mean_cosine": 0.99})]
        assert found == [(40, "snapshot")]

    def test_too_few_rows_say_nothing(self):
        numbers = {"ibot_information": 0.0, "ibot_rows": 3.0}
        alarms = self.alarms()
        assert not [a for step in range(90) for a in alarms.update(step, numbers)]

    @pytest.mark.parametrize(
        ("figure", "good", "bad"),
        [
            ("mean_cosine", 0.97, 0.99),
            ("rank", 5.0, 3.0),
            ("patch_cosine", 0.97, 0.99),
            ("duplicates", 0.05, 0.06),
            ("skipped", 0.01, 0.02),
            ("anchor_drop", 0.05, 0.06),
            ("dino_kl", 0.02, 0.005),
            ("dino_use", 0.1, 0.02),
        ],
    )
    def test_every_limit(self, figure, good, bad):
        for value, rings in ((good, False), (bad, True)):
            alarms = self.alarms()
            numbers = {figure: value, "dino_rows": 64.0}
            found = [a for step in range(50) for a in alarms.update(step, numbers)]
            assert [a.finding.figure for a in found] == [figure] * rings

    def test_class_tokens_that_nothing_trains_are_not_judged(self):
        alarms = Alarms(HealthConfig(), num_prototypes=64, steps=100, judged_features=False)
        numbers = {"mean_cosine": 1.0, "rank": 1.0, "patch_cosine": 1.0}
        found = {a.finding.figure for step in range(90) for a in alarms.update(step, numbers)}
        assert found == {"patch_cosine"}

    def test_a_fall_below_trained_weights_stops_and_below_random_ones_does_not(self):
        for anchored, last in ((True, "stop"), (False, "snapshot")):
            alarms = self.alarms(anchored=anchored)
            found = [a for step in range(90) for a in alarms.update(step, {"anchor_drop": 0.2})]
            assert found[-1].level == last


class _Ready:
    """Slices of a probe whose scores are given."""

    def __init__(self, patients, *, from_validation=True):
        self.patients = {"plane": patients}
        self.from_validation = from_validation

    def told_patients(self):
        return f"{self.patients['plane']} for plane"

    def embed(self, encoder):
        return encoder

    def scores(self, features, method):
        return {"plane": {str(i): features[method] for i in range(self.patients["plane"])}}


class TestAnchor:
    def test_drop_is_the_fall_of_the_neighbors_below_the_first_scores(self):
        anchor = Anchor(_Ready(8))
        assert anchor.measure({"knn": 0.9, "linear": 0.8})["anchor_drop"] == 0
        found = anchor.measure({"knn": 0.7, "linear": 0.2})
        assert found["anchor_drop"] == pytest.approx(0.2)
        assert found["linear_plane"] == pytest.approx(0.2)

    def test_state_holds_the_first_scores(self):
        first, second = Anchor(_Ready(8)), Anchor(_Ready(8))
        first.measure({"knn": 0.9, "linear": 0.8})
        second.restore(first.state())
        assert second.measure({"knn": 0.8, "linear": 0.8})["anchor_drop"] == pytest.approx(0.1)

    @pytest.mark.parametrize("slices", [_Ready(7), _Ready(20, from_validation=False)])
    def test_too_few_validation_patients_are_told_not_judged(self, slices, caplog):
        with caplog.at_level(logging.INFO):
            found = Anchor(slices).measure({"knn": 0.9, "linear": 0.8})
        assert "anchor_drop" not in found
        assert "cannot be stopped" in caplog.text


def lines(config):
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


class TestRuns:
    COLLAPSING: ClassVar = {
        "objective": {
            "centering": "none",
            "koleo_weight": 0.0,
            "teacher_temperature": [0.04, 0.04],
        },
        "optimizer": {"learning_rate": 3e-3, "teacher_momentum": [0.5, 0.9]},
        "health": {"every": 5, "probe_every": 10, "patience_steps": 5, "probe_slices": 16},
        "steps": 60,
    }

    @pytest.mark.usefixtures("in_memory")
    def test_collapse_ends_the_run_with_snapshot_and_report(self, tiny):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        config = tiny(**self.COLLAPSING)
        with pytest.raises(RunError, match="collapsed") as caught:
            train(config)
        assert caught.value.code == "RUN-06"
        assert "dino_information" in caught.value.message or "ibot" in caught.value.message
        (snapshot, *_) = sorted((config.out / "alarms").glob("step_*"))
        names = {path.name for path in snapshot.iterdir()}
        assert {"manifest.json", "alarms.json", "views.png", "patches.png"} <= names
        page = (config.out / "report.html").read_text()
        assert "RUN-06" in page
        assert "Patch features" in page
        assert not (config.out / "weights").exists()
        assert str(config.out) not in page
        board = EventAccumulator(str(config.out / "tensorboard")).Reload().Tags()
        assert {"views", "patches", "alarm/views"} <= set(board["images"])
        assert {"dino_information", "rank", "knn_region"} <= set(board["scalars"])
        last = lines(config)[-1]
        assert last["step"] < 59
        assert last["alarms"] >= 1

    def test_two_workers_stop_at_the_step_of_one(self, tiny, in_memory, tmp_path):
        alone = tiny(**self.COLLAPSING)
        with pytest.raises(RunError):
            train(alone)
        shared = replace(alone, out=alone.out.with_name("shared"))
        Run.open(shared.out, shared)
        (shared.out / OVERLAP_FILE).write_text("not checked\n")
        payload = {"config": to_mapping(shared)}
        with pytest.raises(mp.ProcessRaisedException, match="RUN-06"):
            run_workers(in_memory_worker, tmp_path / "workers", in_memory, payload)
        assert len(lines(shared)) == len(lines(alone))
        assert "RUN-06" in (shared.out / "report.html").read_text()
        assert (shared.out / "alarms").exists()

    @pytest.mark.usefixtures("in_memory")
    def test_only_warned_it_goes_on(self, tiny):
        changes = self.COLLAPSING | {"steps": 20}
        config = tiny(**changes | {"health": changes["health"] | {"action": "warn"}})
        weights = train(config)
        assert not (config.out / "alarms").exists()
        page = (config.out / "report.html").read_text()
        assert weights.exists()
        assert "alarms of" in page

    @pytest.mark.usefixtures("only_losses")
    def test_figures_are_there_and_continue_bit_by_bit(self, tiny, monkeypatch):
        whole = tiny(steps=8, health={"every": 2, "probe_every": 4, "probe_slices": 16})
        train(whole)
        metrics = lines(whole)
        for name in ("rank", "alpha", "duplicates", "grad_norm_encoder", "dino_prototype_norm"):
            assert [line["step"] for line in metrics if name in line] == [1, 3, 5, 7]
        for name in ("knn_region", "linear_region", "patch_cosine", "patch_drift"):
            assert [line["step"] for line in metrics if name in line] == [0, 3, 7]
        broken = replace(whole, out=whole.out.with_name("broken"))
        original = Trainer.step

        def crashing(self, step):
            if step == 5:
                raise RuntimeError("lost")
            return original(self, step)

        monkeypatch.setattr(Trainer, "step", crashing)
        with pytest.raises(RuntimeError, match="lost"):
            train(broken)
        monkeypatch.setattr(Trainer, "step", original)
        train(broken)
        again = lines(broken)
        timed = ("seconds", "wait_seconds", "images_per_second")
        for one, two in zip(metrics, again, strict=True):
            assert {k: v for k, v in one.items() if k not in timed} == {
                k: v for k, v in two.items() if k not in timed
            }

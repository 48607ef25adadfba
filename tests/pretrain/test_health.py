from __future__ import annotations

import logging
import math

import pytest
import torch

from pretrain.health import HealthMonitor, head_statistics, mean_cosine
from pretrain.prototypes import TargetSums

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


class TestAlarm:
    @staticmethod
    def run(monitor, information, steps, start=0):
        for step in range(start, start + steps):
            alarms = monitor.update(step, {"dino_information": information, "dino_rows": 64.0})
        return alarms["dino_alarm"]

    def test_rings_after_forty_low_steps_and_warns_once(self, caplog):
        monitor = HealthMonitor(1024, steps=100)
        with caplog.at_level(logging.WARNING):
            assert self.run(monitor, 0.0, 39) == 0
            assert not caplog.records
            assert self.run(monitor, 0.0, 5, start=39) == 1
        assert len(caplog.records) == 1
        assert "dino head has collapsed" in caplog.text

    def test_limit_is_a_twentieth_of_what_rows_and_prototypes_allow(self):
        limit = 0.05 * math.log(64)
        assert self.run(HealthMonitor(1024, 100), limit * 1.01, 50) == 0
        assert self.run(HealthMonitor(1024, 100), limit * 0.99, 50) == 1
        assert self.run(HealthMonitor(4, 100), limit * 0.99, 50) == 0

    def test_one_good_step_starts_the_count_again(self):
        monitor = HealthMonitor(1024, 100)
        self.run(monitor, 0.0, 39)
        self.run(monitor, 2.0, 1)
        assert self.run(monitor, 0.0, 39) == 0

    def test_long_runs_wait_for_one_percent(self):
        assert self.run(HealthMonitor(1024, 10000), 0.0, 99) == 0
        assert self.run(HealthMonitor(1024, 10000), 0.0, 100) == 1

    def test_state_continues_the_count(self):
        first, second = HealthMonitor(1024, 100), HealthMonitor(1024, 100)
        self.run(first, 0.0, 39)
        second.restore(first.state())
        assert self.run(second, 0.0, 1) == 1

from __future__ import annotations

import numpy as np
import pytest
import torch

from core_mri.errors import ConfigError
from pretrain.gram import gram_loss, gram_schedules
from pretrain.objectives import Batch
from pretrain.student_teacher import StudentTeacher
from pretrain.train import Trainer

ANCHORED = {"gram_weight": 2.0, "gram_start": 2, "gram_refresh": 2, "gram_max_refreshes": 1}


def model_of(config):
    torch.manual_seed(0)
    return StudentTeacher(config).train()


def batch(num_images=4):
    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.rand(num_images, 2, 1, 32, 32, generator=generator),
        torch.rand(num_images, 2, 1, 16, 16, generator=generator),
        torch.rand(num_images, 2, 4, 4, generator=generator) < 0.3,
    )


def at(weight, refresh=0.0):
    return {
        "teacher_temperature": 0.04,
        "koleo_weight": 0.1,
        "teacher_momentum": 0.9,
        "gram_weight": weight,
        "gram_refresh": refresh,
    }


def move(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


class TestLoss:
    def test_is_its_formula_pair_by_pair(self):
        own, kept = torch.randn(2, 5, 8).double(), torch.randn(2, 5, 6).double()
        total = 0.0
        for s, g in zip(own, kept, strict=True):
            for i in range(5):
                for j in range(5):
                    a = s[i] @ s[j] / (s[i].norm() * s[j].norm())
                    b = g[i] @ g[j] / (g[i].norm() * g[j].norm())
                    total += float(a - b) ** 2
        assert float(gram_loss(own, kept)) == pytest.approx(total / 50, rel=1e-5)

    def test_lengths_and_rotations_are_free(self):
        patches = torch.randn(2, 9, 16)
        turn = torch.linalg.qr(torch.randn(16, 16)).Q
        assert gram_loss(3 * patches @ turn, patches) < 1e-12
        assert gram_loss(torch.randn(2, 9, 16), patches) > 1e-3

    def test_is_float32_under_autocast(self):
        own, kept = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
        expected = gram_loss(own, kept)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(gram_loss(own, kept), expected)


class TestSchedules:
    def test_anchors_are_taken_at_the_start_and_at_most_so_often(self, tiny):
        config = tiny(steps=10, objective=ANCHORED)
        found = gram_schedules(config.objective, 10)
        assert np.flatnonzero(found["gram_refresh"]).tolist() == [2, 4]
        assert found["gram_weight"].tolist() == [0.0, 0.0] + [2.0] * 8

    @pytest.mark.parametrize(
        "changes", [{"gram_start": 6}, {"gram_refresh": 0}, {"gram_weight": -1.0}]
    )
    def test_impossible_ones_are_refused(self, tiny, changes):
        with pytest.raises(ConfigError, match="gram_"):
            tiny(objective=ANCHORED | changes)


class TestObjective:
    def test_without_weight_there_is_nothing_of_it(self, tiny):
        model = model_of(tiny())
        assert model.anchor is None
        assert not any(name.startswith("anchor") for name in model.state_dict())
        assert "gram" not in model(batch(), at(0.0))
        assert "gram" not in model.losses

    def test_before_its_start_the_losses_are_those_without(self, tiny):
        out = model_of(tiny(objective=ANCHORED))(batch(), at(0.0))
        expected = model_of(tiny())(batch(), at(0.0))
        assert float(out["gram"]) == 0
        assert torch.equal(out["loss"], expected["loss"])

    def test_other_losses_stay_and_the_sum_holds(self, tiny):
        model = model_of(tiny(objective=ANCHORED))
        move(model.anchor)
        out = model(batch(), at(2.0))
        expected = model_of(tiny())(batch(), at(0.0))
        for name in ("dino", "ibot", "koleo"):
            torch.testing.assert_close(out[name], expected[name])
        assert out["gram"] > 0
        torch.testing.assert_close(out["loss"], expected["loss"] + 2 * out["gram"])

    def test_student_equal_to_the_anchor_has_no_loss_where_it_sees_all(self, tiny):
        model, views = model_of(tiny(objective=ANCHORED)), batch()
        whole = views._replace(masks=torch.zeros_like(views.masks))
        assert model(whole, at(2.0))["gram"] < 1e-10
        assert model(views, at(2.0))["gram"] > 1e-6  # masked patches must be made up

    def test_anchor_moves_only_when_renewed_and_then_is_the_teacher(self, tiny):
        model = model_of(tiny(objective=ANCHORED))
        before = {name: value.clone() for name, value in model.anchor.state_dict().items()}
        move(model.student)
        move(model.teacher)
        model(batch(), at(2.0))["loss"].backward()
        model.update(at(2.0))
        assert all(torch.equal(v, before[name]) for name, v in model.anchor.state_dict().items())
        assert not any(parameter.requires_grad for parameter in model.anchor.parameters())
        model.prepare(at(2.0, refresh=1.0))
        teacher = model.teacher_encoder.state_dict()
        assert all(torch.equal(v, teacher[name]) for name, v in model.anchor.state_dict().items())

    def test_it_pulls_the_student_toward_the_anchor(self, tiny):
        config = tiny(
            objective=ANCHORED | {"dino_weight": 0.0, "ibot_weight": 0.0, "koleo_weight": 0.0}
        )
        model, views = model_of(config), batch()
        move(model.anchor)
        adam = torch.optim.Adam(model.student.parameters(), lr=1e-3)
        found = []
        for _ in range(20):
            adam.zero_grad()
            out = model(views, at(2.0) | {"koleo_weight": 0.0})
            out["loss"].backward()
            adam.step()
            found.append(float(out["gram"]))
        assert found[-1] < 0.5 * found[0]


class TestRun:
    def test_continues_with_the_same_anchor(self, tiny, memory_slices):
        """Stopped between two anchors: the checkpoint holds the old one."""
        config = tiny(objective=ANCHORED, optimizer={"learning_rate": 1e-2, "warmup_steps": 0})
        whole = Trainer(config, memory_slices)
        numbers = [dict(whole.step(step)) for step in range(4)]
        stopped = Trainer(config, memory_slices)
        for step in range(3):
            stopped.step(step)
        again = Trainer(config, memory_slices)
        again.restore(stopped.state())
        got = dict(again.step(3))
        assert [line["gram"] > 0 for line in numbers] == [False, False, True, True]
        assert got["loss"] == numbers[3]["loss"]
        assert got["gram"] == numbers[3]["gram"]
        assert again.schedules["gram_weight"].tolist() == [0, 0, 2, 2, 2, 2]

from __future__ import annotations

import math

import pytest
import torch

from pretrain.objectives import FEATURES, Batch
from pretrain.student_teacher import StudentTeacher
from pretrain.targets import sinkhorn_knopp


def batch(num_images=8, num_local=2, masked=True):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(num_images, 2, 4, 4, generator=generator) < 0.3
    return (
        torch.rand(num_images, 2, 1, 32, 32, generator=generator),
        torch.rand(num_images, num_local, 1, 16, 16, generator=generator),
        masks & masked,
    )


def model_of(config, seed=0):
    torch.manual_seed(seed)
    return StudentTeacher(config).train()


def losses(model, *inputs):
    return model(Batch(*inputs), {"teacher_temperature": 0.04, "koleo_weight": 0.1})


class TestForward:
    def test_loss_is_the_weighted_sum_of_its_parts(self, tiny):
        config = tiny(objective={"dino_weight": 0.7, "ibot_weight": 0.3})
        out = losses(model_of(config), *batch())
        expected = 0.7 * out["dino"] + 0.3 * out["ibot"] + 0.1 * out["koleo"]
        torch.testing.assert_close(out["loss"].detach(), expected)
        assert out.pop(FEATURES).shape == (8, 128)
        assert all(value.ndim == 0 and math.isfinite(value.detach()) for value in out.values())

    def test_order_of_whole_groups_does_not_matter(self, tiny):
        model, inputs = model_of(tiny()), batch()
        order = [4, 5, 6, 7, 0, 1, 2, 3]
        expected, got = losses(model, *inputs), losses(model, *(part[order] for part in inputs))
        for name in ("loss", "dino", "ibot", "koleo"):
            torch.testing.assert_close(got[name], expected[name])

    def test_same_view_is_no_pair(self, tiny):
        """A student view equal to the teacher's is left out: only the other one counts."""
        config = tiny()
        model = model_of(config)
        globals_, locals_, masks = batch(num_local=0, masked=False)
        out = losses(model, globals_, locals_, masks)
        with torch.no_grad():
            flat = globals_.transpose(0, 1).flatten(0, 1)
            logits = model.student["dino"](model.student["encoder"](flat).cls)
            probs = sinkhorn_knopp(logits, 0.04).dense()  # teacher and student start alike
            logs = torch.log_softmax(logits / config.objective.student_temperature, -1)
            crossed = -(probs * logs.roll(8, 0)).sum(-1).mean()
        torch.testing.assert_close(out["dino"], crossed)

    @pytest.mark.parametrize(("num_local", "masked"), [(0, True), (2, False)])
    def test_every_parameter_of_the_student_takes_part(self, tiny, num_local, masked):
        """DistributedDataParallel waits for all gradients, also without masks or local views."""
        model = model_of(tiny())
        losses(model, *batch(num_local=num_local, masked=masked))["loss"].backward()
        missing = [n for n, p in model.student.named_parameters() if p.grad is None]
        assert missing == []

    def test_softmax_centering_moves_its_centers(self, tiny):
        model = model_of(tiny(objective={"centering": "softmax"}))
        losses(model, *batch())
        assert model.centers["dino"].center.abs().max() > 0
        assert model.centers["ibot"].center.abs().max() > 0


class TestTeacher:
    def test_starts_as_the_student(self, tiny):
        model = model_of(tiny(drop_path=0.2))
        teacher = model.teacher.state_dict()
        assert teacher.keys() == model.student.state_dict().keys()
        for name, value in model.student.state_dict().items():
            assert torch.equal(value, teacher[name])

    def test_never_has_gradients_nor_training_mode(self, tiny):
        model = model_of(tiny())
        losses(model, *batch())["loss"].backward()
        assert not any(p.requires_grad or p.grad is not None for p in model.teacher.parameters())
        assert not any(module.training for module in model.teacher.modules())
        assert model.student.training

    def test_follows_the_student(self, tiny):
        model = model_of(tiny())
        before = model.teacher["encoder"].mask_token.clone()
        with torch.no_grad():
            for parameter in model.student.parameters():
                parameter += 1
        model.update({"teacher_momentum": 0.9})
        moved = model.teacher["encoder"].mask_token - before
        torch.testing.assert_close(moved, torch.full_like(moved, 0.1))

    def test_released_encoder_has_no_stochastic_depth(self, tiny):
        model = model_of(tiny(drop_path=0.5))
        assert model.teacher_encoder.config.drop_path == 0
        assert model.student["encoder"].config.drop_path == 0.5

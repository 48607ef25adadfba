from __future__ import annotations

import json
import logging

import pytest
import torch

import core_mri
from core_mri.errors import ConfigError, RunError, WeightsError
from core_mri.models import create_model
from core_mri.models.heads import SegmentationHead
from core_mri.models.segmenter import Segmenter
from pretrain.probe import ProbeSet
from pretrain.start import HeadWarmup, build_encoder, suggested_rate
from pretrain.train import Trainer, train
from tests.pretrain.conftest import MemorySlices


@pytest.fixture
def source(tmp_path):
    """A function: weights of an encoder with these changes."""

    def save(**changes):
        torch.manual_seed(5)
        encoder = create_model("vit_micro_patch8", **({"image_size": 32} | changes))
        torch.nn.init.normal_(encoder.vit.pos_embed, std=0.5)
        return encoder.eval(), str(core_mri.save_model(encoder, tmp_path / "start"))

    return save


class TestEncoder:
    def test_features_are_those_of_the_source(self, tiny, source):
        encoder, folder = source(mean=0.3, std=0.2)
        built = build_encoder(tiny(start=folder)).eval()
        images = torch.rand(2, 1, 32, 32)
        torch.testing.assert_close(built(images).cls, encoder(images).cls)
        assert built.config.mean == 0.3

    def test_positions_are_resampled_to_the_crops(self, tiny, source):
        encoder, folder = source(image_size=64)
        built = build_encoder(tiny(start=folder)).eval()
        assert built.config.image_size == 32
        images = torch.rand(2, 1, 32, 32)
        torch.testing.assert_close(built(images).cls, encoder(images).cls, atol=1e-5, rtol=1e-5)

    def test_registers_and_layer_scale_of_the_source(self, tiny, source):
        encoder, folder = source(num_registers=2, layer_scale=1e-2)
        built = build_encoder(tiny(start=folder, num_registers=2, layer_scale=1e-5)).eval()
        images = torch.rand(2, 1, 32, 32)
        torch.testing.assert_close(built(images).patches, encoder(images).patches)

    def test_the_encoder_of_a_segmenter(self, tiny, source, tmp_path):
        encoder, _ = source()
        head = SegmentationHead(128, 2, num_levels=1)
        model = Segmenter(
            encoder, head, depths=[-1], labels={0: "background", 1: "organ"}, image_size=32
        )
        folder = core_mri.save_model(model, tmp_path / "segmenter")
        built = build_encoder(tiny(start=str(folder)))
        assert torch.equal(built.vit.cls_token, encoder.vit.cls_token)

    @pytest.mark.parametrize(
        ("changes", "tensor", "fix"),
        [
            ({"layer_scale": 1e-5}, "blocks.0.ls1.gamma is only in the weights", "layer_scale to"),
            ({"num_registers": 4}, "vit.reg_token is only in the weights", "num_registers to 4"),
            ({"patch_size": 16}, "vit.patch_embed.proj.weight is", "patch_size 16 there, 8 here"),
            ({"num_heads": 2}, "num_heads 2 there, 4 here", "`model`"),
            ({"depth": 3}, "vit.blocks.3.norm1.weight is only in the run's", "depth 3 there"),
        ],
    )  # fmt: skip
    def test_what_differs_is_named(self, tiny, source, changes, tensor, fix):
        _, folder = source(**changes)
        with pytest.raises(WeightsError) as caught:
            build_encoder(tiny(start=folder))
        assert caught.value.code == "WEIGHTS-02"
        assert tensor in str(caught.value)
        assert fix in str(caught.value)

    def test_missing_weights_stop_before_the_run(self, tiny, in_memory, tmp_path):
        config = tiny(start=str(tmp_path / "nowhere"))
        with pytest.raises(WeightsError) as caught:
            Trainer(config, in_memory)
        assert caught.value.code == "WEIGHTS-01"


class TestRun:
    def test_student_teacher_and_twin_begin_with_the_weights(self, tiny, source, in_memory):
        encoder, folder = source()
        trainer = Trainer(tiny(start=folder), in_memory)
        for network in (trainer.model.student, trainer.model.teacher):
            assert torch.equal(network["encoder"].vit.pos_embed, encoder.vit.pos_embed)

    @pytest.mark.usefixtures("in_memory")
    def test_report_compares_with_the_initial_weights(self, tiny, source):
        _, folder = source()
        config = tiny(start=folder)
        weights = train(config)
        rows = json.loads((config.out / "results.json").read_text())["summary"]
        assert {row["weights"] for row in rows} == {
            "pretrained", "initial", "pixels", "pretrained minus initial",
        }  # fmt: skip
        card = json.loads((weights / "config.json").read_text())["card"]
        assert card["training"]["start"] == folder

    def test_heads_learn_first(self, tiny, source, in_memory):
        _, folder = source()
        trainer = Trainer(tiny(start=folder, start_freeze_steps=2), in_memory)

        def encoder():
            return torch.cat([p.flatten() for p in trainer.model.student["encoder"].parameters()])

        before, head = encoder(), trainer.model.student["dino"].mlp[0].weight.clone()
        dict(trainer.step(0)), dict(trainer.step(1))
        assert torch.equal(encoder(), before)
        assert not torch.equal(trainer.model.student["dino"].mlp[0].weight, head)
        dict(trainer.step(2))
        assert not torch.equal(encoder(), before)

    def test_frozen_steps_need_weights_to_start_from(self, tiny):
        with pytest.raises(ConfigError, match="names no weights"):
            tiny(start_freeze_steps=2)

    @pytest.mark.usefixtures("in_memory")
    def test_a_fall_below_the_initial_weights_ends_the_run(self, tiny, source, monkeypatch):
        """Validation patients judge; their scores are made to fall as of a spoiled encoder."""
        _, folder = source()
        validation = MemorySlices(subjects=range(4, 8))
        monkeypatch.setattr("pretrain.train.open_validation", lambda _config: validation)
        calls = []

        def falling(self, encoder, method, features=None):
            calls.append(method)
            score = 0.9 if len(calls) <= 2 else 0.8
            return {task: dict.fromkeys(self.subjects, score) for task in self.tasks}

        monkeypatch.setattr(ProbeSet, "scores", falling)
        config = tiny(
            start=folder,
            steps=30,
            health={"every": 5, "probe_every": 5, "patience_steps": 5, "information": 0.0},
        )
        with pytest.raises(RunError, match=r"anchor_drop is 0\.1") as caught:
            train(config)
        assert caught.value.code == "RUN-07"
        assert "learning_rate" in caught.value.fix


class TestHeadWarmup:
    def test_ends_after_its_steps(self):
        warmup = HeadWarmup(30)
        for step in range(30):
            assert warmup.frozen(step)
            warmup.update(step, 10.0 * 0.9**step)
        assert not warmup.frozen(30)

    def test_ends_early_when_the_loss_levels_off(self, caplog):
        warmup = HeadWarmup(1000)  # windows of 100 steps
        with caplog.at_level(logging.INFO):
            for step in range(1000):
                if not warmup.frozen(step):
                    break
                warmup.update(step, max(5.0, 10.0 - step / 50))
        assert 350 <= step <= 460  # the loss is level from step 250 on
        assert f"from step {step} on" in caplog.text

    def test_state_continues(self):
        first, second = HeadWarmup(100), HeadWarmup(100)
        for step in range(15):
            first.update(step, 5.0)
        second.restore(first.state())
        for step in range(15, 25):
            first.update(step, 5.0), second.update(step, 5.0)
        assert first.end == second.end < 100

    def test_no_steps_freeze_nothing(self):
        assert not HeadWarmup(0).frozen(0)


def test_suggested_rate_grows_with_the_root_of_the_batch():
    assert suggested_rate(1024) == pytest.approx(2e-4)
    assert suggested_rate(256) == pytest.approx(1e-4)

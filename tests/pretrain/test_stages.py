from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import core_mri
from core_mri.config import to_mapping
from core_mri.errors import ConfigError
from core_mri.models import create_model
from pretrain.data import batches
from pretrain.stages import resize, samples_at, stage_at, stages_of
from pretrain.train import Trainer, train
from tests.pretrain.conftest import only_losses_worker
from tests.workers import run_workers

LATER = (
    {"steps": 3, "global_size": 48, "local_size": 24, "batch_size": 4},
    {"steps": 2, "global_size": 64, "local_size": 32},
)


def lines(config):
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def hexes(config):
    return [line["loss_hex"] for line in lines(config)]


class TestStages:
    def test_steps_samples_and_sizes(self, tiny):
        config = tiny(steps=8, stages=LATER)
        first, second, third = stages_of(config)
        assert [s.first_step for s in (first, second, third)] == [0, 3, 6]
        assert [s.first_sample for s in (first, second, third)] == [0, 24, 36]
        assert [s.config.batch_size for s in (first, second, third)] == [8, 4, 8]
        assert [s.config.views.global_size for s in (first, second, third)] == [32, 48, 64]
        assert [stage_at(config, step).number for step in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]

    def test_every_sample_comes_once_and_in_order(self, tiny):
        config = tiny(steps=8, stages=LATER)
        seen = np.concatenate([samples_at(config, step) for step in range(8)])
        assert np.array_equal(seen, np.arange(3 * 8 + 3 * 4 + 2 * 8))

    def test_slices_are_those_of_a_run_without_stages(self, tiny, memory_slices):
        def ids(config, steps):
            stream = batches(memory_slices, config, start=0, rank=0, world_size=1)
            return [(s.own.volume_id, s.own.index) for _ in range(steps) for s in next(stream)]

        staged, plain = tiny(steps=8, stages=LATER), tiny(steps=8)
        assert ids(staged, 8) == ids(plain, 7)[: 3 * 8 + 3 * 4 + 2 * 8]

    def test_stages_must_leave_steps_and_fit_the_patches(self, tiny):
        with pytest.raises(ConfigError, match="leaves none of 6"):
            tiny(steps=6, stages=[LATER[0], LATER[0]])
        with pytest.raises(ConfigError, match=r"stages\[0\].global_size .* Try 48"):
            tiny(stages=[{"steps": 2, "global_size": 50, "local_size": 24}])


class TestResize:
    @staticmethod
    def trained(size=32):
        torch.manual_seed(0)
        encoder = create_model("vit_micro_patch8", image_size=size)
        torch.nn.init.normal_(encoder.vit.pos_embed, std=0.5)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
        encoder(torch.rand(2, 1, size, size)).cls.square().sum().backward()
        optimizer.step()
        return encoder, optimizer

    def test_features_at_the_new_size_stay(self):
        encoder, optimizer = self.trained()
        images = torch.rand(2, 1, 64, 64)
        with torch.no_grad():
            before = encoder(images)  # timm resamples the table for this one batch
            resize(encoder, optimizer, 64)
            after = encoder(images)
        assert encoder.config.image_size == 64
        assert encoder.vit.pos_embed.shape[1] == 1 + 64
        torch.testing.assert_close(after.cls, before.cls, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after.patches, before.patches, atol=1e-5, rtol=1e-5)

    def test_optimizer_goes_on_with_resampled_moments(self):
        encoder, optimizer = self.trained()
        old = encoder.vit.pos_embed
        other = encoder.vit.blocks[0].attn.qkv.weight
        kept = optimizer.state[other]["exp_avg"].clone()
        mean = optimizer.state[old]["exp_avg"].mean()
        resize(encoder, optimizer, 64)
        table = encoder.vit.pos_embed
        state = optimizer.state[table]
        assert old not in optimizer.state
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == table.shape
        assert (state["exp_avg_sq"] >= 0).all()
        assert state["exp_avg"].mean().item() == pytest.approx(mean.item(), abs=1e-4)
        assert torch.equal(optimizer.state[other]["exp_avg"], kept)
        before = table.detach().clone()
        encoder(torch.rand(2, 1, 64, 64)).cls.square().sum().backward()
        optimizer.step()
        assert torch.isfinite(table).all()
        assert not torch.equal(table, before)


@pytest.mark.usefixtures("only_losses")
class TestRuns:
    def test_sizes_change_and_schedules_go_on(self, tiny, in_memory):
        config = tiny(steps=8, stages=LATER)
        trainer = Trainer(config, in_memory)
        plain = Trainer(tiny(steps=8), in_memory)
        for name, values in plain.schedules.items():
            assert np.array_equal(trainer.schedules[name], values)
        for step in range(8):
            trainer.step(step)
        for network in (trainer.model.student, trainer.model.teacher):
            assert network["encoder"].vit.pos_embed.shape[1] == 1 + 64
        views, masks = trainer.views_of(trainer.samples_of(7), samples_at(config, 7))
        assert views.global_views.shape[-1] == 64
        assert views.local_views.shape[-1] == 32
        assert masks.shape[-1] == 8

    @pytest.mark.parametrize("objective", ["mae", "ijepa"])
    def test_masked_objectives_follow_the_grid(self, tiny, in_memory, objective):
        """Positions of the decoder are made for the grid of each stage, those of the encoder are
        resampled."""
        views = {"num_global": 1, "num_local": 0}
        config = tiny(steps=8, stages=LATER, views=views, objective={"name": objective})
        trainer = Trainer(config, in_memory)
        grids = []
        for step in range(8):
            numbers = dict(trainer.step(step))
            assert np.isfinite(numbers["loss"])
            assert numbers["grad_norm"] > 0
            grids.append(trainer.model.sample_masks(np.arange(2)).shape[-1])
        assert grids == [4, 4, 4, 6, 6, 6, 8, 8]
        assert trainer.model.teacher_encoder.vit.pos_embed.shape[1] == 1 + 64
        image = torch.rand(1, 1, 64, 64)
        assert trainer.model.teacher_encoder(image).patches.shape[1:3] == (8, 8)

    @pytest.mark.parametrize("lost_at", [3, 5, 6])
    def test_resume_across_borders_is_bit_identical(self, tiny, monkeypatch, lost_at):
        """Checkpoints lie after steps 2, 4, 6; borders before steps 3 and 6."""
        whole = tiny(steps=8, stages=LATER)
        train(whole)
        broken = replace(whole, out=whole.out.with_name(f"broken-{lost_at}"))
        original = Trainer.step

        def crashing(self, step):
            if step == lost_at:
                raise RuntimeError("lost")
            return original(self, step)

        monkeypatch.setattr(Trainer, "step", crashing)
        with pytest.raises(RuntimeError, match="lost"):
            train(broken)
        monkeypatch.setattr(Trainer, "step", original)
        train(broken)
        assert hexes(broken) == hexes(whole)

    def test_two_processes_have_the_losses_of_one(self, tiny, only_losses, tmp_path):
        stages = [LATER[0] | {"batch_size": 16}]
        alone = tiny(steps=6, stages=stages)
        train(alone)
        shared = replace(alone, out=alone.out.with_name("shared"))
        payload = {"config": to_mapping(shared)}
        run_workers(only_losses_worker, tmp_path / "workers", only_losses, payload)
        one, two = ([line["loss"] for line in lines(config)] for config in (alone, shared))
        np.testing.assert_allclose(two, one, rtol=1e-4)

    def test_a_stage_whose_batch_the_data_cannot_fill(self, tiny):
        with pytest.raises(ConfigError, match="Try batch_size 48"):
            train(tiny(stages=[LATER[0] | {"batch_size": 64}]))


class TestWeights:
    @pytest.mark.usefixtures("in_memory")
    def test_released_encoder_has_the_last_size(self, tiny):
        weights = train(tiny(steps=8, stages=LATER))
        assert core_mri.load_model(weights).config.image_size == 64

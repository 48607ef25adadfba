"""MAE and I-JEPA: parts against lightly's, properties, whole runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

import core_mri
from core_mri.config import load_config
from core_mri.models import create_model
from pretrain.config import CONFIGS, PretrainConfig
from pretrain.config_masked import IjepaConfig
from pretrain.objectives import ENCODER, FEATURES, Batch, create_objective
from pretrain.objectives.ijepa import sample_blocks
from pretrain.objectives.mae import normalize, patchify, random_masks
from pretrain.objectives.masked import SmallTransformer, encode_visible, positions_of, take
from pretrain.train import Trainer, train
from tests.pretrain.conftest import MemorySlices

NETWORKS = {
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "ijepa": {"predictor_dim": 32, "predictor_depth": 1, "predictor_heads": 2},
}
CROPS_ONLY = {
    f"{name}_probability": 0.0
    for name in ("gamma", "bias", "low_field", "ringing", "undersampling", "noise", "blur",
                 "sharpen", "contrast")
}  # fmt: skip


@pytest.fixture(params=["mae", "ijepa"])
def name(request):
    return request.param


@pytest.fixture
def configured(tiny):
    def make(name, **changes):
        views = CROPS_ONLY | {"num_global": 1, "num_local": 0} | changes.pop("views", {})
        return tiny(objective={"name": name}, views=views, **(NETWORKS | changes))

    return make


def model_of(config, seed=0):
    torch.manual_seed(seed)
    return create_objective(config).train()


def batch_of(model, num_images=8, size=32, num_global=1):
    images = torch.rand(num_images, num_global, 1, size, size, generator=torch.Generator())
    masks = torch.from_numpy(model.sample_masks(np.arange(num_images)))
    return Batch(images, torch.zeros(num_images, 0, 1, 16, 16), masks)


class TestAgainstLightly:
    def test_patches(self):
        utils = pytest.importorskip("lightly.models.utils")
        images = torch.rand(3, 1, 32, 32)
        assert torch.equal(patchify(images, 8), utils.patchify(images, 8))

    def test_normalized_patches(self):
        utils = pytest.importorskip("lightly.models.utils")
        patches = torch.rand(3, 16, 64)
        expected = utils.normalize_mean_var(patches)
        torch.testing.assert_close(normalize(patches), expected, atol=1e-6, rtol=1e-6)

    def test_visible_tokens(self):
        """Its masked ViT with ``idx_keep``, on the same weights."""
        modules = pytest.importorskip("lightly.models.modules")
        encoder = create_model("vit_micro_patch8", image_size=32).eval()
        theirs = modules.MaskedVisionTransformerTIMM(encoder.vit)
        images = torch.rand(3, 1, 32, 32)
        masks = torch.from_numpy(random_masks(np.arange(3), (4, 4), 0.75, seed=0))[:, 0]
        kept, _ = positions_of(~masks)
        normed = (images - encoder.config.mean) / encoder.config.std
        idx_keep = torch.cat([torch.zeros(3, 1, dtype=torch.int64), kept + 1], 1)
        with torch.no_grad():
            # dynamic_img_size keeps the grid of patches, which lightly's wrapper flattens itself.
            expected = theirs.encode(normed, idx_keep=idx_keep)
            got = encode_visible(encoder, images, kept)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)

    def test_loss_of_mae(self, configured):
        """Its example: squared error of the predictions at the masked indices."""
        utils = pytest.importorskip("lightly.models.utils")
        model = model_of(configured("mae"))
        batch = batch_of(model)
        images, masks = batch.global_views[:, 0], batch.masks[:, 0]
        kept, masked = positions_of(~masks)[0], positions_of(masks)[0]
        with torch.no_grad():
            tokens = encode_visible(model.student[ENCODER], images, kept)
            predicted = model.student["decoder"](tokens, kept, masked, (4, 4))
            patches = utils.normalize_mean_var(utils.patchify(images, 8))
            # Its indices count the class token, and its patches do not.
            target = utils.get_at_index(patches, (masked + 1) - 1)
            expected = functional.mse_loss(predicted, target)
            got = model(batch, {})["loss"]
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)

    def test_targets_of_ijepa(self, configured):
        """Its example: layer norm of the teacher's patches, taken at the blocks."""
        utils = pytest.importorskip("lightly.models.utils")
        model = model_of(configured("ijepa"))
        images = torch.rand(4, 1, 32, 32)
        places = torch.stack([torch.randperm(16)[:5].sort().values for _ in range(4)])
        whole = model.teacher(images).patches.flatten(1, 2)
        expected = utils.apply_masks(functional.layer_norm(whole, (whole.shape[-1],)), [places])
        torch.testing.assert_close(
            take(model._targets(images)[1], places), expected, atol=1e-6, rtol=1e-6
        )


class TestVisibleTokens:
    def test_all_patches_is_the_encoder(self):
        encoder = create_model("vit_micro_patch8", image_size=32, num_registers=2).eval()
        images = torch.rand(2, 1, 32, 32)
        tokens = encode_visible(encoder, images, torch.arange(16).expand(2, -1))
        expected = encoder(images)
        torch.testing.assert_close(tokens[:, 0], expected.cls)
        torch.testing.assert_close(tokens[:, 3:], expected.patches.flatten(1, 2))

    def test_hidden_pixels_do_not_matter(self):
        encoder = create_model("vit_micro_patch8", image_size=32).eval()
        images = torch.rand(1, 1, 32, 32)
        changed = images.clone()
        changed[..., :8, :8] = 1 - changed[..., :8, :8]  # patch 0
        kept = torch.arange(1, 16)[None]
        assert torch.equal(
            encode_visible(encoder, images, kept), encode_visible(encoder, changed, kept)
        )

    def test_padding_changes_nothing(self):
        encoder = create_model("vit_micro_patch8", image_size=32).eval()
        images, kept = torch.rand(1, 1, 32, 32), torch.tensor([[2, 5, 11]])
        padded = torch.tensor([[2, 5, 11, 0, 0]])
        valid = torch.tensor([[True, True, True, False, False]])
        got = encode_visible(encoder, images, padded, valid)[:, :4]
        torch.testing.assert_close(got, encode_visible(encoder, images, kept))

    def test_order_of_what_is_asked_does_not_matter_to_the_predictor(self):
        network = SmallTransformer(16, 8, dim=32, depth=2, heads=2).eval()
        tokens, places = torch.rand(2, 6, 16), torch.tensor([[0, 3, 5, 9, 12]] * 2)
        wanted = torch.tensor([[1, 2, 14]] * 2)
        got = network(tokens, places, wanted, (4, 4))
        turned = network(tokens, places, wanted.flip(1), (4, 4))
        torch.testing.assert_close(turned, got.flip(1))

    def test_positions_come_back_as_masks(self):
        masks = torch.rand(5, 3, 4) < 0.4
        masks[:, 0, 0] = True
        places, valid = positions_of(masks)
        again = torch.zeros(5, 12, dtype=torch.bool)
        for row, place, ok in zip(again, places, valid, strict=True):
            row[place[ok]] = True
        assert torch.equal(again.view_as(masks), masks)


class TestMasks:
    @pytest.mark.parametrize("grid", [(2, 2), (4, 4), (14, 14), (7, 9)])
    @pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.99])
    def test_mae_shows_the_number_that_the_paper_does(self, grid, ratio):
        masks = random_masks(np.arange(5), grid, ratio, seed=0, num_views=2)
        seen = max(1, int(grid[0] * grid[1] * (1 - ratio) + 1e-9))
        assert ((~masks).sum((2, 3)) == seen).all()

    @pytest.mark.parametrize("grid", [(4, 4), (8, 8), (14, 14)])
    def test_ijepa_blocks_have_their_areas_and_the_context_lies_outside(self, grid):
        config = IjepaConfig()
        masks = sample_blocks(np.arange(200), grid, config, seed=0)
        context, targets = ~masks[:, 0], masks[:, 1:]
        assert context.any((1, 2)).all()
        assert not (context[:, None] & targets).any()
        size = targets.sum((2, 3))
        assert (size == size[:, :1]).all()
        rectangle = targets.any(2).sum(2) * targets.any(3).sum(2)
        assert (rectangle == size).all()
        if grid == (14, 14):
            area = size[:, 0] / 196
            assert 0.12 < area.min() < 0.16
            assert 0.18 < area.max() < 0.23
            assert 0.3 < context.mean() < 0.6

    def test_masks_of_a_sample_do_not_depend_on_the_batch(self, name, configured):
        model = model_of(configured(name))
        together = model.sample_masks(np.arange(20))
        assert np.array_equal(model.sample_masks(np.array([13]))[0], together[13])
        assert not np.array_equal(together[12], together[13])


class TestForward:
    def test_every_parameter_that_learns_takes_part(self, name, configured):
        model = model_of(configured(name))
        model(batch_of(model), {})["loss"].backward()
        learning = dict(model.named_parameters())
        assert [n for n, p in learning.items() if p.requires_grad and p.grad is None] == []
        assert not learning[f"student.{ENCODER}.mask_token"].requires_grad
        assert not any(p.requires_grad for n, p in learning.items() if n.startswith("teacher"))

    def test_order_of_the_images_does_not_matter(self, name, configured):
        model = model_of(configured(name))
        batch, order = batch_of(model), [5, 2, 7, 0, 1, 3, 6, 4]
        got = model(Batch(*(part[order] for part in batch[:3])), {})
        for key, value in model(batch, {}).items():
            torch.testing.assert_close(got[key], value[order] if key == FEATURES else value)

    def test_loss_of_a_batch_is_the_mean_of_those_of_its_images(self, name, configured):
        """Also where padding differs between the images."""
        model = model_of(configured(name))
        batch = batch_of(model)
        alone = [model(batch.part(slice(i, i + 1)), {})["loss"] for i in range(8)]
        torch.testing.assert_close(model(batch, {})["loss"], torch.stack(alone).mean())

    def test_mae_takes_two_views(self, configured):
        model = model_of(configured("mae", views={"num_global": 2}))
        out = model(batch_of(model, num_global=2), {})
        assert out[FEATURES].shape == (8, 128)

    def test_flat_hidden_patches_have_no_constant_loss(self, configured):
        model = model_of(configured("mae"))
        batch = batch_of(model)
        flat = model(batch._replace(global_views=torch.full_like(batch.global_views, 0.3)), {})
        assert flat["mae_constant"] == pytest.approx(0.0, abs=1e-6)
        assert model(batch, {})["mae_constant"] == pytest.approx(63 / 64, rel=1e-3)

    def test_spread_of_a_collapsed_teacher_is_zero(self, configured):
        model = model_of(configured("ijepa"))
        batch = batch_of(model)
        assert model(batch, {})["target_spread"] > 0.05
        with torch.no_grad():
            model.teacher.vit.norm.weight.zero_()
            model.teacher.vit.norm.bias.copy_(torch.randn(128))
        out = model(batch, {})
        assert out["target_spread"] == pytest.approx(0.0, abs=1e-5)
        assert out["ijepa_constant"] == pytest.approx(0.0, abs=1e-5)

    def test_ijepa_teacher_follows_and_mae_has_none(self, configured):
        model = model_of(configured("ijepa", drop_path=0.3))
        assert not model.teacher.training
        before = model.teacher.vit.norm.bias.clone()
        with torch.no_grad():
            model.student[ENCODER].vit.norm.bias += 1
        model.update({"teacher_momentum": 0.9})
        torch.testing.assert_close(model.teacher.vit.norm.bias, before + 0.1)
        assert "teacher_momentum" not in model_of(configured("mae")).schedules()

    def test_released_encoder_is_calm(self, name, configured):
        encoder = model_of(configured(name, drop_path=0.5)).teacher_encoder
        assert encoder.config.drop_path == 0
        assert not encoder.training


class TestRuns:
    @pytest.mark.usefixtures("in_memory")
    def test_a_run_leaves_weights_that_load_and_a_report(self, name, configured):
        config = configured(name, steps=4)
        encoder = core_mri.load_model(train(config))
        features = encoder(torch.rand(2, 1, 32, 32))
        assert features.cls.shape == (2, 128)
        if name == "ijepa":
            torch.testing.assert_close(features.cls, features.patches.mean((1, 2)))
        report = (config.out / "report.html").read_text()
        assert {"mae": "masked autoencoder", "ijepa": "I-JEPA"}[name] in report
        assert all(
            np.isfinite(json.loads(line)["loss"])
            for line in (config.out / "metrics.jsonl").read_text().splitlines()
        )

    @pytest.mark.usefixtures("only_losses")
    def test_going_on_from_a_checkpoint_is_bit_identical(self, name, configured, memory_slices):
        config = configured(name)
        whole = Trainer(config, memory_slices)
        losses = [whole.step(step)["loss"] for step in range(4)]
        first = Trainer(config, memory_slices)
        first.step(0), first.step(1)
        second = Trainer(config, memory_slices)
        second.restore(first.state())
        assert [second.step(step)["loss"] for step in (2, 3)] == losses[2:]

    @pytest.mark.usefixtures("only_losses")
    def test_loss_falls_and_nothing_collapses(self, name, configured, memory_slices):
        config = configured(
            name, steps=100, batch_size=16,
            optimizer={
                "learning_rate": 1e-3, "warmup_steps": 10, "teacher_momentum": [0.99, 1.0],
            },
        )  # fmt: skip
        trainer = Trainer(config, memory_slices)
        lines = [dict(trainer.step(step)) for step in range(100)]
        assert np.mean([line["loss"] for line in lines[-10:]]) < 0.7 * lines[0]["loss"]
        if name == "ijepa":
            assert lines[-1]["target_spread"] > 0.1
            assert lines[-1]["alarms"] == 0.0

    @pytest.mark.slow
    def test_ijepa_predicts_better_than_the_best_constant(self, tmp_path):
        """The packaged configuration on phantoms; at 400 steps 0.21 against 0.28."""
        slices = MemorySlices(("brain", "knee", "heart"), range(6), num_slices=6, size=64)
        content = yaml.safe_load((CONFIGS / "tiny_cpu_ijepa.yaml").read_text())
        config = load_config(PretrainConfig, content | {"out": str(tmp_path), "device": "cpu"})
        trainer = Trainer(config, slices)
        lines = [dict(trainer.step(step)) for step in range(config.steps)]
        loss, constant = (
            np.mean([line[key] for line in lines[-20:]]) for key in ("ijepa", "ijepa_constant")
        )
        assert loss < 0.9 * constant
        assert lines[-1]["target_spread"] > 0.5

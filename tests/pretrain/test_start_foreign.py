"""Every kind of published weights as a start: synthetic checkpoints in their layouts."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch
from torch.nn import functional

import core_mri
from core_mri.errors import WeightsError
from core_mri.models import create_sam
from core_mri.models.encoder import Encoder
from core_mri.models.registry import MODELS, EncoderConfig, SamConfig
from core_mri.weights.sam_layouts import as_plain_vit
from pretrain.objectives.masked import encode_visible
from pretrain.start import build_encoder, start_of
from pretrain.train import Trainer
from tests.core_mri.test_foreign_weights import MRI_CORE, published_dinov2, randomized, save

timm = importlib.import_module("timm")

WIDTH, HEADS = 128, 2
SIZES = {"embed_dim": WIDTH, "depth": 3, "num_heads": HEADS, "num_classes": 0}


@pytest.fixture(autouse=True)
def published_sizes(monkeypatch):
    """A small model with heads as wide as published ones, which loaders take for granted."""
    for name, depth in (("vit_start", 3), ("vit_start_8", MRI_CORE.DEPTH)):
        config = EncoderConfig(embed_dim=WIDTH, depth=depth, num_heads=HEADS, patch_size=16)
        monkeypatch.setitem(MODELS, name, config)


@pytest.fixture
def small(tiny):
    """A function: a configuration for crops of at least two patches of 16 px."""

    def config(start, changes, **views):
        views = {"global_size": 64, "local_size": 32} | views
        return tiny(**{"model": "vit_start", "start": start, "views": views} | changes)

    return config


def dinov2(folder):
    vit = randomized(timm.create_model("vit_small_patch14_dinov2", **SIZES | {"img_size": 56}))
    path = save(published_dinov2(vit, registers=False), folder / "a.pth")
    return f"dinov2:{path}", {"layer_scale": 1e-5}


def dinov2_registers(folder):
    name = "vit_small_patch14_reg4_dinov2"
    vit = randomized(timm.create_model(name, **SIZES | {"img_size": 56}))
    path = save(published_dinov2(vit, registers=True), folder / "a.pth")
    return f"dinov2:{path}", {"layer_scale": 1e-5, "num_registers": 4}


def dinov3(folder):
    vit = randomized(timm.create_model("vit_small_patch16_dinov3_qkvb", **SIZES | {"img_size": 64}))
    tensors = {
        key.replace("reg_token", "storage_tokens").replace("gamma_", "ls").replace(
            "ls1", "ls1.gamma"
        ).replace("ls2", "ls2.gamma"): tensor
        for key, tensor in vit.state_dict().items()
    }  # fmt: skip
    for block in range(3):
        q, v = (tensors.pop(f"blocks.{block}.attn.{part}_bias") for part in "qv")
        tensors.pop(f"blocks.{block}.attn.k_bias", None)
        tensors[f"blocks.{block}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    path = save(tensors | {"mask_token": torch.zeros(1, WIDTH)}, folder / "a.pth")
    return f"dinov3:{path}", {"layer_scale": 1e-5, "num_registers": 4}


def mae(folder):
    vit = randomized(timm.create_model("vit_small_patch16_224", **SIZES | {"img_size": 64}))
    return f"mae:{save({'model': dict(vit.state_dict())}, folder / 'a.pth')}", {}


def mri_core(folder):
    path = save(MRI_CORE.checkpoint(), folder / "a.pth")
    return f"mri-core:{path}", {"model": "vit_start_8"}


def sam(folder):
    return f"sam:{save(MRI_CORE.sam_checkpoint(), folder / 'a.pth')}", {"model": "vit_start_8"}


START_POINTS = [dinov2, dinov2_registers, dinov3, mae, mri_core, sam]


@pytest.mark.parametrize("point", START_POINTS)
def test_a_run_starts_and_takes_a_step(small, in_memory, tmp_path, point):
    start, changes = point(tmp_path)
    config = small(start, changes)
    trainer = Trainer(config, in_memory)
    began = trainer.model.teacher_encoder.state_dict()["vit.norm.weight"].clone()
    numbers = dict(trainer.step(0))
    assert torch.isfinite(torch.tensor(numbers["loss"]))
    assert numbers["grad_norm"] > 0
    source = core_mri.load_model(start, device="cpu")
    if isinstance(source, Encoder):
        assert torch.equal(began, source.vit.norm.weight)
    weights = core_mri.save_model(trainer.model.teacher_encoder, tmp_path / "weights")
    images = torch.rand(1, 1, 64, 64)
    again = core_mri.load_model(weights, device="cpu")
    expected = trainer.model.teacher_encoder.eval()(images)
    torch.testing.assert_close(again(images).patches, expected.patches)


@pytest.mark.parametrize("point", [dinov3, mae])
@torch.no_grad()
def test_the_encoder_is_that_of_the_checkpoint(small, tmp_path, point):
    start, changes = point(tmp_path)
    config = small(start, changes)
    images = torch.rand(2, 1, 64, 64)
    expected = core_mri.load_model(start, device="cpu")(images)
    built = build_encoder(config).eval()(images)
    torch.testing.assert_close(built.cls, expected.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(built.patches, expected.patches, atol=1e-5, rtol=1e-5)


def test_patches_of_other_sizes_are_resampled_and_said(small, tmp_path, caplog):
    start, changes = dinov2(tmp_path)
    encoder = build_encoder(small(start, changes))
    assert encoder.patch_size == 16
    assert "resampled from 14 to 16 px" in caplog.text


@pytest.mark.parametrize("objective", ["mae", "ijepa"])
def test_rotary_positions_reach_the_masked_objectives(small, in_memory, tmp_path, objective):
    start, changes = dinov3(tmp_path)
    changes |= {"objective": {"name": objective}}
    config = small(start, changes, num_global=1, num_local=0)
    trainer = Trainer(config, in_memory)
    assert torch.isfinite(torch.tensor(dict(trainer.step(0))["loss"]))
    encoder = build_encoder(config).eval()
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        order = torch.stack([torch.randperm(16), torch.randperm(16)])
        seen = encode_visible(encoder, images, order)[:, encoder.vit.num_prefix_tokens :]
        expected = encoder(images).patches.flatten(1, 2)
    found = torch.zeros_like(seen).scatter(1, order[..., None].expand_as(seen), seen)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class TestSam:
    @torch.no_grad()
    def test_blocks_are_those_of_sam_without_windows(self):
        """With whole-grid attention, no relative positions and no class token both are one."""
        torch.manual_seed(0)
        sizes = {"embed_dim": WIDTH, "depth": 3, "num_heads": HEADS, "image_size": 64}
        own = SamConfig(global_blocks=(0, 1, 2), relative_positions=False, out_channels=32, **sizes)
        encoder = randomized(create_sam(own).image_encoder)
        plain = as_plain_vit(encoder)
        headless = Encoder(
            EncoderConfig(
                patch_size=16, class_token=False, positions="patches", pool="mean", mean=0.0,
                std=1.0, **sizes,
            )
        )  # fmt: skip
        tensors = plain.state_dict()
        tensors.pop("vit.cls_token")
        tensors["vit.pos_embed"] = tensors["vit.pos_embed"][:, 1:]
        headless.load_state_dict(tensors)
        images = torch.rand(2, 1, 64, 64)
        expected = functional.layer_norm(encoder(images).patches, (WIDTH,), eps=1e-6)
        got = headless.eval()(images).patches
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)

    def test_log_and_card_say_what_was_dropped(self, small, tmp_path, caplog):
        start, changes = sam(tmp_path)
        config = small(start, changes)
        with caplog.at_level(logging.WARNING):
            build_encoder(config)
        assert "relative positions dropped" in caplog.text
        assert "relative positions dropped" in start_of(config)


def test_weights_without_a_class_token_are_refused_with_advice(small, tmp_path):
    arguments = SIZES | {"img_size": 64, "class_token": False, "global_pool": ""}
    vit = timm.create_model("vit_small_patch16_224", no_embed_class=True, **arguments)
    path = save({"target_encoder": dict(vit.state_dict())}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"vit\.cls_token is only in the run") as caught:
        build_encoder(small(f"ijepa:{path}", {}))
    assert "with a class token" in str(caught.value)

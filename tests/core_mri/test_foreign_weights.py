"""Checkpoints of other projects: synthetic ones in each published layout, against the reference.

References: timm (its own loading of the same file), segment-anything, MRI-CORE's published code
(gold, tests/references/make_mri_core_gold.py), transformers (gold, make_hf_dinov2_gold.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pickle
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import core_mri
from core_mri.errors import CoreMRIError, WeightsError
from core_mri.models.encoder import Encoder
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.sam import SamEncoder
from core_mri.runs import file_sha256
from core_mri.weights.folding import IMAGENET, SAM, fold

timm = importlib.import_module("timm")

REFERENCES = Path(__file__).parents[1] / "references"


def reference(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REFERENCES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MRI_CORE = reference("make_mri_core_gold")
Tensors = dict[str, Tensor]


def randomized(model: nn.Module) -> nn.Module:
    """Every parameter away from the zeros and ones it starts at."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def rgb(images: Tensor, normalization: Any = IMAGENET) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    return (images.expand(-1, 3, -1, -1) - mean) / std


def close(ours: Tensor, expected: Tensor) -> bool:
    """Within 1e-5 of the largest value."""
    return bool((ours - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1))


def agree(encoder: Encoder, expected: Tensor, images: Tensor) -> None:
    """`expected` [B, N, D] are the last tokens of the reference."""
    cls, patches = encoder(images)
    prefix = expected.shape[1] - patches.shape[1] * patches.shape[2]
    assert close(patches.flatten(1, 2), expected[:, prefix:])
    assert close(cls, expected[:, 0] if prefix else expected.mean(1))


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


SMALL = {"embed_dim": 128, "depth": 3, "num_heads": 2, "img_size": 64, "num_classes": 0}


def published_dinov2(vit: nn.Module, *, registers: bool) -> Tensors:
    """Names and tables of facebookresearch/dinov2 for a timm model."""
    tensors = dict(vit.state_dict())
    if registers:
        tensors["register_tokens"] = tensors.pop("reg_token")
        first = torch.full((1, 1, vit.embed_dim), 0.25)
        tensors["cls_token"] = tensors["cls_token"] - first
        tensors["pos_embed"] = torch.cat([first, tensors["pos_embed"]], 1)
    tensors["mask_token"] = torch.full((1, vit.embed_dim), 0.5)
    return {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        if "SwiGLU" in type(vit.blocks[0].mlp).__name__
        or "GluMlp" in type(vit.blocks[0].mlp).__name__
        else name: tensor
        for name, tensor in tensors.items()
    }


def chunked(tensors: Tensors) -> Tensors:
    """DINOv2's training layout: ``backbone.blocks.CHUNK.INDEX``."""
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // 2))
        renamed["backbone." + ".".join(parts)] = tensor
    return renamed


class TestPlainViTs:
    @pytest.mark.parametrize("layout", ["flat", "training", "registers", "giant"])
    @torch.no_grad()
    def test_dinov2(self, tmp_path: Path, layout: str) -> None:
        kind = {"registers": "vit_small_patch14_reg4_dinov2", "giant": "vit_giant_patch14_dinov2"}
        name = kind.get(layout, "vit_small_patch14_dinov2")
        vit = randomized(timm.create_model(name, **SMALL | {"img_size": 56}))
        content: Any = published_dinov2(vit, registers=layout == "registers")
        if layout == "training":
            content = {"teacher": chunked(content) | {"dino_head.mlp.0.weight": torch.zeros(3)}}
        encoder = core_mri.load_model(
            f"dinov2:{save(content, tmp_path / 'a.pth')}", device="cpu", num_heads=2
        )
        images = torch.rand(2, 1, 56, 56)
        agree(encoder, vit.forward_features(rgb(images)), images)
        assert torch.equal(encoder.mask_token, torch.full((128,), 0.5))
        assert encoder.card["dropped"] == ["dino_head.mlp.0.weight"] * (layout == "training")

    @pytest.mark.parametrize("gated", [False, True])
    @torch.no_grad()
    def test_dinov3(self, tmp_path: Path, gated: bool) -> None:
        name = f"vit_small{'_plus' * gated}_patch16_dinov3_qkvb"
        vit = randomized(timm.create_model(name, **SMALL))
        tensors = {}
        for key, tensor in vit.state_dict().items():
            for ours, theirs in (
                ("reg_token", "storage_tokens"),
                ("gamma_1", "ls1.gamma"),
                ("gamma_2", "ls2.gamma"),
                ("mlp.fc1_g", "mlp.w1"),
                ("mlp.fc1_x", "mlp.w2"),
            ):
                key = key.replace(ours, theirs)
            tensors[key.replace("fc2", "w3") if gated else key] = tensor
        for block in range(3):
            q, v = (tensors.pop(f"blocks.{block}.attn.{part}_bias") for part in "qv")
            tensors.pop(f"blocks.{block}.attn.k_bias", None)
            tensors[f"blocks.{block}.attn.qkv.bias"] = torch.cat([q, torch.ones_like(q), v])
            tensors[f"blocks.{block}.attn.qkv.bias_mask"] = torch.zeros(3 * 128)
        tensors["rope_embed.periods"] = torch.zeros(16)
        tensors["mask_token"] = torch.zeros(1, 128)
        path = save(tensors, tmp_path / "a.pth")
        encoder = core_mri.load_model(f"dinov3:{path}", device="cpu", num_heads=2)
        images = torch.rand(2, 1, 64, 96)
        agree(encoder, vit.forward_features(rgb(images)), images)
        assert torch.equal(encoder.intermediates(images, [2])[0], encoder(images).patches)
        assert "rope_embed.periods" in encoder.card["dropped"]

    @torch.no_grad()
    def test_mae(self, tmp_path: Path) -> None:
        vit = randomized(timm.create_model("vit_small_patch16_224", **SMALL))
        tensors = dict(vit.state_dict()) | {
            "mask_token": torch.zeros(1, 1, 32),
            "decoder_pos_embed": torch.zeros(1, 17, 32),
            "decoder_blocks.0.norm1.weight": torch.zeros(32),
        }
        path = save({"model": tensors, "args": Namespace(lr=1)}, tmp_path / "a.pth")
        encoder = core_mri.load_model(f"mae:{path}", device="cpu", num_heads=2)
        images = torch.rand(1, 1, 64, 64)
        agree(encoder, vit.forward_features(rgb(images)), images)
        assert len(encoder.card["dropped"]) == 3

    @torch.no_grad()
    def test_ijepa_has_no_class_token(self, tmp_path: Path) -> None:
        arguments = SMALL | {"class_token": False, "global_pool": "", "no_embed_class": True}
        vits = [randomized(timm.create_model("vit_small_patch16_224", **arguments)) for _ in "ab"]
        vits[0].blocks[0].attn.qkv.weight.add_(0.1)
        target, context = (
            {f"module.{key}": tensor for key, tensor in vit.state_dict().items()} for vit in vits
        )
        path = save({"target_encoder": target, "encoder": context, "epoch": 3}, tmp_path / "a.pth")
        images = torch.rand(1, 1, 64, 64)
        for vit, options in ((vits[0], {}), (vits[1], {"branch": "encoder"})):
            encoder = core_mri.load_model(f"ijepa:{path}", device="cpu", num_heads=2, **options)
            agree(encoder, vit.forward_features(rgb(images)), images)

    @pytest.mark.parametrize(
        "name",
        [
            "vit_tiny_patch16_224",
            "vit_medium_patch16_reg4_gap_256",
            "vit_small_patch16_dinov3_qkvb",
        ],
    )
    @torch.no_grad()
    def test_timm(self, tmp_path: Path, name: str) -> None:
        vit = randomized(timm.create_model(name))
        tensors = {key: tensor.contiguous() for key, tensor in vit.state_dict().items()}
        if "gap" in name:  # its norm comes after pooling, which our encoder does not do
            save_file(tensors, tmp_path / "a.safetensors")
            with pytest.raises(WeightsError, match="fc_norm"):
                core_mri.load_model(f"timm:{name}={tmp_path / 'a.safetensors'}", device="cpu")
            return
        save_file(tensors, tmp_path / "a.safetensors")
        encoder = core_mri.load_model(f"timm:{name}={tmp_path / 'a.safetensors'}", device="cpu")
        images = torch.rand(1, 1, *[encoder.config.image_size] * 2)
        facts = vit.pretrained_cfg
        agree(encoder, vit.forward_features(rgb(images, (facts["mean"], facts["std"]))), images)

    def test_nothing_is_downloaded_unasked(self) -> None:
        with pytest.raises(WeightsError, match="download=True") as caught:
            core_mri.load_model("timm:vit_tiny_patch16_224")
        assert caught.value.code == "WEIGHTS-06"

    @pytest.mark.parametrize(
        "name", ["resnet18", "vit_mega", "vit_base_patch16_clip_quickgelu_224"]
    )
    def test_other_networks_of_timm(self, name: str) -> None:
        with pytest.raises(WeightsError) as caught:
            core_mri.load_model(f"timm:{name}", download=True)
        assert caught.value.code == "WEIGHTS-03"

    @torch.no_grad()
    def test_hugging_face_dinov2(self, tmp_path: Path) -> None:
        hf = reference("make_hf_dinov2_gold")
        gold = np.load(REFERENCES / "hf_dinov2_gold.npz")
        for name in ("plain", "registers", "swiglu"):
            save_file(hf.checkpoint(name), tmp_path / "a.safetensors")
            encoder = core_mri.load_model(
                f"hf-dinov2:{tmp_path / 'a.safetensors'}", device="cpu", num_heads=hf.HEADS
            )
            expected = torch.from_numpy(gold[name])
            # registers stand between class token and patches
            agree(encoder, expected, hf.images())

    @torch.no_grad()
    def test_positions_and_patches_are_resampled_as_timm_does(self, tmp_path: Path) -> None:
        vit = randomized(timm.create_model("vit_small_patch16_224", **SMALL))
        path = save(dict(vit.state_dict()), tmp_path / "a.pth")
        other = timm.create_model(
            "vit_small_patch16_224", **SMALL | {"img_size": 84, "patch_size": 14}
        )
        from timm.models.vision_transformer import checkpoint_filter_fn

        other.load_state_dict(checkpoint_filter_fn(dict(vit.state_dict()), other))
        encoder = core_mri.load_model(
            f"mae:{path}", device="cpu", num_heads=2, image_size=84, patch_size=14
        )
        images = torch.rand(1, 1, 84, 84)
        agree(encoder, other.eval().forward_features(rgb(images)), images)

    @pytest.mark.parametrize("normalization", [IMAGENET, SAM])
    @torch.no_grad()
    def test_folding_is_exact(self, normalization: Any) -> None:
        conv = nn.Conv2d(3, 8, 4, stride=4)
        weight, bias = fold(conv.weight, conv.bias, normalization)
        images = torch.rand(2, 1, 16, 16)
        folded = nn.functional.conv2d(images, weight, bias, stride=4)
        assert torch.allclose(folded, conv(rgb(images, normalization)), atol=1e-5)

    def test_a_loaded_encoder_is_saved_and_read_again(self, tmp_path: Path) -> None:
        vit = timm.create_model("vit_small_patch14_reg4_dinov2", **SMALL | {"img_size": 56})
        path = save(published_dinov2(vit, registers=True), tmp_path / "a.pth")
        encoder = core_mri.load_model(f"dinov2:{path}", device="cpu", num_heads=2)
        same = core_mri.load_model(core_mri.save_model(encoder, tmp_path / "w"), device="cpu")
        images = torch.rand(1, 1, 56, 56)
        assert torch.equal(same(images).cls, encoder(images).cls)


class TestMriCore:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        return (
            save(MRI_CORE.checkpoint(), tmp_path / "mri_core.pth"),
            save(MRI_CORE.sam_checkpoint(), tmp_path / "sam.pth"),
        )

    @pytest.mark.parametrize("name", ["readme", "dataset", "from_sam"])
    @torch.no_grad()
    def test_legacy_equals_the_published_code(self, files: tuple[Path, Path], name: str) -> None:
        # Bug 1 of research 2.7: the position table is never loaded; legacy repeats it.
        gold = np.load(REFERENCES / "mri_core_gold.npz")
        options: dict[str, str] = {
            "readme": {"normalization": "none"},
            "dataset": {},
            "from_sam": {"sam": str(files[1])},
        }[name]
        model = core_mri.load_model(
            f"mri-core:{files[0]}", layout="sam", position="legacy", device="cpu", **options
        )
        encoder = model.image_encoder if name == "from_sam" else model
        patches = encoder(MRI_CORE.images()).patches[0, ::3, ::3]
        assert close(patches, torch.from_numpy(gold[name]))
        assert float(encoder.pos_embed.abs().sum()) == pytest.approx(float(gold[f"{name}_table"]))

    @torch.no_grad()
    def test_fixed_loads_the_position_table(self, files: tuple[Path, Path]) -> None:
        # Bug 1: the table of the checkpoint, class position left out.
        table = MRI_CORE.checkpoint()["teacher"]["backbone.pos_embed"]
        encoder = core_mri.load_model(f"mri-core:{files[0]}", layout="sam", device="cpu")
        assert torch.equal(encoder.pos_embed.flatten(1, 2), table[:, 1:])
        legacy = core_mri.load_model(
            f"mri-core:{files[0]}", layout="sam", position="legacy", device="cpu"
        )
        images = torch.rand(1, 1, 224, 224)
        assert not torch.allclose(encoder(images).patches, legacy(images).patches, atol=0.1)

    @torch.no_grad()
    def test_vit_equals_timm(self, files: tuple[Path, Path]) -> None:
        # 0 missing; only mask_token and dino_head have no place in timm's ViT.
        sizes = {"embed_dim": 128, "depth": MRI_CORE.DEPTH, "num_heads": 2, "num_classes": 0}
        vit = timm.create_model("vit_base_patch16_224", **sizes).eval()
        teacher = MRI_CORE.checkpoint()["teacher"]
        renamed = {}
        for name, tensor in teacher.items():
            parts = name.removeprefix("backbone.").split(".")
            renamed[".".join(parts[:1] + parts[2:] if parts[0] == "blocks" else parts)] = tensor
        found = vit.load_state_dict(renamed, strict=False)
        assert found.missing_keys == []
        assert all(k == "mask_token" or k.startswith("dino_head.") for k in found.unexpected_keys)
        encoder = core_mri.load_model(f"mri-core:{files[0]}", device="cpu")
        images = torch.rand(1, 1, 224, 224)
        agree(encoder, vit.forward_features(rgb(images)), images)
        assert all(name.startswith("dino_head.") for name in encoder.card["dropped"])

    def test_features_do_not_pass_a_random_neck(self, files: tuple[Path, Path]) -> None:
        # Bug 2: without SAM's file there is no neck, and asking for its output is an error.
        encoder = core_mri.load_model(f"mri-core:{files[0]}", layout="sam", device="cpu")
        assert isinstance(encoder, SamEncoder)
        assert not any(name.startswith("neck") for name in encoder.state_dict())
        with pytest.raises(CoreMRIError, match="no neck"):
            encoder.embedding(torch.rand(1, 1, 224, 224))

    def test_decoder_of_sam_is_loaded_not_drawn(self, files: tuple[Path, Path]) -> None:
        # Bugs 2 and 3: neck, prompt encoder and decoder come from SAM's file, all of them.
        sam = MRI_CORE.sam_checkpoint()
        model = core_mri.load_model(
            f"mri-core:{files[0]}", layout="sam", sam=str(files[1]), device="cpu"
        )
        for name, tensor in model.state_dict().items():
            if not name.startswith("image_encoder.") or ".neck." in name:
                assert torch.equal(tensor, sam[name]), name

    def test_the_path_decides_nothing(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        # Bug 9: a folder called sam_vit made the published code load nothing.
        folder = tmp_path / "sam_vit_runs"
        folder.mkdir()
        moved = files[0].rename(folder / "x.pth")
        encoder = core_mri.load_model(f"mri-core:{moved}", device="cpu")
        expected = MRI_CORE.checkpoint()["teacher"]["backbone.norm.bias"]
        assert torch.equal(encoder.vit.norm.bias, expected)

    def test_every_size_can_be_built_without_cuda(self) -> None:
        # Bug 8: cuda:0 was hard-coded and vit_h raised NameError.
        with torch.device("meta"):
            for size in "blh":
                assert isinstance(core_mri.create_model(f"sam_vit_{size}"), PromptableSegmenter)

    @pytest.mark.parametrize(
        "options",
        [{"layout": "swin"}, {"position": "new"}, {"sam": "x"}, {"color": 1}, {"normalization": 1}],
    )
    def test_wrong_options(self, files: tuple[Path, Path], options: dict[str, Any]) -> None:
        with pytest.raises(WeightsError) as caught:
            core_mri.load_model(f"mri-core:{files[0]}", **options)
        assert caught.value.code == "WEIGHTS-03"


class TestSam:
    @pytest.mark.parametrize("name", ["sam", "medsam"])
    @torch.no_grad()
    def test_equals_segment_anything(self, tmp_path: Path, name: str) -> None:
        # Bug 4: relative positions are all there (16 tables at this depth).
        tensors = MRI_CORE.sam_checkpoint()
        model = core_mri.load_model(f"{name}:{save(tensors, tmp_path / 'a.pth')}", device="cpu")
        assert isinstance(model, PromptableSegmenter)
        own = model.state_dict()
        assert own.keys() == tensors.keys()
        tables = [key for key in tensors if "rel_pos" in key]
        assert len(tables) == 2 * MRI_CORE.DEPTH
        assert all(torch.equal(own[key], tensors[key]) for key in tables)
        sam = self.reference()
        sam.load_state_dict(tensors)
        images = MRI_CORE.images()
        x = rgb(images, SAM) if name == "sam" else images.expand(-1, 3, -1, -1)
        expected = sam.image_encoder(x)
        assert torch.allclose(model.embed_image(images), expected, atol=1e-5)

    def reference(self) -> nn.Module:
        from functools import partial

        from segment_anything.modeling import ImageEncoderViT

        encoder = ImageEncoderViT(
            img_size=MRI_CORE.SIZE,
            embed_dim=MRI_CORE.WIDTH,
            depth=MRI_CORE.DEPTH,
            num_heads=MRI_CORE.HEADS,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=MRI_CORE.GLOBAL_BLOCKS,
        )
        holder = nn.Module()
        holder.image_encoder = encoder.eval()
        load = holder.load_state_dict
        holder.load_state_dict = lambda tensors: load(  # type: ignore[method-assign]
            {k: t for k, t in tensors.items() if k.startswith("image_encoder.")}
        )
        return holder


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class TestBadFiles:
    def failure(self, source: str, **options: Any) -> WeightsError:
        with pytest.raises(WeightsError) as caught:
            core_mri.load_model(source, device="cpu", **options)
        assert source.partition(":")[2] in str(caught.value)
        return caught.value

    @pytest.mark.parametrize("how", ["torch", "pickle"])
    def test_a_pickle_with_code_runs_nothing(self, tmp_path: Path, how: str) -> None:
        path, proof = tmp_path / "a.pth", tmp_path / "ran"
        content = {"model": {"w": torch.zeros(1)}, "x": Payload(f"touch {proof}")}
        if how == "torch":
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(Payload(f"touch {proof}")))
        error = self.failure(f"mae:{path}")
        assert error.code == "WEIGHTS-04"
        assert "weights_only" not in str(error)  # no advice to run it all the same
        assert not proof.exists()

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
    @pytest.mark.parametrize("kept", [0, 7, 0.5, 0.99])
    def test_truncated(self, tmp_path: Path, name: str, kept: float) -> None:
        path = tmp_path / name
        tensors = {"pos_embed": torch.rand(1, 5, 64)}
        save_file(tensors, path) if name.endswith("safetensors") else torch.save(tensors, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
        assert self.failure(f"mae:{path}").code == "WEIGHTS-04"

    @pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3)])
    def test_no_named_tensors(self, tmp_path: Path, content: object) -> None:
        assert self.failure(f"dinov2:{save(content, tmp_path / 'a.pth')}").code == "WEIGHTS-04"

    def test_missing_file(self, tmp_path: Path) -> None:
        assert self.failure(f"sam:{tmp_path / 'none.pth'}").code == "WEIGHTS-01"

    def test_hash(self, tmp_path: Path) -> None:
        path = save(MRI_CORE.checkpoint(), tmp_path / "a.pth")
        digest = file_sha256(path)
        model = core_mri.load_model(f"mri-core:{path}", device="cpu", sha256=digest.upper())
        assert model.card["sha256"] == digest
        assert self.failure(f"mri-core:{path}", sha256="0" * 64).code == "WEIGHTS-05"

    @pytest.mark.parametrize("family", ["mri-core", "dinov2", "dinov3", "mae", "ijepa", "sam"])
    def test_another_architecture_is_named(self, tmp_path: Path, family: str) -> None:
        path = save({"layer1.0.conv1.weight": torch.zeros(3, 3)}, tmp_path / "a.pth")
        error = self.failure(f"{family}:{path}")
        assert error.code == "WEIGHTS-02"
        assert "layer1.0.conv1.weight" in str(error)

    def test_every_misfit_is_named(self, tmp_path: Path) -> None:
        content = MRI_CORE.checkpoint()
        del content["teacher"]["backbone.norm.bias"]
        content["teacher"]["backbone.extra"] = torch.zeros(1)
        content["teacher"]["backbone.blocks.0.0.norm1.weight"] = torch.zeros(3)
        error = self.failure(f"mri-core:{save(content, tmp_path / 'a.pth')}")
        assert error.code == "WEIGHTS-02"
        for part in (
            "missing vit.norm.bias",
            "unexpected vit.extra",
            "blocks.0.norm1.weight is [3]",
        ):
            assert part in str(error)

"""A plain ViT behind a neck: any size, folder and back, prompts through the volume, exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import core_mri
from core_mri import Predictor, Volume
from core_mri.__main__ import main
from core_mri.errors import ConfigError, WeightsError
from core_mri.models import SAM_MODELS
from core_mri.models.encoder import Encoder
from core_mri.models.neck import NeckedEncoder
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.sam import SamEncoder
from core_mri.weights.export import export


@pytest.fixture
def model() -> PromptableSegmenter:
    torch.manual_seed(0)
    encoder = core_mri.create_model("vit_micro_patch8")
    necked = NeckedEncoder(encoder, depths=(1, -1), channels=32)
    return PromptableSegmenter(necked, image_size=64, channels=32).eval()


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(0).integers(0, 300, (30, 24, 5))
    return Volume(array.astype(np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))


class TestEmbedding:
    @torch.no_grad()
    @pytest.mark.parametrize("sides", [(64, 64), (224, 224), (448, 448), (64, 96)])
    def test_any_size(self, model: PromptableSegmenter, sides: tuple[int, int]) -> None:
        images = torch.rand(2, 1, *sides)
        embedding = model.embed_image(images)
        assert embedding.shape == (2, 32, sides[0] // 8, sides[1] // 8)
        points = (torch.tensor([[[9.0, 40.0]]] * 2), torch.ones(2, 1))
        assert model(images, points).logits.shape == (2, 1, *sides)

    def test_is_the_neck_of_sam(self) -> None:
        torch.manual_seed(0)
        sam = SamEncoder(SAM_MODELS["sam_vit_micro"])
        encoder = core_mri.create_model("vit_micro_patch8", embed_dim=64, num_heads=2)
        necked = NeckedEncoder(encoder, depths=(-1,), channels=32)
        necked.neck.load_state_dict(sam.neck.state_dict())
        images = torch.rand(1, 1, 64, 64)
        tokens = encoder.intermediates(images, (-1,))[0]
        expected = sam.neck(tokens.permute(0, 3, 1, 2))
        assert torch.equal(necked.embedding(images), expected)

    def test_gradients_reach_every_tensor_of_the_neck(self, model: PromptableSegmenter) -> None:
        boxes = torch.tensor([[8.0, 8.0, 40.0, 30.0]])
        model(torch.rand(1, 1, 64, 64), boxes=boxes).logits.sum().backward()
        assert isinstance(model.image_encoder, NeckedEncoder)
        for parameter in model.image_encoder.neck.parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()

    def test_depth_that_does_not_exist(self) -> None:
        with pytest.raises(ConfigError, match=r"must lie in \[-4, 4\)"):
            NeckedEncoder(core_mri.create_model("vit_micro_patch8"), depths=(4,), channels=32)


class TestFolder:
    @torch.no_grad()
    def test_round_trip(self, model: PromptableSegmenter, tmp_path: Path) -> None:
        core_mri.save_model(model, tmp_path / "weights")
        loaded = core_mri.load_model(tmp_path / "weights", device="cpu")
        assert isinstance(loaded, PromptableSegmenter)
        images, boxes = torch.rand(1, 1, 64, 96), torch.tensor([[8.0, 8.0, 40.0, 30.0]])
        for ours, theirs in zip(
            model(images, boxes=boxes), loaded(images, boxes=boxes), strict=True
        ):
            assert torch.equal(ours, theirs)
        card = (tmp_path / "weights" / "README.md").read_text()
        assert "# Promptable trained" in card
        assert "core-mri segment" in card

    def test_sam_still_is_sam(self, tmp_path: Path) -> None:
        core_mri.save_model(core_mri.create_model("sam_vit_micro"), tmp_path)
        loaded = core_mri.load_model(tmp_path, device="cpu")
        assert isinstance(loaded, PromptableSegmenter)
        assert isinstance(loaded.image_encoder, SamEncoder)

    @pytest.mark.parametrize("lost", ["depths", "decoder"])
    def test_incomplete_configuration(
        self, model: PromptableSegmenter, tmp_path: Path, lost: str
    ) -> None:
        core_mri.save_model(model, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        del config[lost]
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(WeightsError, match=f"WEIGHTS-01.*{lost}"):
            core_mri.load_model(tmp_path, device="cpu")


class TestUse:
    def test_predictor_answers_and_embeds(self, model: PromptableSegmenter, volume: Volume) -> None:
        predictor = Predictor(model)
        mask = predictor.segment(volume, boxes=[(3, 4, 1, 20, 18, 4)])
        assert mask.shape == volume.shape
        assert isinstance(predictor.encoder, Encoder)
        alone = Predictor(predictor.encoder, image_size=64).embed(volume)
        assert np.array_equal(predictor.embed(volume).cls, alone.cls)

    def test_segment_command(
        self, model: PromptableSegmenter, volume: Volume, tmp_path: Path
    ) -> None:
        core_mri.save_model(model, tmp_path / "weights")
        core_mri.write_volume(volume, tmp_path / "scan.nii.gz")
        paths = [str(tmp_path / name) for name in ("weights", "scan.nii.gz", "mask.nii.gz")]
        command = ["segment", *paths[:2], "--box", "3,4,1,20,18,4", "--out", paths[2]]
        assert main([*command, "--device", "cpu"]) == 0
        assert core_mri.read_volume(paths[2]).shape == volume.shape


class TestExport:
    def test_torchscript_gives_the_embedding(
        self, model: PromptableSegmenter, tmp_path: Path
    ) -> None:
        done = export(model, tmp_path / "model.pt", format="torchscript")
        assert done.difference is not None
        assert done.difference < 1e-4
        images = torch.rand(1, 1, 64, 64)
        found = torch.jit.load(str(tmp_path / "model.pt"))(images)
        found = found if isinstance(found, torch.Tensor) else found[0]
        with torch.no_grad():
            assert torch.allclose(found, model.embed_image(images), atol=1e-4)

    def test_onnx_gives_the_embedding(self, model: PromptableSegmenter, tmp_path: Path) -> None:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        done = export(model, tmp_path / "model.onnx", format="onnx")
        assert done.difference is not None
        assert done.difference < 1e-3

    def test_sam_has_no_place_for_it(self, model: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"WEIGHTS-02.*NeckedEncoder.*torchscript or onnx"):
            export(model, tmp_path / "sam.pth", format="sam")
        assert not list(tmp_path.iterdir())

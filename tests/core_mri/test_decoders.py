from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import core_mri
from core_mri.errors import WeightsError
from core_mri.models.adapters import add_adapters, mri_core_places
from core_mri.models.encoder import Encoder
from core_mri.models.heads import DECODERS, Decoder
from core_mri.models.registry import EncoderConfig
from core_mri.models.segmenter import Inference, Segmenter

SIZES = {"embed_dim": 32, "depth": 4, "num_heads": 2, "patch_size": 8, "image_size": 32}
DEPTHS = (1, 3)


def encoder(**changes: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(**(SIZES | changes))).eval()  # type: ignore[arg-type]


def head(name: str, **changes: object) -> Decoder:
    torch.manual_seed(1)
    return DECODERS[name](32, 3, len(DEPTHS), **({"patch_size": 8, "width": 8} | changes))


def segmenter(name: str, planes: int = 1, **changes: object) -> Segmenter:
    return Segmenter(
        encoder(),
        head(name, planes=planes, **changes),
        depths=DEPTHS,
        labels={1: "a", 2: "b"},
        image_size=32,
        neighbours=(planes - 1) // 2,
        inference=Inference(pixel_mm=1.5, scales=(1.0, 1.25), smoothing_mm=2.0),
    ).eval()


@pytest.mark.parametrize("name", DECODERS)
class TestDecoders:
    def test_logits_at_pixel_resolution_and_every_weight_learns(self, name: str) -> None:
        model = segmenter(name)
        logits = model(torch.rand(2, 1, 32, 48))
        assert logits.shape == (2, 3, 32, 48)
        logits.square().sum().backward()
        lost = [n for n, p in model.head.named_parameters() if p.grad is None]
        assert not lost

    @torch.no_grad()
    def test_patches_of_dinov2(self, name: str) -> None:
        decoder = head(name, patch_size=14)
        logits = decoder([torch.rand(1, 4, 4, 32)] * 2, torch.rand(1, 1, 56, 56))
        assert logits.shape == (1, 3, 56, 56)

    @torch.no_grad()
    def test_an_untrained_decoder_knows_the_frequencies(self, name: str) -> None:
        decoder = head(name)
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.start_from(torch.tensor([0.9, 0.1, 0.0]))
        logits = decoder([torch.rand(1, 4, 4, 32)] * 2, torch.rand(1, 1, 32, 32))
        expected = torch.tensor([0.9, 0.1, 1e-4])
        assert torch.allclose(logits.softmax(1)[0, :, 3, 3], expected, atol=1e-3)

    @pytest.mark.parametrize("fusion", ["concatenate", "mean"])
    @torch.no_grad()
    def test_a_saved_model_gives_the_same_logits(
        self, name: str, fusion: str, tmp_path: Path
    ) -> None:
        model = segmenter(name, planes=3, fusion=fusion)
        core_mri.save_model(model, tmp_path)
        loaded = core_mri.load_model(tmp_path, device="cpu")
        images = torch.rand(2, 3, 32, 32)
        assert torch.equal(loaded(images), model(images))
        assert loaded.inference == model.inference
        assert loaded.neighbours == 1

    @torch.no_grad()
    def test_every_plane_is_looked_at(self, name: str) -> None:
        model = segmenter(name, planes=3)
        images = torch.rand(1, 3, 32, 32)
        whole = model(images)
        for plane in range(3):
            changed = images.clone()
            changed[:, plane] = 0
            assert not torch.allclose(model(changed), whole)


class TestFusion:
    def test_a_mean_of_equal_planes_is_a_single_plane(self) -> None:
        single, fused = head("linear"), head("linear", planes=3, fusion="mean")
        fused.load_state_dict(single.state_dict(), strict=False)
        tokens = torch.rand(2, 4, 4, 32)
        images = torch.rand(2, 1, 32, 32)
        one = single([tokens] * 2, images)
        three = fused([tokens[:, None].expand(-1, 3, -1, -1, -1)] * 2, images.expand(-1, 3, -1, -1))
        assert torch.allclose(one, three, atol=1e-6)


class TestFolder:
    def test_a_folder_of_an_earlier_version_has_the_light_decoder(self, tmp_path: Path) -> None:
        model = segmenter("light")
        core_mri.save_model(model, tmp_path)
        path = tmp_path / "config.json"
        config = json.loads(path.read_text())
        for key in ("sequences", "neighbours", "inference"):
            del config[key]
        for key in ("decoder", "planes", "fusion"):
            del config["head"][key]
        path.write_text(json.dumps(config))
        images = torch.rand(1, 1, 32, 32)
        loaded = core_mri.load_model(tmp_path, device="cpu")
        assert torch.equal(loaded(images), model(images))
        assert loaded.inference == Inference()

    def test_an_unknown_decoder_is_named(self, tmp_path: Path) -> None:
        core_mri.save_model(segmenter("light"), tmp_path)
        path = tmp_path / "config.json"
        path.write_text(path.read_text().replace('"light"', '"heavy"'))
        with pytest.raises(WeightsError, match="heavy") as caught:
            core_mri.load_model(tmp_path, device="cpu")
        assert caught.value.code == "WEIGHTS-01"


class TestAdapters:
    def images(self) -> Tensor:
        return torch.rand(2, 1, 32, 32)

    @pytest.mark.parametrize("positions", ["all", "rotary"])
    @torch.no_grad()
    def test_start_as_the_identity_and_then_change_every_place(self, positions: str) -> None:
        plain = encoder(positions=positions)
        adapted = encoder(positions=positions)
        add_adapters(adapted, mri_core_places(adapted))
        images = self.images()
        before = plain(images).patches
        assert torch.equal(adapted(images).patches, before)
        for name, parameter in adapted.named_parameters():
            if name.endswith("adapter.up.bias"):
                parameter[0] = 1.0
                assert not torch.allclose(adapted(images).patches, before)
                parameter[0] = 0.0

    def test_size_of_mri_core(self) -> None:
        """Its 3.68 M trainable weights: 2.37 M in use in the encoder (the project's research)."""
        with torch.device("meta"):
            model = core_mri.create_model("vit_base_patch16")
            places = mri_core_places(model)
            add_adapters(model, places)
        assert places.blocks == (0, 1, 10, 11)
        added = sum(p.numel() for n, p in model.named_parameters() if ".adapter." in n)
        assert added == 4 * 2 * (768 * 192 + 192 + 192 * 768 + 768) == 2_366_976

    @torch.no_grad()
    def test_a_saved_adapted_encoder_loads(self, tmp_path: Path) -> None:
        model = encoder()
        add_adapters(model, mri_core_places(model))
        for parameter in model.parameters():
            parameter.add_(0.01)
        core_mri.save_model(model, tmp_path)
        loaded = core_mri.load_model(tmp_path, device="cpu")
        images = self.images()
        assert torch.equal(loaded(images).patches, model(images).patches)
        assert loaded.adapters == model.adapters

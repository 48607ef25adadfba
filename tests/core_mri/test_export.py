from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import core_mri
from core_mri.__main__ import main
from core_mri.errors import ConfigError, WeightsError
from core_mri.models.adapters import add_adapters, mri_core_places
from core_mri.models.classifier import Classifier
from core_mri.models.encoder import Encoder
from core_mri.models.heads import DECODERS, SegmentationHead
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.registry import SamConfig
from core_mri.models.sam import SamEncoder
from core_mri.models.segmenter import Segmenter
from core_mri.weights.export import export
from core_mri.weights.sam_export import PIXEL_MEAN, PIXEL_STD, sam_layout

SMALL_SAM = SamConfig(
    embed_dim=64, depth=4, num_heads=2, global_blocks=(1, 3), image_size=128, window_size=3
)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _encoder(**changes: object) -> Encoder:
    torch.manual_seed(0)
    encoder = core_mri.create_model("vit_micro_patch8", **changes).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def _their_pixels(images: torch.Tensor) -> torch.Tensor:
    """What `segment_anything.modeling.Sam.preprocess` makes of a gray image in [0, 1]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (PIXEL_MEAN, PIXEL_STD))
    return (255 * images.expand(-1, 3, -1, -1) - mean) / std


class TestSamLayout:
    def test_their_encoder_gives_our_embedding(self) -> None:
        from segment_anything.modeling import ImageEncoderViT

        torch.manual_seed(0)
        ours = SamEncoder(SMALL_SAM).eval()
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        theirs = ImageEncoderViT(
            img_size=128, patch_size=16, embed_dim=64, depth=4, num_heads=2, out_chans=256,
            use_rel_pos=True, window_size=3, global_attn_indexes=(1, 3),
            norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        ).eval()  # fmt: skip
        tensors = sam_layout(ours).tensors
        theirs.load_state_dict({k.removeprefix("image_encoder."): v for k, v in tensors.items()})
        images = torch.rand(2, 1, 128, 128)
        difference = (theirs(_their_pixels(images)) - ours.embedding(images)).abs().max()
        assert difference < 1e-4 * ours.embedding(images).abs().max()

    def test_a_plain_vit_computes_the_same_where_windows_do_not_matter(self) -> None:
        from segment_anything.modeling import ImageEncoderViT

        ours = _encoder(patch_size=16, image_size=128, layer_scale=0.3, num_registers=2)
        layout = sam_layout(ours, 128)
        theirs = ImageEncoderViT(
            img_size=128, patch_size=16, embed_dim=128, depth=4, num_heads=4, use_rel_pos=False,
            window_size=0, norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        ).eval()  # fmt: skip
        missing, unexpected = theirs.load_state_dict(
            {k.removeprefix("image_encoder."): v for k, v in layout.tensors.items()}, strict=False
        )
        assert unexpected == []
        assert all(name.startswith("neck.") for name in missing)
        assert set(layout.dropped) == {
            "mask_token", "vit.cls_token", "vit.reg_token", "vit.norm.weight", "vit.norm.bias",
        }  # fmt: skip
        images = torch.rand(2, 1, 128, 128)
        tokens = theirs.patch_embed(_their_pixels(images)) + theirs.pos_embed
        prefix = ours.vit.num_prefix_tokens
        embedded = ours.vit.patch_embed((images - ours.config.mean) / ours.config.std)
        positions = ours.vit.pos_embed[:, prefix:].unflatten(1, (8, 8))
        torch.testing.assert_close(tokens, embedded + positions, atol=1e-4, rtol=1e-4)
        mine = (embedded + positions).flatten(1, 2)
        for block, their_block in zip(ours.vit.blocks, theirs.blocks, strict=True):
            tokens, mine = their_block(tokens), block(mine)
        torch.testing.assert_close(tokens.flatten(1, 2), mine, atol=1e-3, rtol=1e-3)

    def test_the_table_of_positions_is_made_for_the_size(self) -> None:
        tensors = sam_layout(_encoder(), 256).tensors
        assert tensors["image_encoder.pos_embed"].shape == (1, 32, 32, 128)

    def test_a_head_has_no_place(self) -> None:
        with pytest.raises(WeightsError, match="Segmenter has no form"):
            sam_layout(_segmenter())

    def test_files_hold_tensors_alone(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file

        for name in ("sam.pth", "sam.safetensors"):
            export(_encoder(), tmp_path / name, format="sam", image_size=64)
        pickled = torch.load(tmp_path / "sam.pth", weights_only=True)
        safe = load_file(tmp_path / "sam.safetensors")
        assert pickled.keys() == safe.keys()
        assert all(torch.equal(pickled[name], safe[name]) for name in safe)


def _segmenter() -> Segmenter:
    return Segmenter(
        _encoder(),
        SegmentationHead(128, 3, 2, patch_size=8),
        depths=[1, 3],
        labels={1: "liver", 2: "spleen"},
        image_size=64,
    ).eval()


class TestTorchScript:
    def test_runs_without_this_package(self, tmp_path: Path) -> None:
        import subprocess
        import sys

        encoder = _encoder(num_registers=2)
        done = export(encoder, tmp_path / "e.pt", format="torchscript", image_size=96)
        assert done.difference is not None
        assert done.difference < 1e-4
        images = torch.rand(5, 1, 96, 96)
        np.save(tmp_path / "in.npy", images.numpy())
        program = (
            "import sys, numpy, torch\n"
            "cls, patches = torch.jit.load('e.pt')(torch.from_numpy(numpy.load('in.npy')))\n"
            "numpy.savez('out.npz', cls=cls.numpy(), patches=patches.numpy())\n"
            "assert not any(n.split('.')[0] in ('core_mri', 'timm') for n in sys.modules)\n"
        )
        subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, check=True)
        out = np.load(tmp_path / "out.npz")
        features = encoder(images)
        np.testing.assert_allclose(out["cls"], features.cls.numpy(), atol=1e-4)
        np.testing.assert_allclose(out["patches"], features.patches.numpy(), atol=1e-4)

    def test_segmenter_gives_logits(self, tmp_path: Path) -> None:
        model = _segmenter()
        export(model, tmp_path / "s.pt", format="torchscript")
        images = torch.rand(1, 1, 64, 64)
        loaded = torch.jit.load(str(tmp_path / "s.pt"))
        torch.testing.assert_close(loaded(images)[0], model(images), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("decoder", DECODERS)
    @torch.no_grad()
    def test_every_decoder_with_adapters_and_neighbours(self, decoder: str, tmp_path: Path) -> None:
        encoder = _encoder()
        add_adapters(encoder, mri_core_places(encoder))
        head = DECODERS[decoder](128, 2, 1, patch_size=8, planes=3, width=8)
        model = Segmenter(
            encoder, head, depths=[3], labels={1: "liver"}, image_size=64, neighbours=1
        ).eval()
        export(model, tmp_path / "s.pt", format="torchscript")
        images = torch.rand(1, 3, 64, 64)
        loaded = torch.jit.load(str(tmp_path / "s.pt"))
        torch.testing.assert_close(loaded(images)[0], model(images), atol=1e-4, rtol=1e-4)

    def test_promptable_gives_the_embedding(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = PromptableSegmenter(SamEncoder(SMALL_SAM), image_size=128).eval()
        done = export(model, tmp_path / "p.pt", format="torchscript")
        assert done.image_size == 128
        images = torch.rand(1, 1, 128, 128)
        loaded = torch.jit.load(str(tmp_path / "p.pt"))
        torch.testing.assert_close(
            loaded(images)[0], model.embed_image(images), atol=1e-4, rtol=1e-4
        )


class TestOnnx:
    def test_onnxruntime_gives_the_same(self, tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        encoder = _encoder()
        export(encoder, tmp_path / "e.onnx", format="onnx", image_size=96)
        assert [path.name for path in tmp_path.iterdir()] == ["e.onnx"]
        session = onnxruntime.InferenceSession(tmp_path / "e.onnx")
        assert [output.name for output in session.get_outputs()] == ["cls", "patches"]
        images = torch.rand(3, 1, 96, 96)
        cls, _ = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(cls, encoder(images).cls.numpy(), atol=1e-4)


class TestRefusals:
    def test_size_that_does_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no multiple of the patch size 8"):
            export(_encoder(), tmp_path / "e.pt", format="torchscript", image_size=100)
        assert list(tmp_path.iterdir()) == []

    def test_a_fixed_model_keeps_its_size(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="works at 64 px"):
            export(_segmenter(), tmp_path / "s.pt", format="torchscript", image_size=96)

    @pytest.mark.parametrize("form", ["sam", "torchscript", "onnx"])
    def test_a_classifier_has_no_form(self, tmp_path: Path, form: Any) -> None:
        model = Classifier(
            _encoder(), classes=("a", "b"), level="volume", image_size=64, attention=4
        )
        with pytest.raises(WeightsError, match=r"WEIGHTS-02.*[Ee]xport"):
            export(model, tmp_path / "c.pt", format=form)
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_file_survives_a_failure(self, tmp_path: Path) -> None:
        (tmp_path / "e.pt").write_text("old")
        with pytest.raises(ConfigError):
            export(_encoder(), tmp_path / "e.pt", format="torchscript", image_size=100)
        assert (tmp_path / "e.pt").read_text() == "old"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core_mri.save_model(_encoder(), tmp_path / "weights")
    words = [
        "export",
        str(tmp_path / "weights"),
        "--format",
        "sam",
        "--out",
        str(tmp_path / "s.pth"),
    ]
    assert main([*words, "--image-size", "128"]) == 0
    shown = capsys.readouterr().out
    assert "images of 128 px" in shown
    assert "vit.cls_token" in shown

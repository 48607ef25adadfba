"""Automatic masks against segment-anything's `SamAutomaticMaskGenerator` on the same tiny SAM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from core_mri import Predictor, Volume, create_model, read_volume, save_model, write_volume
from core_mri.__main__ import main
from core_mri.automatic import AutomaticMasks, Mask, _pixels, label_volume, link, masks_of_slice
from core_mri.errors import ConfigError
from core_mri.models import SAM_MODELS
from core_mri.models.promptable import PromptableSegmenter

MICRO = SAM_MODELS["sam_vit_micro"]
SIZE = MICRO.image_size


@pytest.fixture(scope="module")
def model() -> PromptableSegmenter:
    """Random weights whose masks are smooth, of many sizes, and depend on the point."""
    torch.manual_seed(1)
    model = create_model("sam_vit_micro").eval()
    decoder = model.mask_decoder
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.6 * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
        for layer in decoder.transformer.layers:
            attention = layer.cross_attn_image_to_token  # patches see the point they are near
            attention.q_proj.weight.mul_(2)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.out_proj.weight.mul_(3)
        for index in (0, 3):
            kernel = decoder.output_upscaling[index].weight
            kernel.copy_(kernel[..., :1, :1].expand_as(kernel))
        for head in decoder.output_hypernetworks_mlps:
            head.layers[-1].weight.mul_(30)
            head.layers[-1].bias.zero_()
        decoder.iou_prediction_head.layers[-1].weight.mul_(0.1)
        decoder.iou_prediction_head.layers[-1].bias.fill_(0.8)
    return model


def reference(model: PromptableSegmenter, embedding: torch.Tensor, **settings: Any) -> list[Any]:
    """segment-anything's generator; only the image encoder is replaced, by its embedding."""
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.modeling import Sam

    class Encoder(nn.Module):
        img_size = SIZE

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape == (1, 3, SIZE, SIZE)
            return embedding

    sam = Sam(Encoder(), model.prompt_encoder, model.mask_decoder)
    generator = SamAutomaticMaskGenerator(sam, **settings)
    return generator.generate(np.zeros((SIZE, SIZE, 3), np.uint8))


@pytest.mark.parametrize("min_area", [0, 300])
@torch.inference_mode()
def test_same_masks_as_segment_anything(model: PromptableSegmenter, min_area: int) -> None:
    noise = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    embedding = nn.functional.interpolate(noise, (8, 8), mode="bicubic")
    expected = reference(
        model,
        embedding,
        points_per_side=8,
        pred_iou_thresh=0.9,
        stability_score_thresh=0.5,
        min_mask_region_area=min_area,
    )
    ours = masks_of_slice(
        model,
        embedding,
        SIZE,
        (SIZE, SIZE),
        AutomaticMasks(
            points_per_side=8,
            points_per_batch=10,
            min_iou=0.9,
            min_stability=0.5,
            min_area=min_area,
        ),
    )
    assert len(ours) == len(expected) > 10
    for mask, wanted in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(_pixels(mask, (SIZE, SIZE)), wanted["segmentation"])
        assert mask.iou == pytest.approx(wanted["predicted_iou"], abs=1e-5)
        x, y, width, height = wanted["bbox"]
        assert mask.box == (x, y, x + width, y + height)


def square(x: int, y: int, side: int, iou: float = 1.0, shape: tuple[int, int] = (20, 24)) -> Mask:
    pixels = np.zeros(shape, bool)
    pixels[y : y + side, x : x + side] = True
    return Mask(np.packbits(pixels), iou, (x, y, x + side - 1, y + side - 1))


class TestLinking:
    SHAPE = (20, 24)

    def test_overlapping_masks_are_one_object_whatever_the_direction(self) -> None:
        slices = [
            [square(1, 1, 6)],
            [square(12, 10, 5), square(2, 1, 6)],
            [square(12, 11, 5)],
            [],
            [square(12, 11, 5)],
        ]
        found = link(slices, self.SHAPE, 0.5)
        assert sorted(sorted(one) for one in found) == [[0, 1], [1, 2], [4]]
        back = link(slices[::-1], self.SHAPE, 0.5)
        turned = [{4 - index: mask.box for index, mask in one.items()} for one in back]
        boxes = [{index: mask.box for index, mask in one.items()} for one in found]
        assert sorted(map(str, (sorted(one.items()) for one in boxes))) == sorted(
            map(str, (sorted(one.items()) for one in turned))
        )

    def test_the_largest_is_1_and_small_ones_lie_on_top(self) -> None:
        slices = [[square(3, 3, 2), square(0, 0, 12)], [square(0, 0, 12)]]
        labels = label_volume(slices, self.SHAPE, AutomaticMasks())
        assert labels.dtype == np.uint8
        assert np.bincount(labels.ravel()).tolist()[1:] == [2 * 144 - 4, 4]
        assert labels[0, 3, 3] == 2

    def test_more_than_255_objects_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        big = square(0, 0, 3)
        slices = [[square(x, y, 1) for x in range(24) for y in range(5, 18)], [], [big]]
        labels = label_volume(slices, self.SHAPE, AutomaticMasks())
        assert labels.max() == 255
        assert labels[2].max() == 1
        assert "313 objects: the 255 largest are kept, 58 dropped" in caplog.text


def test_thresholds_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"points_per_side must be at least 1, got 0.*min_iou"):
        AutomaticMasks(points_per_side=0, min_iou=2)


def scan(slices: int = 3) -> Volume:
    array = np.random.default_rng(0).integers(0, 300, (40, 30, slices)).astype(np.int16)
    return Volume(array, np.diag([1.0, 1.0, 4.0, 1.0]))


def test_flipped_slices_give_the_flipped_answer(model: PromptableSegmenter) -> None:
    settings = AutomaticMasks(points_per_side=5, min_iou=0.0, min_stability=0.3)
    volume = scan()
    flip = np.diag([1.0, 1, -1, 1])
    flip[2, 3] = volume.shape[2] - 1
    turned = Volume(volume.array[..., ::-1], volume.affine @ flip)
    found = Predictor(model).segment(volume, automatic=settings).array
    back = Predictor(model).segment(turned, automatic=settings).array
    assert found.max() > 1
    # Numbers of equal volumes may change places, the parts do not.
    pairs = set(zip(found.ravel().tolist(), back[..., ::-1].ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(found)) == len(np.unique(back))


def test_command(model: PromptableSegmenter, tmp_path, capsys) -> None:
    save_model(model, tmp_path / "weights")
    write_volume(scan(), tmp_path / "scan.nii")
    words = ["segment", str(tmp_path / "weights"), str(tmp_path / "scan.nii"), "--device", "cpu"]
    out = ["--out", str(tmp_path / "mask.nii")]
    chosen = ["--automatic", "--points-per-side", "4", "--min-iou", "0", "--min-stability", "0.2"]
    assert main([*words, *chosen, *out]) == 0
    written = read_volume(tmp_path / "mask.nii").array
    counts = np.bincount(written.ravel())[1:]
    assert (np.diff(counts) <= 0).all()
    assert f"1: {counts[0]} voxels" in capsys.readouterr().out
    assert main([*words, "--point=1,1,1,1", "--min-iou=0.5", *out]) == 2
    assert "--automatic" in capsys.readouterr().err
    assert main([*words, "--point=1,1,1,1", "--automatic", *out]) == 2

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import core_mri
from core_mri.errors import ConfigError, WeightsError
from core_mri.models.heads import SegmentationHead
from core_mri.models.segmenter import Segmenter
from core_mri.physics.phantoms import phantom_volume
from core_mri.predictor import Predictor


class Threshold(nn.Module):
    """A head whose answer is known: class 1 where the image is brighter than one half."""

    def forward(self, _levels: list[Tensor], images: Tensor) -> Tensor:
        return torch.cat([torch.full_like(images, 0.5), images], 1)


@pytest.fixture
def segmenter() -> Segmenter:
    model = Segmenter(
        core_mri.create_model("vit_micro_patch8"),
        SegmentationHead(128, 2, 1, patch_size=8),
        depths=[3],
        labels={1: "bright"},
        image_size=64,
    )
    model.head = Threshold()  # type: ignore[assignment]
    return model


class TestSegment:
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "AIL", "PIR"])
    def test_the_right_voxels_for_any_orientation(self, segmenter: Segmenter, codes: str) -> None:
        generator = np.random.default_rng(0)
        array = generator.permuted(np.arange(64 * 48 * 5)).reshape(64, 48, 5).astype(np.float32)
        affine = np.array([[1, 0.1, 0, 3], [-0.1, 1, 0, 5], [0, 0, 6, -7], [0, 0, 0, 1.0]])
        volume = core_mri.Volume(array, affine).reorient(codes)
        mask = Predictor(segmenter, image_size=64).segment(volume)
        low, high = np.percentile(array, (0.5, 99.5))
        assert mask.kind == "label"
        assert mask.same_grid(volume)
        assert np.array_equal(mask.array == 1, volume.array > (low + high) / 2)

    def test_an_encoder_alone_cannot(self) -> None:
        predictor = Predictor(core_mri.create_model("vit_micro_patch8"))
        with pytest.raises(WeightsError, match="finetune"):
            predictor.segment(phantom_volume("brain", 1, size=32, num_slices=2)[0])


class TestEmbed:
    def test_shapes_and_batches_do_not_matter(self) -> None:
        torch.manual_seed(0)
        encoder = core_mri.create_model("vit_micro_patch8")
        volume = phantom_volume("brain", 1, size=48, num_slices=5)[0]
        one = Predictor(encoder, batch_size=2).embed(volume)
        other = Predictor(encoder, batch_size=16).embed(volume)
        assert one.cls.shape == (5, 128)
        assert one.patches.shape == (5, 8, 8, 128)
        assert np.allclose(one.cls, other.cls, atol=1e-5)

    def test_sizes_that_patches_do_not_tile(self) -> None:
        with pytest.raises(ConfigError, match="patch size 8"):
            Predictor(core_mri.create_model("vit_micro_patch8"), image_size=60)

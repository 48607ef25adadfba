from __future__ import annotations

import pytest
import torch

import core_mri
from core_mri.errors import ConfigError, DataError, WeightsError
from core_mri.models.encoder import Encoder
from core_mri.models.heads import SegmentationHead
from core_mri.models.segmenter import Segmenter, spread_depths


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return core_mri.create_model("vit_micro_patch8").eval()


class TestNames:
    def test_pattern(self) -> None:
        assert "vit_small_patch16" in core_mri.list_models()
        assert core_mri.list_models("*base*") == ["vit_base_patch16"]

    def test_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(WeightsError, match="vit_micro_patch8") as caught:
            core_mri.create_model("vit_mega")
        assert caught.value.code == "WEIGHTS-03"

    def test_unknown_option_lists_the_known(self) -> None:
        with pytest.raises(WeightsError, match="image_size"):
            core_mri.create_model("vit_micro_patch8", size=3)

    def test_impossible_sizes(self) -> None:
        with pytest.raises(ConfigError):
            core_mri.create_model("vit_micro_patch8", image_size=60)


class TestEncoder:
    @pytest.mark.parametrize("shape", [(64, 64), (64, 48), (16, 120)])
    def test_any_size_that_patches_tile(self, encoder: Encoder, shape: tuple[int, int]) -> None:
        cls, patches = encoder(torch.rand(2, 1, *shape))
        assert cls.shape == (2, 128)
        assert patches.shape == (2, shape[0] // 8, shape[1] // 8, 128)

    @torch.no_grad()
    def test_images_of_a_batch_do_not_see_each_other(self, encoder: Encoder) -> None:
        images = torch.rand(3, 1, 64, 64)
        order = torch.tensor([2, 0, 1])
        assert torch.allclose(encoder(images).cls[order], encoder(images[order]).cls, atol=1e-5)

    @torch.no_grad()
    def test_three_equal_channels_are_one(self, encoder: Encoder) -> None:
        images = torch.rand(2, 1, 64, 64)
        assert torch.allclose(
            encoder(images).cls, encoder(images.expand(-1, 3, -1, -1)).cls, atol=1e-5
        )

    @torch.no_grad()
    def test_a_masked_patch_is_not_seen(self, encoder: Encoder) -> None:
        mask = torch.zeros(1, 8, 8, dtype=torch.bool)
        mask[0, 2, 3] = True
        one = torch.rand(1, 1, 64, 64)
        other = one.clone()
        other[..., 16:24, 24:32] = 0.9
        assert not torch.allclose(encoder(one).cls, encoder(other).cls, atol=1e-5)
        assert torch.allclose(encoder(one, mask).cls, encoder(other, mask).cls, atol=1e-6)

    @torch.no_grad()
    def test_last_intermediate_is_the_output(self, encoder: Encoder) -> None:
        images = torch.rand(1, 1, 64, 64)
        first, last = encoder.intermediates(images, [0, -1])
        assert torch.equal(last, encoder(images).patches)
        assert first.shape == last.shape

    @torch.no_grad()
    def test_equals_timm(self, encoder: Encoder) -> None:
        # The reference is timm's own forward_features on the same module.
        images = torch.rand(2, 1, 64, 64)
        expected = encoder.vit.forward_features((images - 0.25) / 0.25)
        cls, patches = encoder(images)
        assert torch.equal(cls, expected[:, 0])
        assert torch.equal(patches.flatten(1, 2), expected[:, 1:])

    def test_wrong_input(self, encoder: Encoder) -> None:
        with pytest.raises(ConfigError, match="patch size 8"):
            encoder(torch.rand(1, 1, 60, 64))
        with pytest.raises(DataError, match="1 or 3"):
            encoder(torch.rand(1, 4, 64, 64))
        with pytest.raises(ConfigError, match="depths"):
            encoder.intermediates(torch.rand(1, 1, 64, 64), [4])


class TestSegmenter:
    def test_an_untrained_head_knows_the_frequencies(self) -> None:
        head = SegmentationHead(16, 3, 1, patch_size=8)
        torch.nn.init.zeros_(head.classify.weight)
        torch.nn.init.zeros_(head.coarse.weight)
        head.start_from(torch.tensor([0.9, 0.1, 0.0]))
        logits = head([torch.rand(1, 2, 2, 16)], torch.rand(1, 1, 16, 16))
        expected = torch.tensor([0.9, 0.1, 1e-4])
        assert torch.allclose(logits.softmax(1)[0, :, 3, 3], expected, atol=1e-3)

    def test_logits_at_pixel_resolution_with_gradients(self, encoder: Encoder) -> None:
        head = SegmentationHead(128, 3, 2, patch_size=8)
        model = Segmenter(
            encoder, head, depths=spread_depths(4, 2), labels={1: "a", 2: "b"}, image_size=64
        )
        logits = model(torch.rand(2, 1, 64, 48))
        assert logits.shape == (2, 3, 64, 48)
        logits.sum().backward()
        assert all(p.grad is not None for p in head.parameters())

    def test_depths_end_with_the_last_block(self) -> None:
        assert spread_depths(12, 4) == (2, 5, 8, 11)
        assert spread_depths(4, 1) == (3,)

"""SAM's network against the `segment-anything` package, on random weights of micro size."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import core_mri
from core_mri.errors import ConfigError, DataError
from core_mri.models import SAM_MODELS
from core_mri.models.linear import Linear, onednn_fits
from core_mri.models.promptable import PromptableSegmenter

MICRO = SAM_MODELS["sam_vit_micro"]


def reference_encoder(size: int = MICRO.image_size, *, relative: bool = True) -> nn.Module:
    """segment-anything's image encoder for one channel, every table drawn at random."""
    from segment_anything.modeling import ImageEncoderViT

    torch.manual_seed(1)
    encoder = ImageEncoderViT(
        img_size=size,
        in_chans=1,
        embed_dim=MICRO.embed_dim,
        depth=MICRO.depth,
        num_heads=MICRO.num_heads,
        out_chans=MICRO.out_channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=relative,
        window_size=MICRO.window_size,
        global_attn_indexes=MICRO.global_blocks,
    )
    for name, parameter in encoder.named_parameters():
        if "pos" in name or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


@pytest.fixture(scope="module")
def model() -> PromptableSegmenter:
    torch.manual_seed(0)
    model = core_mri.create_model("sam_vit_micro").eval()
    model.image_encoder.load_state_dict(reference_encoder().state_dict())
    return model


class TestEncoder:
    @torch.no_grad()
    def test_equals_segment_anything(self, model: PromptableSegmenter) -> None:
        # 8 x 8 patches in windows of 3: the last windows hold padding.
        images = torch.rand(2, 1, 128, 128)
        expected = reference_encoder()(images)
        assert torch.allclose(model.embed_image(images), expected, atol=1e-5)

    @torch.no_grad()
    def test_equals_segment_anything_without_relative_positions(self) -> None:
        reference = reference_encoder(relative=False)
        model = core_mri.create_model("sam_vit_micro", relative_positions=False).eval()
        model.image_encoder.load_state_dict(reference.state_dict())
        images = torch.rand(1, 1, 128, 128)
        assert torch.allclose(model.embed_image(images), reference(images), atol=1e-5)

    def test_with_and_without_onednn(self, model: PromptableSegmenter) -> None:
        images = torch.rand(1, 1, 128, 96)
        with torch.no_grad():
            fast = model.embed_image(images)
        assert torch.allclose(fast, model.embed_image(images), atol=1e-5)

    @torch.no_grad()
    def test_other_sizes_interpolate_relative_positions_as_segment_anything(
        self, model: PromptableSegmenter
    ) -> None:
        # The reference takes another size only with a position table of that size.
        reference = reference_encoder()
        images = torch.rand(1, 1, 64, 96)
        from timm.layers import resample_abs_pos_embed_nhwc

        table = resample_abs_pos_embed_nhwc(reference.pos_embed, [4, 6])
        reference.pos_embed = nn.Parameter(table)
        embedding = model.embed_image(images)
        assert embedding.shape == (1, 32, 4, 6)
        assert torch.allclose(embedding, reference(images), atol=1e-5)

    @torch.no_grad()
    def test_features(self, model: PromptableSegmenter) -> None:
        images = torch.rand(2, 3, 64, 128)
        cls, patches = model.image_encoder(images)
        assert patches.shape == (2, 4, 8, 64)
        assert torch.allclose(cls, patches.mean((1, 2)))
        assert torch.equal(model.image_encoder.intermediates(images, [0, -1])[1], patches)

    def test_gradients_reach_every_table(self, model: PromptableSegmenter) -> None:
        model.embed_image(torch.rand(1, 1, 128, 128)).square().mean().backward()
        assert all(p.grad is not None for p in model.image_encoder.parameters())
        model.zero_grad(set_to_none=True)

    def test_wrong_input(self, model: PromptableSegmenter) -> None:
        with pytest.raises(ConfigError, match="patch size 16"):
            model.embed_image(torch.rand(1, 1, 60, 64))
        with pytest.raises(DataError, match="1 or 3"):
            model.embed_image(torch.rand(1, 4, 64, 64))
        with pytest.raises(DataError, match=r"\[0, 4095\]") as caught:
            model.embed_image(torch.tensor([0.0, 4095.0]).repeat(1, 1, 64, 32))
        assert caught.value.code == "WEIGHTS-07"
        encoder = core_mri.create_model("sam_vit_micro").image_encoder
        with pytest.raises(DataError, match="nan"):
            encoder.eval()(torch.full((1, 1, 64, 64), torch.nan))

    def test_tensors_of_sam(self) -> None:
        with torch.device("meta"):
            names = core_mri.create_model("sam_vit_b").state_dict().keys()
        from segment_anything import sam_model_registry

        with torch.device("meta"):
            assert names == sam_model_registry["vit_b"]().state_dict().keys()
        assert len(names) == 314


POINTS = (torch.tensor([[[30.0, 40.0], [100.0, 8.0]]]), torch.tensor([[1, 0]]))
BOX = torch.tensor([[10.0, 20.0, 90.0, 110.0]])


class TestDecoder:
    @pytest.mark.parametrize("multimask", [False, True])
    @pytest.mark.parametrize("given", [("points",), ("boxes",), ("points", "boxes", "mask")])
    @torch.no_grad()
    def test_equals_segment_anything(
        self, model: PromptableSegmenter, given: tuple[str, ...], multimask: bool
    ) -> None:
        embedding = torch.randn(1, 32, 8, 8)
        everything = {"points": POINTS, "boxes": BOX, "mask": torch.randn(1, 1, 32, 32)}
        prompts = {name: everything[name] for name in given}
        sparse, dense = model.prompt_encoder(
            points=prompts.get("points"), boxes=prompts.get("boxes"), masks=prompts.get("mask")
        )
        logits, iou = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
        )
        ours = model.decode(embedding, multimask=multimask, **prompts)
        assert torch.allclose(ours.logits, logits, atol=1e-5)
        assert torch.allclose(ours.iou, iou, atol=1e-5)

    @torch.no_grad()
    def test_prompts_do_not_see_each_other(self, model: PromptableSegmenter) -> None:
        embedding = torch.randn(1, 32, 8, 8)
        boxes = torch.tensor([[0.0, 0.0, 50.0, 60.0], [64.0, 64.0, 100.0, 127.0]])
        together = model.decode(embedding, boxes=boxes).logits
        alone = model.decode(embedding, boxes=boxes[1:]).logits
        assert torch.allclose(together[1:], alone, atol=1e-5)

    @torch.no_grad()
    def test_one_embedding_each_or_one_for_all(self, model: PromptableSegmenter) -> None:
        embedding, boxes = torch.randn(1, 32, 8, 8), BOX.repeat(3, 1)
        shared = model.decode(embedding, boxes=boxes).logits
        each = model.decode(embedding.repeat(3, 1, 1, 1), boxes=boxes).logits
        assert torch.allclose(shared, each, atol=1e-6)

    @torch.no_grad()
    def test_a_point_means_the_same_place_at_every_size(self, model: PromptableSegmenter) -> None:
        def token(x: float, grid: int) -> Tensor:
            points = (torch.tensor([[[x, x]]]), torch.tensor([[1]]))
            return model._encode(1, points, None, None, (grid, grid))[0]

        # The center of pixel 31.5 of 64 is that of pixel 63.5 of 128.
        assert torch.allclose(token(31.5, 4), token(63.5, 8), atol=1e-6)

    def test_forward_answers_at_the_size_of_the_images(self, model: PromptableSegmenter) -> None:
        masks = model(torch.rand(2, 1, 64, 128), boxes=BOX.repeat(2, 1))
        assert masks.logits.shape == (2, 1, 64, 128)
        assert masks.iou.shape == (2, 1)

    def test_no_prompt(self, model: PromptableSegmenter) -> None:
        with pytest.raises(ConfigError, match="number of prompts"):
            model.decode(torch.randn(1, 32, 8, 8))
        with pytest.raises(ConfigError, match="2"):
            model.decode(torch.randn(2, 32, 8, 8), boxes=BOX)


class TestLinear:
    @pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (24,)])
    @torch.no_grad()
    def test_equals_torch(self, shape: tuple[int, ...]) -> None:
        linear, x = Linear(24, 7), torch.randn(shape)
        plain = nn.functional.linear(x, linear.weight, linear.bias)
        assert torch.allclose(linear(x), plain, atol=1e-6)
        assert torch.allclose(linear.gelu(x), nn.functional.gelu(plain), atol=1e-6)
        strided = torch.randn(24, 6).T
        assert torch.allclose(linear(strided), linear(strided.contiguous()))

    def test_gradients_and_autocast_use_torch(self) -> None:
        x = torch.randn(2, 24)
        assert not onednn_fits(x, Linear(24, 7).weight)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert Linear(24, 7)(x).dtype == torch.bfloat16

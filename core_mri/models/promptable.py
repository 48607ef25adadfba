"""Segmentation by prompts: an encoder's embedding, SAM's prompt encoder and SAM's mask decoder.

The prompt encoder and mask decoder are those of the `segment-anything` package (Kirillov et al.,
arXiv 2304.02643). Shapes: B images, N prompts, P points a prompt, h x w the grid of the embedding.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from core_mri.errors import ConfigError
from core_mri.models.linear import accelerate, onednn_fits
from core_mri.models.two_way import two_way, upscale

MLP_WIDTH, NUM_HEADS, MASK_CHANNELS, IOU_WIDTH = 2048, 8, 16, 256
"""Sizes of the two-way transformer and of the heads of every published SAM."""


class Masks(NamedTuple):
    """What the decoder answers to N prompts, M masks each."""

    logits: Tensor
    """[N, M, 4 h, 4 w]; above 0 is inside."""
    iou: Tensor
    """[N, M], the decoder's own estimate of each mask's intersection over union."""


class ImageEncoder(Protocol):
    """What `PromptableSegmenter` needs of an encoder."""

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""

    def embedding(self, images: Tensor) -> Tensor:
        """Images [B, 1 or 3, H, W] in [0, 1] -> [B, channels, H / patch_size, W / patch_size]."""


class PromptableSegmenter(nn.Module):
    """Points, boxes and rough masks in, masks out; with SAM's encoder, SAM itself.

    Args:
        image_encoder: An `nn.Module` with the members of `ImageEncoder`.
        image_size: Side in pixels at which it was trained.
        channels: Of the embedding; a multiple of 16.
        num_masks: Masks offered for an ambiguous prompt, beside the one for an unambiguous prompt.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        *,
        image_size: int,
        channels: int = 256,
        num_masks: int = 3,
    ) -> None:
        super().__init__()
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        self.arguments = {
            "image_size": image_size,
            "channels": channels,
            "num_masks": num_masks,
        }
        self.image_size = image_size
        grid = image_size // image_encoder.patch_size
        self.image_encoder = cast("nn.Module", image_encoder)
        self.prompt_encoder = PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=MASK_CHANNELS,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=channels, mlp_dim=MLP_WIDTH, num_heads=NUM_HEADS
            ),
            num_multimask_outputs=num_masks,
            iou_head_depth=3,
            iou_head_hidden_dim=IOU_WIDTH,
        )
        accelerate(self.mask_decoder)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return cast("int", self.image_encoder.patch_size)

    def embed_image(self, images: Tensor) -> Tensor:
        """Images [B, 1 or 3, H, W] in [0, 1] -> [B, channels, h, w].

        H and W are any multiples of the patch size.
        """
        return cast("Tensor", self.image_encoder.embedding(images))  # type: ignore[operator]

    def decode(
        self,
        embedding: Tensor,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        multimask: bool = False,
    ) -> Masks:
        """Answer N prompts, each of all that is given for it.

        Args:
            embedding: [1 or N, channels, h, w]; a single one is shared by all prompts.
            points: Pixel indices (x, y) [N, P, 2] of the images, and labels [N, P]: 1 inside, 0
                outside, -1 no point (to fill up prompts of fewer points).
            boxes: [N, 4], (x0, y0, x1, y1), pixel indices of the first and last pixel.
            mask: [N, 1, 4 h, 4 w], logits of a mask to start from, such as an earlier answer.
            multimask: Three masks for a prompt that may mean several things, instead of one.

        Raises:
            ConfigError: CONFIG-05 when there is no prompt, or the numbers of prompts differ.
        """
        counts = {
            len(prompt) for prompt in (points and points[0], boxes, mask) if prompt is not None
        }
        if len(counts) != 1 or len(embedding) not in {1, *counts}:
            raise ConfigError(
                "CONFIG-05",
                f"points, boxes and masks must be of one number of prompts and the embedding of "
                f"that number or 1, got {sorted(counts)} and {len(embedding)}.",
            )
        (count,) = counts
        height, width = embedding.shape[-2:]
        positions = self.prompt_encoder.pe_layer((height, width))[None]
        sparse, dense = self._encode(count, points, boxes, mask, (height, width))
        source = (embedding + dense).expand(count, -1, -1, -1)
        if not onednn_fits(source):
            return self._predict(source, positions, sparse, multimask)
        # One by one the patches stay in the cache, and memory does not grow with the prompts.
        answers = [
            self._predict(source[n : n + 1], positions, sparse[n : n + 1], multimask)
            for n in range(count)
        ]
        return Masks(*(torch.cat(parts) for parts in zip(*answers, strict=True)))

    def forward(
        self,
        images: Tensor,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        multimask: bool = False,
    ) -> Masks:
        """Embed and decode, one prompt an image; logits [B, M, H, W] at the size of the images."""
        logits, iou = self.decode(
            self.embed_image(images), points, boxes, mask, multimask=multimask
        )
        return Masks(
            functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False),
            iou,
        )

    def _encode(
        self,
        count: int,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        mask: Tensor | None,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Tokens [N, T, channels] of points and boxes, and a map [N or 1, channels, h, w]."""
        encoder = self.prompt_encoder
        # The prompt encoder divides (index + 0.5) by the size it was trained at.
        weight = encoder.no_mask_embed.weight
        sides = [side * self.patch_size for side in reversed(grid)]
        scale = weight.new_tensor([self.image_size / side for side in sides])
        sparse, _ = encoder(
            points=points and ((points[0] + 0.5) * scale - 0.5, points[1]),
            boxes=None if boxes is None else (boxes + 0.5) * scale.repeat(2) - 0.5,
            masks=None,
        )
        if mask is not None:
            return sparse.expand(count, -1, -1), encoder.mask_downscaling(mask)
        return sparse, weight[..., None, None]

    def _predict(self, source: Tensor, positions: Tensor, sparse: Tensor, multimask: bool) -> Masks:
        """SAM's mask decoder, with an embedding for each prompt or one for all."""
        decoder = self.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], 1)
        answers, patches = two_way(
            decoder.transformer,
            source.flatten(2).mT.contiguous(),
            positions.flatten(2).mT.contiguous(),
            tokens,
        )
        chosen = range(1, decoder.num_mask_tokens) if multimask else range(1)
        kernels = torch.stack(
            [decoder.output_hypernetworks_mlps[i](answers[:, 1 + i]) for i in chosen], 1
        )
        height, width = source.shape[-2:]
        logits = upscale(decoder.output_upscaling, patches, kernels, (height, width))
        return Masks(logits, decoder.iou_prediction_head(answers[:, 0])[:, list(chosen)])

"""Decoders on a ViT encoder that can be released with it: tokens of several depths to logits.

Shapes: B images, P planes of each (neighbour slices and sequences), L depths, h x w patches of D
channels, H x W pixels, C classes with background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_WIDTH = 8
"""Fewest channels; full resolution is where a decoder spends its time."""


class Decoder(nn.Module):
    """What all decoders share: the arguments, the fusion of planes, the first answer.

    Args:
        embed_dim: Width of the encoder's tokens, D.
        num_classes: Classes including background, C.
        num_levels: Number of depths fed in, L.
        patch_size: Patch side of the encoder; from one that is no power of two (DINOv2's 14) the
            last doubling is an interpolation.
        width: Channels at patch resolution.
        planes: Planes of an image that were encoded one by one, P.
        fusion: How their tokens become one: side by side, or a mean with learned weights per depth
            (softmax, equal at first).
    """

    classify: nn.Module
    """The layer whose bias is the class prior."""

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_levels: int,
        *,
        patch_size: int = 16,
        width: int = 32,
        planes: int = 1,
        fusion: Literal["concatenate", "mean"] = "concatenate",
    ) -> None:
        super().__init__()
        self.arguments = {
            "embed_dim": embed_dim,
            "num_classes": num_classes,
            "num_levels": num_levels,
            "patch_size": patch_size,
            "width": width,
            "planes": planes,
            "fusion": fusion,
        }
        self.planes = planes
        self.token_width = embed_dim * planes
        self.plane_scores: nn.Parameter | None = None
        if fusion == "mean" and planes > 1:
            self.token_width = embed_dim
            self.plane_scores = nn.Parameter(torch.zeros(num_levels, planes))

    @torch.no_grad()
    def start_from(self, frequencies: Tensor) -> None:
        """Let the untrained decoder answer with the class frequencies of the training pixels.

        ``bias_c = log(max(f_c, 1e-4))``, the prior initialization of RetinaNet (Lin et al., arXiv
        1708.02002) for several classes: otherwise the first hundred steps go to learning that most
        of a slice is background, and small structures are lost on the way.

        Args:
            frequencies: [C], non-negative, sum 1.
        """
        bias = self.classify.get_parameter("bias")
        bias.copy_(frequencies.clamp_min(1e-4).log())

    def fuse(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Tokens [B, P, h, w, D] per depth (without P if there is one plane) to [B, *, h, w]."""
        if self.planes == 1:
            return [level.permute(0, 3, 1, 2) for level in levels]
        if self.plane_scores is None:
            return [level.permute(0, 1, 4, 2, 3).flatten(1, 2) for level in levels]
        weights = self.plane_scores.softmax(1)
        return [
            torch.einsum("bphwd,p->bdhw", level, own)
            for level, own in zip(levels, weights, strict=True)
        ]


class LinearHead(Decoder):
    """A linear map of the tokens of all depths, interpolated: what the features say by themselves.

    `width` is not used.
    """

    def __init__(self, embed_dim: int, num_classes: int, num_levels: int, **arguments: object):
        super().__init__(embed_dim, num_classes, num_levels, **arguments)  # type: ignore[arg-type]
        self.classify = nn.Conv2d(self.token_width * num_levels, num_classes, 1)

    def forward(self, levels: Sequence[Tensor], images: Tensor) -> Tensor:
        """Decode; as `SegmentationHead.forward`."""
        return _grow(self.classify(torch.cat(self.fuse(levels), 1)), images)


class SegmentationHead(Decoder):
    """Patch tokens of several depths to per-pixel logits, by a small convolutional decoder.

    Each level is projected to `width` channels, levels are concatenated and mixed, then doubled in
    size by transposed convolutions until a patch is its pixels again (patch 8: three times), and
    joined by a shallow look at the image itself, whose edges are sharper than any token's. A linear
    path from patch resolution, interpolated, is added to the logits: it finds a structure in a few
    steps, and the rest learns its outline. The design follows UNETR (Hatamizadeh et al., arXiv
    2103.10504) reduced to what a handful of labels can train; most of its time goes to full
    resolution, hence the few channels there. `width` is halved at each doubling, at least
    `MIN_WIDTH`.
    """

    def __init__(self, embed_dim: int, num_classes: int, num_levels: int, **arguments: object):
        super().__init__(embed_dim, num_classes, num_levels, **arguments)  # type: ignore[arg-type]
        width, patch_size = int(self.arguments["width"]), int(self.arguments["patch_size"])
        self.project = nn.ModuleList(
            nn.Conv2d(self.token_width, width, 1) for _ in range(num_levels)
        )
        self.mix = _conv_block(width * num_levels, width)
        channels = width
        steps: list[nn.Module] = []
        for _ in range(patch_size.bit_length() - 1):
            smaller = max(MIN_WIDTH, channels // 2)
            steps.append(nn.ConvTranspose2d(channels, smaller, 2, stride=2))
            steps.append(_conv_block(smaller, smaller))
            channels = smaller
        self.upsample = nn.Sequential(*steps)
        self.image = nn.Conv2d(self.planes, MIN_WIDTH, 5, padding=2)
        self.mix_image = _conv_block(channels + MIN_WIDTH, 2 * MIN_WIDTH)
        self.classify = nn.Conv2d(2 * MIN_WIDTH, num_classes, 1)
        self.coarse = nn.Conv2d(width, num_classes, 1, bias=False)

    def forward(self, levels: Sequence[Tensor], images: Tensor) -> Tensor:
        """Decode.

        Args:
            levels: L tensors [B, h, w, D], with several planes [B, P, h, w, D].
            images: [B, P, H, W], the images the levels came from; H = h * patch_size.

        Returns:
            Logits [B, C, H, W].
        """
        maps = [
            project(level) for project, level in zip(self.project, self.fuse(levels), strict=True)
        ]
        mixed = self.mix(torch.cat(maps, 1))
        grown = _grow(self.upsample(mixed), images)
        joined = self.mix_image(torch.cat([grown, self.image(images)], 1))
        return self.classify(joined) + _grow(self.coarse(mixed), images)


class PyramidHead(Decoder):
    """A U-Net whose bottom is the encoder: a convolutional stem joins it at every resolution.

    The stem halves the image until a pixel is a patch (strides 1, 2, 4, ...). From the deepest
    tokens upwards, each doubling joins the stem's features of that resolution and the next
    shallower tokens, interpolated to it (UNETR, arXiv 2103.10504; spatial prior of ViT-Adapter,
    Chen et al., arXiv 2205.08534). A linear path as in `SegmentationHead` is added.
    """

    def __init__(self, embed_dim: int, num_classes: int, num_levels: int, **arguments: object):
        super().__init__(embed_dim, num_classes, num_levels, **arguments)  # type: ignore[arg-type]
        width, patch_size = int(self.arguments["width"]), int(self.arguments["patch_size"])
        doublings = patch_size.bit_length() - 1
        # Channels by resolution, from patches (0) to pixels (`doublings`).
        channels = [max(MIN_WIDTH, width >> step) for step in range(doublings + 1)]
        stem = [nn.Sequential(nn.Conv2d(self.planes, MIN_WIDTH, 5, padding=2), nn.GELU())]
        for finer, coarser in zip([MIN_WIDTH, *channels[-2:0:-1]], channels[-2::-1], strict=True):
            stem.append(_conv_block(finer, coarser, stride=2))
        self.stem = nn.ModuleList(stem)
        entries = [min(num_levels - 1 - level, doublings) for level in range(num_levels)]
        self.entries = entries
        """Doubling at which each level joins; the deepest at 0."""
        self.project = nn.ModuleList(
            nn.Conv2d(self.token_width, channels[entry], 1) for entry in entries
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(channels[step], channels[step + 1], 2, stride=2)
            for step in range(doublings)
        )
        steps = []
        for step, own in enumerate(channels):
            inputs = own * entries.count(step) + (own if step else 0)
            inputs += MIN_WIDTH if step == doublings else own
            steps.append(_conv_block(inputs, 2 * MIN_WIDTH if step == doublings else own))
        self.join = nn.ModuleList(steps)
        self.classify = nn.Conv2d(2 * MIN_WIDTH, num_classes, 1)
        self.coarse = nn.Conv2d(channels[0], num_classes, 1, bias=False)

    def forward(self, levels: Sequence[Tensor], images: Tensor) -> Tensor:
        """Decode; as `SegmentationHead.forward`."""
        seen = [self.stem[0](images)]
        for stage in self.stem[1:]:
            seen.append(stage(seen[-1]))
        maps = [
            project(level) for project, level in zip(self.project, self.fuse(levels), strict=True)
        ]
        joined = coarse = maps[-1]
        for step, own in enumerate(reversed(seen)):
            grown = self.up[step - 1](joined) if step else joined
            like = images if step == len(self.up) else grown
            parts = [own, *([grown] if step else [])]
            parts += [
                tokens for tokens, entry in zip(maps, self.entries, strict=True) if entry == step
            ]
            joined = self.join[step](torch.cat([_grow(part, like) for part in parts], 1))
            coarse = coarse if step else self.coarse(joined)
        return self.classify(joined) + _grow(coarse, images)


class MaskHead(Decoder):
    """SAM's mask decoder without prompts: a learned token per class looks at the embedding.

    The deepest tokens go through a neck as SAM's encoder has one, then through the two-way
    transformer of `segment-anything` (Kirillov et al., arXiv 2304.02643) with one mask token a
    class; masks come at a quarter of the neck's stride and are interpolated. MRI-CORE's few-shot
    code works so, with one class. The transformer is ``8 * width`` channels wide (256 as in SAM for
    32); `num_levels` but the last are not used.
    """

    def __init__(self, embed_dim: int, num_classes: int, num_levels: int, **arguments: object):
        super().__init__(embed_dim, num_classes, num_levels, **arguments)  # type: ignore[arg-type]
        from segment_anything.modeling import MaskDecoder, TwoWayTransformer
        from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
        from timm.layers import LayerNorm2d

        from core_mri.models.promptable import IOU_WIDTH, MLP_WIDTH, NUM_HEADS

        channels = 8 * int(self.arguments["width"])
        self.neck = nn.Sequential(
            nn.Conv2d(self.token_width, channels, 1, bias=False),
            LayerNorm2d(channels, eps=1e-6),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels, eps=1e-6),
        )
        self.positions = PositionEmbeddingRandom(channels // 2)
        transformer = TwoWayTransformer(
            depth=2, embedding_dim=channels, mlp_dim=MLP_WIDTH, num_heads=NUM_HEADS
        )
        parts = MaskDecoder(
            transformer_dim=channels,
            transformer=transformer,
            num_multimask_outputs=num_classes - 1,
            iou_head_hidden_dim=IOU_WIDTH,
        )
        self.transformer = transformer
        self.tokens = nn.Parameter(parts.mask_tokens.weight.detach().clone())  # [C, channels]
        self.upscale = parts.output_upscaling
        self.kernels = parts.output_hypernetworks_mlps
        self.classify = _Bias(num_classes)

    def forward(self, levels: Sequence[Tensor], images: Tensor) -> Tensor:
        """Decode; as `SegmentationHead.forward`."""
        source = self.neck(self.fuse(levels)[-1])
        positions = self.positions(source.shape[-2:])[None].expand_as(source)
        tokens = self.tokens.expand(source.shape[0], -1, -1)  # traced graphs need the shape
        answers, keys = self.transformer(source, positions, tokens)
        upscaled = self.upscale(keys.mT.unflatten(2, source.shape[-2:]))
        kernels = torch.stack([mlp(answers[:, i]) for i, mlp in enumerate(self.kernels)], 1)
        return self.classify(_grow(torch.einsum("bnc,bchw->bnhw", kernels, upscaled), images))


class _Bias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.bias[:, None, None]


DECODERS: dict[str, type[Decoder]] = {
    "linear": LinearHead,
    "light": SegmentationHead,
    "pyramid": PyramidHead,
    "sam": MaskHead,
}
"""By the name used in recipes and weights folders."""


def decoder_name(decoder: nn.Module) -> str:
    """The name of a decoder's class in `DECODERS`."""
    return next(name for name, kind in DECODERS.items() if type(decoder) is kind)


def _grow(maps: Tensor, like: Tensor) -> Tensor:
    """Interpolate to the size of `like`, bilinear, where it is another."""
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return functional.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


def _conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(min(8, outputs), outputs),
        nn.GELU(),
    )

"""Light heads on a ViT encoder that can be released with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class SegmentationHead(nn.Module):
    """Patch tokens of several depths to per-pixel logits, by a small convolutional decoder.

    Each level is projected to `width` channels, levels are concatenated and mixed, then doubled in
    size by transposed convolutions until a patch is its pixels again (patch 8: three times), and
    joined by a shallow look at the image itself, whose edges are sharper than any token's. A linear
    path from patch resolution, interpolated, is added to the logits: it finds a structure in a few
    steps, and the rest learns its outline. The design follows UNETR (Hatamizadeh et al., arXiv
    2103.10504) reduced to what a handful of labels can train; most of its time goes to full
    resolution, hence the few channels there.

    Args:
        embed_dim: Width of the encoder's tokens, D.
        num_classes: Classes including background, C.
        num_levels: Number of depths fed in.
        patch_size: Patch side of the encoder, a power of two.
        width: Channels at patch resolution; halved at each doubling, at least `MIN_WIDTH`.
    """

    MIN_WIDTH = 8

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_levels: int,
        *,
        patch_size: int = 16,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.arguments = {
            "embed_dim": embed_dim,
            "num_classes": num_classes,
            "num_levels": num_levels,
            "patch_size": patch_size,
            "width": width,
        }
        self.project = nn.ModuleList(nn.Conv2d(embed_dim, width, 1) for _ in range(num_levels))
        self.mix = _conv_block(width * num_levels, width)
        channels = width
        steps: list[nn.Module] = []
        for _ in range(patch_size.bit_length() - 1):
            smaller = max(self.MIN_WIDTH, channels // 2)
            steps.append(nn.ConvTranspose2d(channels, smaller, 2, stride=2))
            steps.append(_conv_block(smaller, smaller))
            channels = smaller
        self.upsample = nn.Sequential(*steps)
        self.image = nn.Conv2d(1, self.MIN_WIDTH, 5, padding=2)
        self.mix_image = _conv_block(channels + self.MIN_WIDTH, 2 * self.MIN_WIDTH)
        self.classify = nn.Conv2d(2 * self.MIN_WIDTH, num_classes, 1)
        self.coarse = nn.Conv2d(width, num_classes, 1, bias=False)

    @torch.no_grad()
    def start_from(self, frequencies: Tensor) -> None:
        """Let the untrained head answer with the class frequencies of the training pixels.

        ``bias_c = log(max(f_c, 1e-4))``, the prior initialization of RetinaNet (Lin et al., arXiv
        1708.02002) for several classes: otherwise the first hundred steps go to learning that most
        of a slice is background, and small structures are lost on the way.

        Args:
            frequencies: [C], non-negative, sum 1.
        """
        bias = self.classify.get_parameter("bias")
        bias.copy_(frequencies.clamp_min(1e-4).log())

    def forward(self, levels: Sequence[Tensor], images: Tensor) -> Tensor:
        """Decode.

        Args:
            levels: `num_levels` tensors [B, h, w, D].
            images: [B, 1, H, W], the images the levels came from; H = h * patch_size.

        Returns:
            Logits [B, C, H, W].
        """
        maps = [
            project(level.permute(0, 3, 1, 2))  # [B, h, w, D] -> [B, width, h, w]
            for project, level in zip(self.project, levels, strict=True)
        ]
        mixed = self.mix(torch.cat(maps, 1))
        joined = self.mix_image(torch.cat([self.upsample(mixed), self.image(images)], 1))
        coarse = functional.interpolate(
            self.coarse(mixed), images.shape[-2:], mode="bilinear", align_corners=False
        )
        return self.classify(joined) + coarse


def _conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(min(8, outputs), outputs),
        nn.GELU(),
    )

"""Light heads on a ViT encoder that can be released with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SegmentationHead(nn.Module):
    """Patch tokens of several depths to per-pixel logits, by a small convolutional decoder.

    Each level is projected to `width` channels, levels are concatenated and mixed, then doubled in
    size by transposed convolutions while the patch size allows it (patch 8: three times), so the
    logits are drawn at pixel resolution rather than interpolated from patches. The design follows
    UNETR (Hatamizadeh et al., arXiv 2103.10504) reduced to what a handful of labels can train.

    Args:
        embed_dim: Width of the encoder's tokens, D.
        num_classes: Classes including background, C.
        num_levels: Number of depths fed in.
        patch_size: Patch side of the encoder, a power of two.
        width: Channels at patch resolution; halved at each doubling, at least 16.
        image_skip: Also feed the image itself at full resolution (its edges are sharper than any
            token's).
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_levels: int,
        *,
        patch_size: int = 16,
        width: int = 64,
        image_skip: bool = True,
    ) -> None:
        super().__init__()
        self.arguments = {
            "embed_dim": embed_dim,
            "num_classes": num_classes,
            "num_levels": num_levels,
            "patch_size": patch_size,
            "width": width,
            "image_skip": image_skip,
        }
        self.image_skip = image_skip
        self.project = nn.ModuleList(nn.Conv2d(embed_dim, width, 1) for _ in range(num_levels))
        self.mix = _conv_block(width * num_levels, width)
        channels = width
        steps = []
        for _ in range(patch_size.bit_length() - 1):
            smaller = max(16, channels // 2)
            steps.append(
                nn.Sequential(
                    nn.ConvTranspose2d(channels, smaller, 2, stride=2),
                    _conv_block(smaller, smaller),
                )
            )
            channels = smaller
        self.upsample = nn.Sequential(*steps)
        self.last = nn.Sequential(
            _conv_block(channels + int(image_skip), channels),
            nn.Conv2d(channels, num_classes, 1),
        )

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
        features = self.upsample(self.mix(torch.cat(maps, 1)))
        if self.image_skip:
            features = torch.cat([features, images], 1)
        return self.last(features)


def _conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(min(8, outputs), outputs),
        nn.GELU(),
    )

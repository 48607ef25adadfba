"""SAM's neck, and a plain ViT behind one: what a mask decoder reads.

Kirillov et al., "Segment Anything", arXiv 2304.02643. Shapes: B images, D width of a token, L
depths, h x w the grid of patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core_mri.models.encoder import Encoder, check_depths


def sam_neck(width: int, channels: int) -> nn.Sequential:
    """Maps [B, width, h, w] to [B, channels, h, w]: 1x1 and 3x3 convolution, a norm after each."""
    from timm.layers import LayerNorm2d

    return nn.Sequential(
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
    )


class NeckedEncoder(nn.Module):
    """A plain ViT as the ``image_encoder`` of a `PromptableSegmenter`.

    Args:
        encoder: The ViT.
        depths: Blocks whose patch tokens the neck reads, side by side; (-1,) is the last alone.
        channels: Of the embedding.

    Raises:
        ConfigError: CONFIG-05 when a depth does not exist.
    """

    def __init__(self, encoder: Encoder, *, depths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.depths = tuple(check_depths(depths, encoder.depth))
        self.neck = sam_neck(len(self.depths) * encoder.embed_dim, channels)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.encoder.patch_size

    def embedding(self, images: Tensor) -> Tensor:
        """Images [B, 1 or 3, H, W] in [0, 1] -> [B, channels, h, w]; errors as `Encoder`'s."""
        return self.project(self.encoder.intermediates(images, self.depths))

    def project(self, levels: Sequence[Tensor]) -> Tensor:
        """Patch tokens L x [B, h, w, D] of the depths -> [B, channels, h, w]."""
        projected: Tensor = self.neck(torch.cat(list(levels), -1).permute(0, 3, 1, 2))
        return projected

"""Patch tokens of images under an encoder that does not move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core_mri.models.encoder import Encoder

ENCODE_BATCH = 64
"""Slices encoded at once when nothing is trained through the encoder."""


class FrozenFeatures:
    """Patch tokens of fixed images under a fixed encoder: computed once if they fit in memory.

    Args:
        encoder: Does not move.
        images: [N, 1, S, S].
        depths: Blocks whose tokens are wanted.
        limit_bytes: Memory the tokens may take.
    """

    def __init__(
        self, encoder: Encoder, images: Tensor, depths: Sequence[int], limit_bytes: float
    ) -> None:
        self.encoder = encoder
        self.images = images
        self.depths = depths
        tokens = (images.shape[-1] // encoder.patch_size) ** 2
        size = len(images) * tokens * encoder.embed_dim * len(depths) * images.element_size()
        self._levels = encode(encoder, images, depths) if size <= limit_bytes else None

    def levels(self, index: Tensor) -> list[Tensor]:
        """One [*, h, w, D] per depth for the images at `index`, [B] or [B, P]."""
        if self._levels is None:
            found = encode(self.encoder, self.images[index.flatten()], self.depths)
            return [level.unflatten(0, index.shape) for level in found]
        return [level[index] for level in self._levels]


@torch.no_grad()
def encode(encoder: Encoder, images: Tensor, depths: Sequence[int]) -> list[Tensor]:
    """Patch tokens [N, h, w, D] per depth of images [N, 1, S, S], in batches, without gradients."""
    batches = [encoder.intermediates(batch, depths) for batch in torch.split(images, ENCODE_BATCH)]
    return [torch.cat(levels) for levels in zip(*batches, strict=True)]

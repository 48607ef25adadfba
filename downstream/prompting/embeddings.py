"""Embeddings of fixed images under an encoder that does not move, for a decoder in training."""

from __future__ import annotations

import torch
from torch import Tensor

from core_mri.models.neck import NeckedEncoder
from core_mri.models.promptable import PromptableSegmenter
from downstream.segmentation.features import FrozenFeatures

BATCH = 8
"""Images embedded at a time; SAM's 1024 px take 292 MiB each."""


class FrozenEmbeddings:
    """What does not move is computed once if it fits in memory; a neck of ours moves, SAM's not.

    Args:
        model: Its encoder does not move.
        images: [N, 1, S, S].
        limit_bytes: Memory that may be taken.
    """

    def __init__(self, model: PromptableSegmenter, images: Tensor, limit_bytes: float) -> None:
        self.model, self.images = model, images
        self._features: FrozenFeatures | None = None
        self._embedding: Tensor | None = None
        encoder = model.image_encoder
        if isinstance(encoder, NeckedEncoder):
            self._features = FrozenFeatures(encoder.encoder, images, encoder.depths, limit_bytes)
            return
        places = (images.shape[-1] // model.patch_size) ** 2
        size = len(images) * places * model.arguments["channels"] * images.element_size()
        if size <= limit_bytes:
            self._embedding = self._embed(images)

    def of(self, index: Tensor) -> Tensor:
        """[B, channels, h, w] of the images at `index` [B]."""
        encoder = self.model.image_encoder
        if self._features is not None and isinstance(encoder, NeckedEncoder):
            return encoder.project(self._features.levels(index))
        if self._embedding is not None:
            return self._embedding[index]
        return self._embed(self.images[index])

    @torch.no_grad()
    def _embed(self, images: Tensor) -> Tensor:
        return torch.cat([self.model.embed_image(batch) for batch in images.split(BATCH)])

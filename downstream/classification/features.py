"""Class tokens of slices under an encoder that stays as it is, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core_mri.models.encoder import Encoder
from core_mri.slice_grid import image_to_square
from downstream.classification.examples import Example
from downstream.cohort import read_image
from downstream.feature_cache import FeatureCache

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

BATCH = 64
"""Slices encoded at once."""


@dataclass(frozen=True)
class Tokens:
    """Class tokens of the slices of volumes, computed once.

    Args:
        encoder: It stays as it is.
        fingerprint: Hash of its weights.
        registry: Where the voxels are.
        image_size: Side of the encoder's slices, pixels.
        cache: Keeps them for other cells, if there is one.
    """

    encoder: Encoder
    fingerprint: str
    registry: Registry
    image_size: int
    cache: FeatureCache | None = None
    _known: dict[str, Tensor] = field(default_factory=dict)

    def of_volume(self, row: VolumeRow) -> Tensor:
        """[S, D] on the CPU."""
        if row.volume_id not in self._known:
            device = self.encoder.mask_token.device.type
            window = [row.window_low, row.window_high]
            self._known[row.volume_id] = (
                self._encode(row)
                if self.cache is None
                else self.cache.tensors(
                    lambda: {"cls": self._encode(row)},
                    "slice tokens", self.fingerprint, row.pixel_hash, window, self.image_size,
                    device,
                )["cls"]
            )  # fmt: skip
        return self._known[row.volume_id]

    def bags(self, example: Example) -> list[Tensor]:
        """[S, D] of each of its volumes; of a slice [1, D]."""
        found = [self.of_volume(row) for row in example.rows]
        if example.slice_index is None:
            return found
        return [tokens[example.slice_index][None] for tokens in found]

    def means(self, examples: Sequence[Example]) -> Tensor:
        """[N, D]: means over the slices of a volume, then over the volumes of a patient."""
        rows = [
            torch.stack([tokens.mean(0) for tokens in self.bags(example)]).mean(0)
            for example in examples
        ]
        return torch.stack(rows) if rows else torch.zeros(0, self.encoder.embed_dim)

    @torch.no_grad()
    def _encode(self, row: VolumeRow) -> Tensor:
        images = image_to_square(read_image(self.registry, row), self.image_size)
        device = self.encoder.mask_token.device
        batches = torch.split(images, BATCH)
        return torch.cat([self.encoder(batch.to(device)).cls.cpu() for batch in batches])

"""A segmentation model: encoder and head, with the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from core_mri.models.encoder import Encoder
from core_mri.models.heads import SegmentationHead


class Segmenter(nn.Module):
    """``images [B, 1, H, W] in [0, 1] -> logits [B, C, H, W]``.

    Args:
        encoder: The encoder.
        head: A head whose number of levels equals ``len(depths)``.
        depths: Blocks of the encoder whose patch tokens feed the head.
        labels: Class index to name, background (0) left out.
        image_size: Side in pixels at which the head was trained.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: SegmentationHead,
        *,
        depths: Sequence[int],
        labels: Mapping[int, str],
        image_size: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.depths = tuple(depths)
        self.labels = dict(labels)
        self.image_size = image_size

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images [B, 1, H, W]; H and W are multiples of the patch size."""
        return self.head(self.encoder.intermediates(images, self.depths), images)


def spread_depths(depth: int, num_levels: int) -> tuple[int, ...]:
    """`num_levels` block indices spread evenly over an encoder, the last block included."""
    return tuple(round((level + 1) * depth / num_levels) - 1 for level in range(num_levels))

"""A segmentation model: encoder and decoder, with the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from core_mri.models.encoder import Encoder
from core_mri.models.heads import Decoder


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a whole volume is segmented; released with the model that was validated this way."""

    pixel_mm: float = 0.0
    """Pixels given to the encoder, mm; slices larger than its window are cut into windows that
    overlap. 0 resizes every slice whole, whatever its spacing."""
    overlap: float = 0.25
    """Share of a window that the next one covers again."""
    mirror: bool = False
    """Average with the answer to the mirrored slice (columns turned round)."""
    scales: tuple[float, ...] = (1.0,)
    """Average the answers at these sizes of the slice."""
    smoothing_mm: float = 0.0
    """Standard deviation of the Gaussian that averages the probabilities of neighbour slices."""
    smallest_island: float = 0.0
    """Parts of a structure smaller than this share of its largest part are removed (1: all)."""


class Segmenter(nn.Module):
    """``images [B, P, H, W] in [0, 1] -> logits [B, C, H, W]``.

    The P planes of an image are a slice's neighbours, from above to below, each in all sequences:
    ``P = (2 neighbours + 1) * channels``. The encoder sees them one by one, the decoder together.

    Args:
        encoder: The encoder.
        head: A decoder whose number of levels equals ``len(depths)``.
        depths: Blocks of the encoder whose patch tokens feed the head.
        labels: Class index to name, background (0) left out.
        image_size: Side in pixels at which the head was trained.
        sequences: Names of the sequences a scan must have, in order; one may be nameless.
        neighbours: Slices on either side that the decoder sees too.
        inference: How whole volumes are segmented.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: Decoder,
        *,
        depths: Sequence[int],
        labels: Mapping[int, str],
        image_size: int,
        sequences: Sequence[str] = ("",),
        neighbours: int = 0,
        inference: Inference | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.depths = tuple(depths)
        self.labels = dict(labels)
        self.image_size = image_size
        self.sequences = tuple(sequences)
        self.neighbours = neighbours
        self.inference = inference or Inference()

    @property
    def planes(self) -> int:
        """P."""
        return (2 * self.neighbours + 1) * len(self.sequences)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images [B, P, H, W]; H and W are multiples of the patch size."""
        if images.shape[1] == 1:
            return self.head(self.encoder.intermediates(images, self.depths), images)
        levels = self.encoder.intermediates(images.flatten(0, 1)[:, None], self.depths)
        return self.head([level.unflatten(0, images.shape[:2]) for level in levels], images)


def spread_depths(depth: int, num_levels: int) -> tuple[int, ...]:
    """`num_levels` block indices spread evenly over an encoder, the last block included."""
    return tuple(round((level + 1) * depth / num_levels) - 1 for level in range(num_levels))

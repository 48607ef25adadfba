"""Labelled slices as the encoder sees them, with the neighbours that the decoder may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.slice_grid import SliceGrid
from core_mri.slice_inference import neighbour_windows, windows
from downstream.config import Recipe


@dataclass(frozen=True)
class LabelledSlices:
    """Slices of one example on the encoder's grid."""

    images: Tensor
    """[M, C, S, S] in [0, 1]: the labelled slices and those they look at, C sequences each."""
    masks: Tensor
    """[N, S, S] int64 class indices of the labelled ones."""
    looks_at: Tensor | None = None
    """[N, W] index into `images`: each labelled slice with its neighbours, the middle one itself.
    None: every image is labelled and looked at alone."""
    gap_mm: float | None = None
    """Distance of the slices, when they are a whole volume in order."""

    @property
    def windows(self) -> Tensor:
        """`looks_at`, written out."""
        return torch.arange(len(self.masks))[:, None] if self.looks_at is None else self.looks_at


def labelled_slices(
    images: npt.NDArray[np.float32],
    masks: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    recipe: Recipe,
    slices: Sequence[int] | None = None,
) -> list[LabelledSlices]:
    """An example; several where slices are larger than the encoder's window.

    Args:
        images: [S, H, W] in [0, 1], or [C, S, H, W] of several sequences.
        masks: [S, H, W] class indices.
        spacing_mm: Distance of slices, rows and columns.
        recipe: Size, pixel, neighbours.
        slices: Those that count as labelled; None: all.
    """
    channels = images[None] if images.ndim == 3 else images
    count, rows, columns = masks.shape
    chosen = list(range(count)) if slices is None else list(slices)
    used, looks_at = torch.unique(
        neighbour_windows(chosen, recipe.neighbours, count), return_inverse=True
    )
    grid = SliceGrid(
        rows=rows,
        columns=columns,
        size=recipe.image_size,
        pixel_mm=recipe.pixel_mm,
        spacing_mm=(spacing_mm[1], spacing_mm[2]),
    )
    seen = torch.cat([grid.images(channel[used.numpy()]) for channel in channels], 1)
    classes = grid.masks(masks[chosen])
    size = recipe.image_size
    return [
        LabelledSlices(
            seen[..., y : y + size, x : x + size],
            classes[:, y : y + size, x : x + size],
            looks_at,
            spacing_mm[0] if slices is None else None,
        )
        for y, x in windows(grid.shape, size, recipe.overlap)
    ]

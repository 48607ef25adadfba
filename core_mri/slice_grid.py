"""The encoder's square grid of a slice, and the way back to the stored one.

A slice [H, W] is padded with zeros to a centred square of side max(H, W) and resized to `size`
pixels. Both directions share half-pixel centers (``align_corners=False``), so a point keeps its
place; when the side equals `size` only padding is added and the way back is exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional


def image_to_square(slices: npt.NDArray[np.float32], size: int) -> Tensor:
    """Slices [S, H, W] in [0, 1] to images [S, 1, size, size], bilinear with antialiasing."""
    square = _pad(torch.from_numpy(np.ascontiguousarray(slices)))[:, None]
    if square.shape[-1] == size:
        return square
    resized = functional.interpolate(
        square, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.clamp(0, 1)


def mask_to_square(classes: npt.NDArray[np.uint8], size: int) -> Tensor:
    """Classes [S, H, W] to int64 [S, size, size], nearest; to train with, never to score."""
    square = _pad(torch.from_numpy(np.ascontiguousarray(classes)))[:, None]
    return functional.interpolate(square, (size, size), mode="nearest-exact")[:, 0].long()


def square_to_classes(logits: Tensor, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Logits [S, C, size, size] to the most likely class [S, rows, columns] on the stored grid.

    Logits are interpolated, not classes: the boundary keeps its place between pixels.
    """
    cropped = square_to_slices(logits, rows, columns)
    classes: npt.NDArray[np.uint8] = cropped.argmax(1).to(torch.uint8).cpu().numpy()
    return classes


def square_to_slices(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Maps [S, C, n, n] of pixels or patches, bilinear, to [S, C, rows, columns]."""
    side = max(rows, columns)
    if maps.shape[-1] != side:
        maps = functional.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
    top, left = (side - rows) // 2, (side - columns) // 2
    return maps[..., top : top + rows, left : left + columns]


def patch_grid(rows: int, columns: int, size: int, patch_size: int) -> npt.NDArray[np.float64]:
    """[4, 4], index (slice, row, column of a patch) to index (slice, row, column of its center).

    Args:
        rows: Of the stored slice.
        columns: Of the stored slice.
        size: Side of the encoder's square, pixels.
        patch_size: Side of a patch, pixels.
    """
    side = max(rows, columns)
    step = patch_size * side / size  # stored pixels from patch to patch
    grid = np.diag([1.0, step, step, 1.0])
    grid[1:3, 3] = step / 2 - 0.5 - np.array([(side - rows) // 2, (side - columns) // 2])
    return grid


def _pad(slices: Tensor) -> Tensor:
    """[S, H, W] to [S, N, N], N = max(H, W), centred."""
    rows, columns = slices.shape[-2:]
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    return functional.pad(slices, (left, side - columns - left, top, side - rows - top))

"""The encoder's grid of a slice, and the way back to the stored one.

A slice [H, W] is padded with zeros to a centred square of side max(H, W) and resized to `size`
pixels; or, by `SliceGrid` with `pixel_mm`, resampled to that pixel and padded to at least `size`.
Both directions share half-pixel centers (``align_corners=False``), so a point keeps its place; when
the side equals `size` only padding is added and the way back is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class SliceGrid:
    """How slices of one shape and spacing are given to an encoder."""

    rows: int
    """Of the stored slice."""
    columns: int
    """Of the stored slice."""
    size: int
    """Side of the encoder's window, pixels."""
    pixel_mm: float = 0.0
    """Side of a pixel; 0 fits the whole slice into the window."""
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    """Stored distance of rows and of columns."""

    @property
    def resampled(self) -> tuple[int, int]:
        """Rows and columns at `pixel_mm`, the nearest whole numbers."""
        row, column = (
            max(1, round(count * mm / self.pixel_mm))
            for count, mm in zip((self.rows, self.columns), self.spacing_mm, strict=True)
        )
        return row, column

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of an image, at least `size`."""
        if not self.pixel_mm:
            return self.size, self.size
        rows, columns = self.resampled
        return max(rows, self.size), max(columns, self.size)

    def images(self, slices: npt.NDArray[np.float32]) -> Tensor:
        """Slices [S, rows, columns] in [0, 1] to [S, 1, *shape]."""
        if not self.pixel_mm:
            return image_to_square(slices, self.size)
        resized = functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(slices))[:, None],
            self.resampled,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return _pad(resized.clamp(0, 1), self.shape)

    def masks(self, classes: npt.NDArray[np.uint8]) -> Tensor:
        """Classes [S, rows, columns] to int64 [S, *shape], nearest; to train with only."""
        if not self.pixel_mm:
            return mask_to_square(classes, self.size)
        resized = functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(classes))[:, None],
            self.resampled,
            mode="nearest-exact",
        )
        return _pad(resized, self.shape)[:, 0].long()

    def restore(self, maps: Tensor) -> Tensor:
        """Maps [S, C, *shape] to [S, C, rows, columns], bilinear."""
        if not self.pixel_mm:
            return square_to_slices(maps, self.rows, self.columns)
        (height, width), (rows, columns) = maps.shape[-2:], self.resampled
        top, left = (height - rows) // 2, (width - columns) // 2
        return functional.interpolate(
            maps[..., top : top + rows, left : left + columns],
            (self.rows, self.columns),
            mode="bilinear",
            align_corners=False,
        )


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


def _pad(slices: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
    """[..., H, W] to [..., *shape], by default a square of side max(H, W), centred."""
    rows, columns = slices.shape[-2:]
    height, width = shape or (max(rows, columns),) * 2
    top, left = (height - rows) // 2, (width - columns) // 2
    return functional.pad(slices, (left, width - columns - left, top, height - rows - top))

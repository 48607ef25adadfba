"""Random resized crops of slices of any size, for a whole batch at once.

Shapes: B slices, V crops of each, S side of a crop after resizing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

_ATTEMPTS = 10
BOX_DRAWS = 2 * _ATTEMPTS + 2
"""Uniform numbers that a box takes."""
Floats = npt.NDArray[np.float64]


def draw_boxes(
    shapes: npt.NDArray[np.int64],
    uniform: Floats,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> npt.NDArray[np.int64]:
    """Boxes as `torchvision`'s RandomResizedCrop draws them, in whole pixels.

    The area is uniform in `scale`, width / height log-uniform in `aspect`; the first of ten tries
    that fits is taken, else the largest square. (Inception crops, Szegedy et al., arXiv 1409.4842.)

    Args:
        shapes: [B, 2], height and width of each slice.
        uniform: [B, V, BOX_DRAWS] in [0, 1).
        scale: Lowest and highest area, as a fraction of the slice.
        aspect: Lowest and highest width / height.

    Returns:
        [B, V, 4]: top, left, height, width.
    """
    rows, columns = shapes[:, 0, None, None], shapes[:, 1, None, None]  # [B, 1, 1]
    area = rows * columns * between(scale, uniform[..., :_ATTEMPTS])
    ratio = log_between(aspect, uniform[..., _ATTEMPTS:-2])
    heights, widths = np.rint((area / ratio) ** 0.5), np.rint((area * ratio) ** 0.5)
    fits = (heights > 0) & (heights <= rows) & (widths > 0) & (widths <= columns)
    first = fits.argmax(-1)[..., None]
    square = np.minimum(rows, columns)
    height, width = (
        np.where(fits.any(-1, keepdims=True), np.take_along_axis(sides, first, -1), square)[..., 0]
        for sides in (heights, widths)
    )
    top = np.floor(uniform[..., -2] * (rows[..., 0] - height + 1))
    left = np.floor(uniform[..., -1] * (columns[..., 0] - width + 1))
    return np.stack([top, left, height, width], -1).astype(np.int64)


def crop_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop and resize, bilinear with antialiasing (`torchvision`'s ``resized_crop``).

    On the CPU crop by crop by torch's own filter; elsewhere all at once by `resize_by_products`.

    Args:
        images: Float32 [B, H, W].
        boxes: Integers [B, V, 4] on the CPU: top, left, height, width, px; within the image.
        size: S.

    Returns:
        Float32 [B, V, S, S].
    """
    if images.device.type != "cpu":
        return resize_by_products(images, boxes.to(images.device, non_blocking=True), size)
    views = images.new_empty(*boxes.shape[:2], size, size)
    for image, own, row in zip(images, boxes.tolist(), views, strict=True):
        for (top, left, height, width), view in zip(own, row, strict=True):
            crop = image[None, None, top : top + height, left : left + width]
            view[...] = functional.interpolate(
                crop, (size, size), mode="bilinear", antialias=True, align_corners=False
            )[0, 0]
    return views


def resize_by_products(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """`crop_resize` as ``Ry @ image @ Rx.T``, with the filter in the matrices.

    So crops of different sizes share one batched call, which an accelerator needs; a CPU wastes
    time on the zeros in the matrices (measured: a seventh of the speed).
    """
    top, left, height, width = boxes.float().unbind(-1)  # each [B, V]
    rows = _resize_matrix(top, height, images.shape[1], size)  # [B, V, S, H]
    columns = _resize_matrix(left, width, images.shape[2], size)  # [B, V, S, W]
    with torch.autocast(images.device.type, enabled=False):
        half = rows.flatten(1, 2) @ images  # [B, V * S, W]
        return half.unflatten(1, rows.shape[1:3]) @ columns.mT


def _resize_matrix(start: Tensor, length: Tensor, extent: int, size: int) -> Tensor:
    """Weights [B, V, size, extent] that resample `length` pixels from `start` on to `size` pixels.

    ``w(o, i) = max(0, 1 - |i + 1/2 - c(o)| / s)`` with c(o) the place of the output pixel and
    s = max(1, length / size); pixels outside the crop have weight 0 and rows sum to one.
    """
    scale = (length / size)[..., None, None]
    start, length = start[..., None, None], length[..., None, None]
    output = torch.arange(size, device=start.device)[:, None]
    pixel = torch.arange(extent, device=start.device)[None, :]
    center = start + (output + 0.5) * scale
    weights = (1 - (pixel + 0.5 - center).abs() / scale.clamp_min(1)).clamp_min(0)
    weights = weights * ((pixel >= start) & (pixel < start + length))
    return weights / weights.sum(-1, keepdim=True)


def between(limits: tuple[float, float], uniform: Floats) -> Floats:
    """Uniform numbers in [0, 1) as uniform numbers within `limits`."""
    return limits[0] + (limits[1] - limits[0]) * uniform


def log_between(limits: tuple[float, float], uniform: Floats) -> Floats:
    """Uniform numbers in [0, 1) as log-uniform numbers within `limits`."""
    low, high = np.log(limits)
    return np.asarray(np.exp(low + (high - low) * uniform))

"""What fastMRI does to k-space and images before a network sees them.

Source: facebookresearch/fastMRI, `fastmri/data/transforms.py` and `fastmri/data/mri_data.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

INSTANCE_EPS = 1e-11
"""Added to the standard deviation by `normalize_instance`."""
CLAMP = 6.0
"""fastMRI's U-Net sees normalized images cut to +-6 standard deviations."""


class Normalized(NamedTuple):
    """A normalized image, and what turns it back: ``image * std + mean``."""

    image: Tensor
    mean: Tensor
    std: Tensor


def center_crop(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """The middle of the last two dimensions, from ``(n - crop) // 2`` on.

    Args:
        x: ``[..., H, W]``, real or complex.
        shape: Rows and columns to keep, such as (320, 320).

    Raises:
        ValueError: `shape` is empty or larger than `x`.
    """
    height, width = x.shape[-2:]
    if not (0 < shape[0] <= height and 0 < shape[1] <= width):
        raise ValueError(f"cannot crop {height}x{width} to {shape[0]}x{shape[1]}")
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    return x[..., top : top + shape[0], left : left + shape[1]]


def crop_size(recon_size: tuple[int, int], width: int) -> tuple[int, int]:
    """The square that fastMRI scores: the reconstruction size, but never wider than k-space.

    Args:
        recon_size: Rows and columns of reconSpace.
        width: Phase-encode lines of k-space.
    """
    return (width, width) if width < recon_size[1] else recon_size


def zero_padding(mask: Tensor, left: int, right: int) -> Tensor:
    """A mask without the lines that were never acquired, only padded with zeros.

    Args:
        mask: Bool ``[..., phase]``.
        left: First acquired line, `KSpaceHeader.padding_left`.
        right: First line behind the acquired ones, `KSpaceHeader.padding_right`.
    """
    lines = torch.arange(mask.shape[-1], device=mask.device)
    return mask & (lines >= left) & (lines < right)


def normalize(x: Tensor, mean: Tensor | float, std: Tensor | float, eps: float = 0.0) -> Tensor:
    """``(x - mean) / (std + eps)``."""
    return (x - mean) / (std + eps)


def normalize_instance(x: Tensor, eps: float = INSTANCE_EPS) -> Normalized:
    """Normalize an image by its own mean and standard deviation (divisor n - 1).

    fastMRI normalizes the target by the mean and deviation of the *input* image, and cuts both to
    +-`CLAMP`.

    Args:
        x: Real, any shape.
        eps: Added to the deviation, so that an empty image gives zeros.
    """
    mean, std = x.mean(), x.std()
    return Normalized(normalize(x, mean, std, eps), mean, std)

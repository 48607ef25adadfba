"""Gibbs ringing: the ripples beside edges of a scan with too few lines."""

from __future__ import annotations

import torch
from torch import Tensor

from core_mri.physics import fft2c, ifft2c


def ringing(images: Tensor, kept: Tensor) -> Tensor:
    """``|F^-1 (w F x)|`` with a box w: the outer parts of k-space become zeros.

    The view counts as the field of view. Ripples are 9 % of an edge high, whatever is kept.

    Args:
        images: [N, S, S].
        kept: [N, 2, 1], part of k-space kept along rows and along columns, in (0, 1].
    """
    return ifft2c(fft2c(images) * box(kept, images.shape[-1])).abs()


def box(kept: Tensor, size: int) -> Tensor:
    """Bool [N, S, S]: ``|k| <= kept S / 2`` along both axes, k counted from the center S // 2."""
    distance = (torch.arange(size, device=kept.device) - size // 2).abs()
    rows, columns = (distance <= kept * (size / 2)).unbind(1)  # each [N, S]
    return rows[:, :, None] & columns[:, None, :]

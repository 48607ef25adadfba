"""Gibbs ringing: the ripples beside edges of a scan with too few lines."""

from __future__ import annotations

import torch
from torch import Tensor


def ringing(images: Tensor, kept: Tensor) -> Tensor:
    """``|F^-1 (w F x)|`` with a box w: the outer parts of k-space become zeros.

    The view counts as the field of view. Ripples are 9 % of an edge high, whatever is kept.

    Args:
        images: [N, S, S].
        kept: [N, 2, 1], part of k-space kept along rows and along columns, in (0, 1].
    """
    size = images.shape[-1]
    rows, columns = box(kept, size)
    # A symmetric window keeps the picture real, and half of its k-space says all. The origin of the
    # Fourier transform does not matter, as long as the window has the same one.
    window = rows[:, :, None] & columns[:, None, : size // 2 + 1]
    return torch.fft.irfft2(torch.fft.rfft2(images) * window, s=(size, size)).abs()


def box(kept: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of k-space that are kept, each bool [N, S]: ``|k| <= kept S / 2``.

    In the order of `torch.fft`: k = 0 comes first.
    """
    frequency = torch.fft.fftfreq(size, device=kept.device).abs()
    rows, columns = (frequency <= kept / 2).unbind(1)
    return rows, columns

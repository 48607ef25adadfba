"""A scanner of low field: lower resolution and more noise, which come together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from core_mri.physics.rician import normal_pairs


def low_field(images: Tensor, resolution: Tensor, sigma: Tensor, seeds: Sequence[int]) -> Tensor:
    """``|F^-1 (w (F x + s n))|``: k-space that ends early, fades out, and is noisy.

    w is a Hamming window of width ``resolution S`` along both axes, the usual filter against
    ringing; n is complex white noise and ``s = sigma / sqrt(mean w^2)``, so that the noise of the
    picture has the standard deviation `sigma` in its real and imaginary part, and the grain of the
    low resolution. Signal and noise against the field: Marques, Simonis and Webb, JMRI 49 (2019).

    Args:
        images: [N, S, S].
        resolution: [N, 1, 1] in (0, 1].
        sigma: [N, 1, 1], not negative.
        seeds: [N].
    """
    line = hamming(resolution[..., 0], images.shape[-1])
    window = line[:, :, None] * line[:, None, :]
    noise = torch.complex(*normal_pairs(images, seeds).unbind(1))
    level = sigma / window.square().mean((-2, -1), keepdim=True).sqrt()
    kspace = torch.fft.fft2(images, norm="ortho") + level * noise
    return torch.fft.ifft2(window * kspace, norm="ortho").abs()


def hamming(resolution: Tensor, size: int) -> Tensor:
    """``0.54 + 0.46 cos(2 pi k / (r S))`` for ``|k| <= r S / 2``, else 0.

    Args:
        resolution: r, [N, 1].
        size: S.

    Returns:
        [N, S] in the order of `torch.fft`: k = 0 comes first.
    """
    phase = torch.fft.fftfreq(size, device=resolution.device) / resolution
    taper = 0.54 + 0.46 * torch.cos(2 * math.pi * phase)
    return taper * (phase.abs() <= 0.5)

"""Gaussian blur, and its opposite: the smoothing and sharpening filters of consoles."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SHARPEN_SIGMA_PX = 1.0
"""What a blur of this width removes counts as detail."""


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolution with ``g(d) ~ exp(-d^2 / (2 sigma^2))``, pixels at the border reflected.

    `torchvision`'s ``gaussian_blur`` with a kernel of ``2 radius + 1`` px, each view with its own.

    Args:
        images: [N, S, S].
        sigma: [N, 1, 1] px, positive.
        radius: Where the kernel is cut off, px; beyond five sigma lies less than 1e-6 of it.
    """
    radius = min(radius, images.shape[-1] - 1)
    distance = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (distance / sigma).square())  # [N, 1, 2 * radius + 1]
    kernel = (kernel / kernel.sum(-1, keepdim=True))[:, None]
    blurred = images[None]
    for weight, padding in ((kernel.mT, (0, 0, radius, radius)), (kernel, (radius, radius, 0, 0))):
        padded = functional.pad(blurred, padding, mode="reflect")
        blurred = functional.conv2d(padded, weight, groups=len(images))
    return blurred[0]


def sharpen(images: Tensor, amount: Tensor) -> Tensor:
    """Unsharp mask: ``clip(x + a (x - blur(x)))``, the blur of `SHARPEN_SIGMA_PX`.

    Args:
        images: [N, S, S] in [0, 1].
        amount: a, [N, 1, 1], not negative.
    """
    sigma = torch.full_like(amount, SHARPEN_SIGMA_PX)
    blurred = gaussian_blur(images, sigma, kernel_radius(SHARPEN_SIGMA_PX))
    return (images + amount * (images - blurred)).clamp_(0, 1)


def kernel_radius(sigma: float) -> int:
    """Five sigma, whole px."""
    return math.ceil(5 * sigma)

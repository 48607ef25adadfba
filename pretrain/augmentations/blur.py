"""Gaussian blur, and its opposite: the smoothing and sharpening filters of consoles."""

from __future__ import annotations

import torch
from torch import Tensor

SHARPEN_SIGMA_PX = 1.0
"""What a blur of this width removes counts as detail."""


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """``K x K^T`` with the reflected kernel in the rows of K, as `torchvision`'s ``gaussian_blur``.

    ``K(i, j) ~ g(i - j) + g(i + j) + g(2 (S - 1) - i - j)``, g(d) = exp(-d^2 / (2 sigma^2)); the
    pixels at the border are not counted twice. The kernel is not cut off.

    Args:
        images: [N, S, S].
        sigma: [N, 1, 1] px, positive.
    """
    last = images.shape[-1] - 1
    place = torch.arange(last + 1, device=images.device, dtype=torch.float32)
    to, of = place[:, None], place[None, :]
    scale = -0.5 / sigma.square()
    kernel = ((to - of).square() * scale).exp_()
    kernel += ((to + of).square() * scale).exp_() * (of != 0)
    kernel += ((2 * last - to - of).square() * scale).exp_() * (of != last)
    kernel /= kernel.sum(-1, keepdim=True)
    return kernel @ images @ kernel.mT


def sharpen(images: Tensor, amount: Tensor) -> Tensor:
    """Unsharp mask: ``clip(x + a (x - blur(x)))``.

    Args:
        images: [N, S, S] in [0, 1].
        amount: a, [N, 1, 1], not negative.
    """
    blurred = gaussian_blur(images, torch.full_like(amount, SHARPEN_SIGMA_PX))
    return (images + amount * (images - blurred)).clamp_(0, 1)

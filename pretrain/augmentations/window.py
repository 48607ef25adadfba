"""Brightness and contrast: the window in which a picture is shown."""

from __future__ import annotations

from torch import Tensor


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """``clip(b x)``, as `torchvision`'s ``adjust_brightness``: air stays black.

    Args:
        images: [N, S, S] in [0, 1].
        factor: b, [N, 1, 1], not negative.
    """
    return (images * factor).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """``clip(m + c (x - m))`` with m the mean of x, as `torchvision`'s ``adjust_contrast``.

    Args:
        images: [N, S, S] in [0, 1].
        factor: c, [N, 1, 1], not negative.
    """
    mean = images.mean((-2, -1), keepdim=True)
    return (mean + (images - mean) * factor).clamp_(0, 1)

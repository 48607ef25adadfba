"""Gamma: the contrast between tissues, as other echo and repetition times would change it."""

from __future__ import annotations

from torch import Tensor


def adjust_gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """``x^gamma``, as `torchvision`'s ``adjust_gamma``.

    Args:
        images: [N, S, S] in [0, 1].
        gamma: [N, 1, 1], positive; above 1 dark tissue gets darker.
    """
    return images.pow(gamma)

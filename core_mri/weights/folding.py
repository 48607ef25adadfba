"""An RGB patch embedding and its normalisation as one patch embedding of gray images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels, for images in [0, 1]."""
SAM = ((123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255))
"""SAM's, which are ImageNet's to four digits."""
IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

Normalization = tuple[Sequence[float], Sequence[float]]


def fold(weight: Tensor, bias: Tensor, normalization: Normalization) -> tuple[Tensor, Tensor]:
    """Fold channels, mean and standard deviation, for a gray image replicated to three channels.

    ``sum_c w_c * (x - m_c) / s_c + b = (sum_c w_c / s_c) * x + b - sum_c m_c / s_c sum(w_c)``.
    Exact up to rounding, at borders too, since patches do not pad.

    Args:
        weight: [D, 3, p, p].
        bias: [D].
        normalization: Three means and three standard deviations.

    Returns:
        [D, 1, p, p] and [D].
    """
    import torch

    mean, std = (torch.tensor(values, dtype=torch.float64) for values in normalization)
    scaled = weight.double() / std[:, None, None]
    shift = (scaled * mean[:, None, None]).sum((1, 2, 3))
    return scaled.sum(1, keepdim=True).to(weight.dtype), (bias.double() - shift).to(bias.dtype)

"""The shift-invariant Haar frame and its shrinkage: what makes undersampling artifacts go.

Every level adds and subtracts neighbors ``2^l`` pixels apart along both axes, without leaving
pixels out, so the result does not depend on where blocks begin and any image size fits. The mean of
all shifts is a tight frame: `haar_synthesis` undoes `haar_analysis` exactly.
Source: Coifman and Donoho, Translation-invariant de-noising, LNS 103 (1995).
"""

from __future__ import annotations

import torch
from torch import Tensor


def haar_analysis(x: Tensor, num_levels: int) -> list[Tensor]:
    """Sums and differences of an image, around its edges; level l (from 0) grows by ``4^(l + 1)``.

    Args:
        x: ``[..., H, W]``, real or complex, of any size.
        num_levels: 1 or more.

    Returns:
        For each level, finest first, ``[3, ..., H, W]`` (differences along columns, rows, both),
        then the remaining sums ``[..., H, W]``.
    """
    bands = []
    for level in range(num_levels):
        step = 2**level
        next_row = x.roll(-step, -2)
        low, high = x + next_row, x - next_row
        low_next, high_next = low.roll(-step, -1), high.roll(-step, -1)
        bands.append(torch.stack([low - low_next, high + high_next, high - high_next]))
        x = low + low_next
    return [*bands, x]


def haar_synthesis(coefficients: list[Tensor]) -> Tensor:
    """The image of coefficients: the mean over all shifts of the inverse Haar transform."""
    x = coefficients[-1]
    for level in reversed(range(len(coefficients) - 1)):
        step = 2**level
        columns, rows, both = coefficients[level]
        low = x + columns + (x - columns).roll(step, -1)
        high = rows + both + (rows - both).roll(step, -1)
        x = (low + high + (low - high).roll(step, -2)) / 16
    return x


def haar_shrink(image: Tensor, threshold: float | Tensor, *, num_levels: int = 3) -> Tensor:
    """Shrink the differences of an image, keep its averages.

    Each complex coefficient d is multiplied with ``max(0, 1 - (t / |d|)^1.5)``, the p-shrinkage of
    p = 1/2: small ones vanish as with soft thresholding (exponent 1), edges lose less contrast.
    Source: Chartrand, Shrinkage mappings and their induced penalty functions, ICASSP (2014).

    Args:
        image: Complex ``[..., H, W]``.
        threshold: t of the finest level, not negative; halves with each level. A number or one a
            batch entry ``[..., 1, 1]``.
        num_levels: Levels.

    Returns:
        ``[..., H, W]``.
    """
    pair = torch.stack([image.real, image.imag])  # real arithmetic is faster than complex
    *bands, average = haar_analysis(pair, num_levels)
    shrunk = []
    for level, band in enumerate(bands):
        # Noise, and with it the threshold, halves from level to level; sums grow by 4.
        limit = (threshold * 4 * 2**level) ** 2
        energy = band[:, 0] ** 2 + band[:, 1] ** 2
        # (t / |d|)^2, cut at 1, where the slope of the roots is still finite
        ratio = limit / torch.maximum(energy, torch.as_tensor(limit + 1e-30, device=image.device))
        shrunk.append(band * (1 - (ratio * ratio.sqrt()).sqrt()).unsqueeze(1))
    result = haar_synthesis([*shrunk, average])
    return torch.complex(result[0], result[1])

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
    Same as `haar_analysis`, shrinkage and `haar_synthesis`, in fewer passes over memory.
    Source: Chartrand, Shrinkage mappings and their induced penalty functions, ICASSP (2014).

    Args:
        image: Complex ``[..., H, W]``.
        threshold: t of the finest level, not negative; halves with each level. A number or one a
            batch entry ``[..., 1, 1]``.
        num_levels: Levels.

    Returns:
        ``[..., H, W]``.
    """
    height, width = image.shape[-2:]
    reach = 2**num_levels - 1
    # Real arithmetic is faster than complex. What an image needs of its other side is copied once,
    # so that all neighbors are slices of what is there.
    x = _around(torch.stack([image.real, image.imag]), reach)
    bands = []
    for level in range(num_levels):
        step, skip = 2**level, 2**num_levels - 2 ** (level + 1)
        rows, columns = (slice(skip, reach + n) for n in (height, width))
        beside = slice(skip + step, reach + width + step)
        above, below = x[..., :-step, :], x[..., step:, :]
        low, high = above + below, above[..., rows, :] - below[..., rows, :]
        kept = low[..., rows, :]
        # Noise, and with it the threshold, halves from level to level; sums grow by 4.
        limit = torch.as_tensor((threshold * 4 * 2**level) ** 2, device=image.device)
        bands.append(
            (
                _shrunk(kept[..., columns] - kept[..., beside], limit),
                _shrunk(high[..., columns] + high[..., beside], limit),
                _shrunk(high[..., columns] - high[..., beside], limit),
            )
        )
        x = low[..., :-step] + low[..., step:]
    for level in reversed(range(num_levels)):
        step = 2**level
        across, down, both = bands[level]
        low = (x + across)[..., step:] + (x - across)[..., :-step]
        high = (down + both)[..., step:] + (down - both)[..., :-step]
        x = ((low + high)[..., step:, :] + (low - high)[..., :-step, :]) / 16
    return torch.complex(x[0], x[1])


def _shrunk(band: Tensor, limit: Tensor) -> Tensor:
    """Coefficients ``[2, ..., h, w]`` times ``max(0, 1 - (t / |d|)^1.5)``, t squared in `limit`."""
    energy = torch.addcmul(band[0] ** 2, band[1], band[1])
    # t / |d|, cut at 1, where the slope of the roots is still finite
    ratio = (limit / torch.maximum(energy, limit + 1e-30)).sqrt()
    return torch.addcmul(band, band, ratio * ratio.sqrt(), value=-1)


def _around(x: Tensor, reach: int) -> Tensor:
    """``[..., H, W]`` with `reach` pixels of the opposite edge on every side."""
    rows, columns = (torch.arange(-reach, n + reach, device=x.device) % n for n in x.shape[-2:])
    return x.index_select(-2, rows).index_select(-1, columns)

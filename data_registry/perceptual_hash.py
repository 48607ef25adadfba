"""A 64-bit hash of what a slice looks like: close images have close hashes (in bits).

Signs of the lowest cosine frequencies ("pHash": Zauner, Implementation and Benchmarking of
Perceptual Image Hash Functions, 2010, which compares with the median instead):

    ``C[u, v] = sum_yx c_u(y) c_v(x) I(y, x)``,  bit = ``C[u, v] > 0``

for the 63 pairs of u, v < 8 but (0, 0), and for (0, 8). The slice I is averaged onto 32 x 32 cells
first. A sign needs no median, so a mirrored slice has the hash ``h ^ FLIPS[k]``, but for bits whose
coefficient is nearly 0: ``c_u`` is odd for odd u. Brightness and size hardly matter.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_CELLS = 32
_PAIRS = [(u, v) for u in range(8) for v in range(8) if u or v] + [(0, 8)]
_ROWS = np.array([u for u, _ in _PAIRS])
_COLUMNS = np.array([v for _, v in _PAIRS])
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)

FLIPS: Hashes = np.array(
    [
        _BITS[(_ROWS % 2 * rows + _COLUMNS % 2 * columns) % 2 == 1].sum(dtype=np.uint64)
        for rows, columns in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
)
"""Bits that change when a slice is mirrored: not at all, left-right, upside down, both."""

_ZERO = 3e-4
"""Coefficients below this part of the detail have no sign: symmetric templates have many."""
MIN_DETAIL = 0.03
"""Slices with less detail (`slice_hashes`) are nearly empty: noise decides their bits."""


def slice_hashes(
    slices: npt.NDArray[np.float32],
) -> tuple[Hashes, npt.NDArray[np.float32]]:
    """Hash every slice of a volume.

    Args:
        slices: ``[S, H, W]`` in [0, 1], by the window of the volume.

    Returns:
        Hashes ``[S]``, and the detail ``[S]`` they rest on: the standard deviation that the 64
        frequencies explain, in the unit of the window.
    """
    _, height, width = slices.shape
    spectrum = _analysis(height) @ slices @ _analysis(width).T
    coefficients = spectrum[:, _ROWS, _COLUMNS]
    detail = np.sqrt((coefficients**2).sum(axis=1, dtype=np.float32))
    positive = coefficients > _ZERO * detail[:, None]
    return np.where(positive, _BITS, np.uint64(0)).sum(axis=1, dtype=np.uint64), detail


def distance(first: Hashes, second: Hashes) -> npt.NDArray[np.uint8]:
    """Bits in which hashes differ, of the four ways to mirror one the fewest."""
    difference = first ^ second
    fewest = np.bitwise_count(difference)
    for flip in FLIPS[1:]:
        np.minimum(fewest, np.bitwise_count(difference ^ flip), out=fewest)
    return fewest


@lru_cache(maxsize=256)
def _analysis(size: int) -> npt.NDArray[np.float32]:
    """``[9, size]``: mean over 32 cells, then orthonormal cosines; unit mean square overall."""
    edges = np.linspace(0, size, _CELLS + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)
    covered = np.clip(np.minimum(high, pixel + 1) - np.maximum(low, pixel), 0, None)
    cells = covered / covered.sum(axis=1, keepdims=True)
    order = np.arange(9)[:, None]
    cosines = np.cos(np.pi * (np.arange(_CELLS) + 0.5) * order / _CELLS)
    cosines *= np.where(order == 0, 1.0, np.sqrt(2.0)) / _CELLS
    return np.asarray(cosines @ cells, dtype=np.float32)

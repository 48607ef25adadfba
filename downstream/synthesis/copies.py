"""Slices that copy a training slice: what a generator that memorizes would give away."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
COPY = 0.995
"""Correlation from which a slice counts as a copy. Two scans of one person after registration stay
below it; noise of 5 % on a copy does not bring it below 0.98."""
_LEAST_SPREAD = 0.02
_CHUNK = 512


def unit_rows(slices: Float32s) -> Float32s:
    """[N, pixels] of mean 0 and length 1, of slices [N, ...]; zeros for flat ones."""
    rows = slices.reshape(len(slices), -1).astype(np.float32)
    rows = rows - rows.mean(1, keepdims=True)
    flat = rows.std(1) < _LEAST_SPREAD
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    rows[flat] = 0
    return rows


def nearest_correlation(slices: Float32s, others: Float32s) -> Float32s:
    """[N], the largest correlation of each slice with any of the others; both by `unit_rows`."""
    best = np.full(len(slices), -1.0, np.float32)
    for start in range(0, len(others), _CHUNK):
        np.maximum(best, (slices @ others[start : start + _CHUNK].T).max(1), out=best)
    return best


def copied(slices: Float32s, training: Float32s) -> npt.NDArray[np.intp]:
    """Numbers of the slices [N, H, W] that copy a training slice [M, H, W]."""
    return np.flatnonzero(nearest_correlation(unit_rows(slices), unit_rows(training)) >= COPY)

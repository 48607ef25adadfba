"""What a volume must fulfil before it is stored: finite, an image, known labels, sane size."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError, GeometryError
from core_mri.volume import Volume

MIN_SPACING_MM = 0.01
MAX_SPACING_MM = 100.0
NOISE_CORRELATION = 0.05
"""Neighboring voxels of white noise correlate by less than this. Of the 531 real images in
CORE_MRI_DATA a phase map (mostly noise around a phantom) has 0.17, every other 0.81 or more."""
_ENOUGH_VOXELS = 2000
_ENOUGH_PAIRS = 100_000


def check_volume(volume: Volume, *, allowed_labels: Collection[int] | None = None) -> None:
    """Raise the first thing that is wrong; the message holds numbers only, never header text.

    A label map may be constant: a healthy patient has an empty lesion mask.

    Args:
        volume: Image or label map.
        allowed_labels: The label values of the task; checked when given.

    Raises:
        GeometryError: GEOMETRY-01 when a voxel is under 0.01 mm or over 100 mm wide.
        DataError: DATA-04 for voxels that are NaN or infinite, DATA-05 for a constant image,
            DATA-06 for a value that is not in `allowed_labels`, DATA-12 for an image of random
            noise, such as test files whose pixels were replaced.
    """
    spacing = volume.spacing_mm
    if min(spacing) < MIN_SPACING_MM or max(spacing) > MAX_SPACING_MM:
        raise GeometryError(
            "GEOMETRY-01",
            f"voxel spacing {tuple(round(s, 6) for s in spacing)} mm is outside "
            f"[{MIN_SPACING_MM}, {MAX_SPACING_MM}] mm.",
            fix="Check the unit: spacing is in millimetres.",
        )
    array = volume.array
    if array.dtype.kind in "fc":
        finite = np.isfinite(array)
        if not finite.all():
            first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
            raise DataError(
                "DATA-04",
                f"{int(array.size - np.count_nonzero(finite))} of {array.size} voxels are not "
                f"finite, the first at index {first}.",
            )
    if volume.kind == "image" and bool((array == array.flat[0]).all()):
        raise DataError("DATA-05", f"all {array.size} voxels have the value {array.flat[0]}.")
    if volume.kind == "image" and array.size >= _ENOUGH_VOXELS:
        correlation = neighbor_correlation(array)
        if correlation < max(NOISE_CORRELATION, 4 / math.sqrt(array.size)):
            raise DataError(
                "DATA-12",
                f"neighboring voxels correlate by at most {correlation:.3f} along any axis, as in "
                f"noise; in an image by more than {NOISE_CORRELATION}.",
            )
    if allowed_labels is not None:
        foreign = sorted(set(np.unique(array).tolist()) - set(allowed_labels))
        if foreign:
            raise DataError(
                "DATA-06",
                f"{len(foreign)} label value(s) outside the list: {foreign[:8]}; allowed are "
                f"{sorted(allowed_labels)}.",
            )


def neighbor_correlation(array: npt.NDArray[np.generic]) -> float:
    """Largest magnitude, over the axes, of Pearson's correlation of voxels with their neighbors.

    White noise of n pairs gives about ``1 / sqrt(n)``. Of large volumes evenly spread planes are
    looked at, some 100,000 pairs along each axis.

    Args:
        array: Shape ``(I, J, K)`` or ``(I, J, K, T)``.
    """
    volume = array[..., array.shape[3] // 2] if array.ndim == 4 else array
    found = [0.0]
    for axis in range(3):
        length = volume.shape[axis]
        if length < 2:
            continue
        starts = np.arange(0, length - 1, max(1, volume.size // _ENOUGH_PAIRS))
        first = np.take(volume, starts, axis).astype(np.float64).ravel()
        second = np.take(volume, starts + 1, axis).astype(np.float64).ravel()
        if first.std() > 0 and second.std() > 0:
            found.append(abs(float(np.corrcoef(first, second)[0, 1])))
    return max(found)

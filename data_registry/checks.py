"""What a volume must fulfil before it is stored: finite, not constant, known labels, sane size."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from core_mri.errors import DataError, GeometryError
from core_mri.volume import Volume

MIN_SPACING_MM = 0.01
MAX_SPACING_MM = 100.0


def check_volume(volume: Volume, *, allowed_labels: Collection[int] | None = None) -> None:
    """Raise the first thing that is wrong; the message holds numbers only, never header text.

    A label map may be constant: a healthy patient has an empty lesion mask.

    Args:
        volume: Image or label map.
        allowed_labels: The label values of the task; checked when given.

    Raises:
        GeometryError: GEOMETRY-01 when a voxel is under 0.01 mm or over 100 mm wide.
        DataError: DATA-04 for voxels that are NaN or infinite, DATA-05 for a constant image,
            DATA-06 for a value that is not in `allowed_labels`.
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
    if allowed_labels is not None:
        foreign = sorted(set(np.unique(array).tolist()) - set(allowed_labels))
        if foreign:
            raise DataError(
                "DATA-06",
                f"{len(foreign)} label value(s) outside the list: {foreign[:8]}; allowed are "
                f"{sorted(allowed_labels)}.",
            )

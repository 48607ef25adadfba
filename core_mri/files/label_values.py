"""Voxels as label maps: whole numbers only, in and out of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.volume import Volume


def as_classes(path: Path, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Whole numbers in the smallest unsigned, else signed, type that holds them.

    Args:
        path: Name of the file, for messages.
        array: Integers, booleans or floating-point numbers that are whole.

    Raises:
        DataError: DATA-03 for values that are no whole numbers.
    """
    if array.dtype.kind == "f":
        values = cast("npt.NDArray[np.floating[Any]]", array)
        if not np.isfinite(values).all() or (values != np.rint(values)).any():
            raise DataError(
                "DATA-03",
                f"{path}: holds values that are no whole numbers, so it is no label map.",
                fix="Pass it as an image, or round probabilities to classes first.",
            )
        array = values.astype(np.int64)
    low, high = int(array.min()), int(array.max())
    dtype = np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))
    return array.astype(dtype)


def storable(path: Path, volume: Volume) -> npt.NDArray[np.generic]:
    """Voxels in a type that image files hold: booleans as uint8, half precision as float32.

    Args:
        path: Name of the file, for messages.
        volume: Image or label map.

    Raises:
        DataError: DATA-03 for a label map that is not of integers.
    """
    array = volume.array
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    if volume.kind == "label" and array.dtype.kind not in "ui":
        raise DataError(
            "DATA-03",
            f"{path}: a label map holds integers, got {array.dtype}.",
            fix="Convert it to an integer type first.",
        )
    return array

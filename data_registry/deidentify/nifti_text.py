"""Text in the pixels of NIfTI files: the views that are read of a DICOM series, either side up.

Converters keep the planes of the acquisition in the first two axes, and most turn rows upside down
(dcm2niix), so that each view is read both ways. Text in planes turned afterwards is missed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_registry.deidentify.burned_in import display, read_image

_MAX_PLANES = 16
"""Planes of which the minimum is taken, evenly spread over slices and volumes."""


def shows_text(path: Path) -> bool:
    """Whether the first, the middle or the minimum over planes shows text; of colours, any plane.

    Args:
        path: A NIfTI file; some planes of it are in memory at a time.

    Raises:
        ConfigError: CONFIG-06 when rapidocr is not installed.
    """
    import nibabel as nib

    loaded: Any = nib.load(path, keep_file_open=True)  # planes ascend: a packed file is read once
    rest = loaded.shape[2:]
    number = int(np.prod(rest, dtype=int))
    if loaded.get_data_dtype().fields is not None:
        planes = (_plane(loaded, index, rest) for index in range(number))
        return any(_has_text(plane) for plane in planes)
    step = -(-number // _MAX_PLANES)
    lowest: npt.NDArray[Any] | None = None
    for index in sorted({*range(0, number, step), number // 2}):
        plane = _plane(loaded, index, rest)
        if index in (0, number // 2) and _has_text(plane):
            return True
        lowest = plane if lowest is None else np.minimum(lowest, plane)
    return lowest is not None and number > 1 and _has_text(lowest)


def _plane(loaded: Any, index: int, rest: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """One plane as an image: rows are the second axis."""
    place = np.unravel_index(index, rest, order="F") if rest else ()
    plane = np.asarray(loaded.dataobj[(slice(None), slice(None), *place)])
    if plane.dtype.fields is not None:
        plane = np.mean([plane[name] for name in plane.dtype.fields], axis=0)
    if np.iscomplexobj(plane):
        plane = np.abs(plane)
    return np.nan_to_num(plane.astype(np.float32), posinf=0.0, neginf=0.0).T


def _has_text(plane: npt.NDArray[np.float32]) -> bool:
    image = display(plane)
    return bool(read_image(image) or read_image(np.ascontiguousarray(image[::-1])))

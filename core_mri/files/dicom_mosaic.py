"""Siemens mosaics: the slices of one time point as the tiles of one picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from core_mri.errors import DataError
from core_mri.files.dicom_header import open_dicom

_CSA_IMAGE_HEADER = 0x00291010


@dataclass(frozen=True)
class Mosaic:
    """How a mosaic is laid out."""

    num_slices: int
    """Tiles that hold a slice, row by row from the top left."""
    tiles: int
    """Tiles along a side: the smallest square that holds all slices."""
    normal: tuple[float, float, float] | None
    """LPS direction from the first slice to the last; None when the header states none, then it is
    that of the image plane."""


def read_mosaic(path: Path, num_slices: int) -> Mosaic:
    """Layout of a mosaic.

    Siemens' CSA header is asked first, since it states the direction of the slices, which may be
    opposite to the normal of the image plane. nibabel parses it.

    Args:
        path: The file.
        num_slices: (0019,100A) NumberOfImagesInMosaic, 0 when there is none.

    Raises:
        DataError: DATA-10 when nothing says how many slices there are.
    """
    from nibabel.nicom import csareader
    from pydicom import dcmread

    normal = None
    with open_dicom(path) as file:
        found = dcmread(file, specific_tags=[_CSA_IMAGE_HEADER], stop_before_pixels=True)
    if _CSA_IMAGE_HEADER in found:
        tags = csareader.read(found[_CSA_IMAGE_HEADER].value)["tags"]
        counts = tags.get("NumberOfImagesInMosaic", {}).get("items", [])
        direction = tags.get("SliceNormalVector", {}).get("items", [])
        num_slices = int(counts[0]) if counts else num_slices
        if len(direction) == 3:
            normal = (float(direction[0]), float(direction[1]), float(direction[2]))
    if num_slices < 1:
        raise DataError("DATA-10", f"{path}: a mosaic that does not say how many slices it holds.")
    return Mosaic(num_slices, math.ceil(math.sqrt(num_slices)), normal)

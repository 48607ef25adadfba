"""Images that state no geometry, pictures and ``.npy``: their spacing has to be declared."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError, GeometryError
from core_mri.files.label_values import as_classes
from core_mri.files.numpy_kspace import open_npy
from core_mri.volume import Volume

_GRAY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")
Spacing = tuple[float, float, float]


def read_pictures(
    paths: Sequence[Path],
    *,
    spacing_mm: Spacing | None,
    kind: Literal["image", "label"] = "image",
) -> Volume:
    """Gray-scale pictures as the slices of one volume, ``[column, row, slice]`` as in DICOM.

    Nothing says where they lie: columns are taken to run to the patient's left, rows to posterior,
    slices to superior, and the fact ``"assumed_geometry"`` is True.

    Args:
        paths: In natural order of their names (slice 2 before slice 10), whatever order is given.
        spacing_mm: Distance of columns, rows and slices; never guessed.
        kind: ``"label"`` keeps palette indices and gives the smallest type.

    Raises:
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-03 no picture,
            color, or several in one file, DATA-13 more pixels than Pillow believes.
        GeometryError: GEOMETRY-01 without spacing, GEOMETRY-02 pictures of different size.
    """
    ordered = sorted((Path(path) for path in paths), key=natural_order)
    spacing = _declared(ordered[0], spacing_mm, "a picture")
    slices = [_picture(path, kind) for path in ordered]
    for path, array in zip(ordered, slices, strict=True):
        if array.shape != slices[0].shape:
            raise GeometryError(
                "GEOMETRY-02",
                f"{path}: {array.shape[1]}x{array.shape[0]} pixels, the first picture has "
                f"{slices[0].shape[1]}x{slices[0].shape[0]}.",
            )
    array = np.stack(slices).transpose(2, 1, 0)
    return _volume(ordered[0], array, spacing, kind)


def read_npy(
    path: Path, *, spacing_mm: Spacing | None, kind: Literal["image", "label"] = "image"
) -> Volume:
    """An array of 2, 3 or 4 axes, which are those of the volume.

    Args:
        path: The file; mapped, and never unpickled.
        spacing_mm: Distance of voxels along the axes; never guessed.
        kind: ``"label"`` demands whole numbers.

    Raises:
        DataError: DATA-01, DATA-02, DATA-03 Python objects or no numbers, DATA-10 complex numbers.
        GeometryError: GEOMETRY-01 without spacing, GEOMETRY-02 for other than 2 to 4 axes.
    """
    array = open_npy(path)
    if array.dtype.kind == "c":
        raise DataError(
            "DATA-10", f"{path}: complex numbers.", fix="Read raw data with read_kspace."
        )
    if array.dtype.kind not in "uifb":
        raise DataError("DATA-03", f"{path}: holds {array.dtype}, not numbers.")
    if array.ndim not in (2, 3, 4):
        raise GeometryError(
            "GEOMETRY-02", f"{path}: expected 2 to 4 axes, got shape {array.shape}."
        )
    spacing = _declared(path, spacing_mm, "an array")
    return _volume(path, array[:, :, None] if array.ndim == 2 else array, spacing, kind)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorting key by which 2 comes before 10."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"([0-9]+)", path.name)
    ]


def _picture(path: Path, kind: str) -> npt.NDArray[np.generic]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                if getattr(picture, "n_frames", 1) > 1:
                    raise DataError("DATA-03", f"{path}: several pictures in one file.")
                return _gray(path, picture, kind)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError("DATA-13", f"{path}: more pixels than a picture has.") from None
    except UnidentifiedImageError:
        raise DataError("DATA-03", f"{path}: not a picture of a known format.") from None
    except (FileNotFoundError, PermissionError) as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    except (OSError, SyntaxError, ValueError):
        raise DataError("DATA-02", f"{path}: truncated or damaged picture.") from None


def _gray(path: Path, picture: object, kind: str) -> npt.NDArray[np.generic]:
    mode = picture.mode  # type: ignore[attr-defined]
    if mode in _GRAY or (mode == "P" and kind == "label"):
        array = np.asarray(picture)
        return array.astype(np.uint8) if array.dtype == bool else array
    channels = np.asarray(picture.convert("RGBA"))  # type: ignore[attr-defined]
    gray, alpha = channels[..., 0], channels[..., 3]
    if (channels[..., :3] != gray[..., None]).any() or (alpha != alpha.flat[0]).any():
        raise DataError("DATA-03", f"{path}: a color picture, not an MR image.")
    return gray


def _declared(path: Path, spacing_mm: Spacing | None, what: str) -> Spacing:
    if spacing_mm is None:
        raise GeometryError(
            "GEOMETRY-01",
            f"{path}: {what} states no spacing.",
            fix="Declare it: spacing_mm=(columns, rows, slices) in mm.",
        )
    return spacing_mm


def _volume(
    path: Path,
    array: npt.NDArray[np.generic],
    spacing: Spacing,
    kind: Literal["image", "label"],
) -> Volume:
    if kind == "label":
        array = as_classes(path, array)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    try:
        return Volume(np.asarray(array), affine, kind, {"assumed_geometry": True})
    except GeometryError as error:
        raise GeometryError(error.code, f"{path}: {error.message}", fix=error.fix) from None

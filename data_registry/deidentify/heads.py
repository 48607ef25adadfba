"""Which series are heads, the fit of each, and files without their faces.

Only a sure fit removes anything. A head, or a scan whose region nobody knows, that cannot be fitted
is held back (DATA-17); scans of regions that are known and no heads pass as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from data_registry.deidentify.burned_in import edited
from data_registry.deidentify.faces import FacePolicy, HeadFit, fit_head, in_face
from data_registry.label_words import find_region

if TYPE_CHECKING:
    import SimpleITK
    from pydicom import Dataset

HEADS = frozenset({"", "unknown", "brain", "head", "neck", "cervical spine", "spine"})
"""Regions whose scans may show a face; empty where nothing tells the region."""
_TEXTS = ("BodyPartExamined", "SeriesDescription", "ProtocolName", "StudyDescription")
_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class FaceVerdict:
    """What is to become of the faces of a series.

    Args:
        outcome: ``none`` for no head, ``fit`` for a head that was fitted, ``held`` for one that
            was not.
        policy: What the user asked for.
        fit: Of the head.
    """

    outcome: Literal["none", "fit", "held"]
    policy: FacePolicy
    fit: HeadFit | None = None


def look_at_series(paths: Sequence[Path], policy: FacePolicy) -> FaceVerdict:
    """The verdict on one DICOM series.

    Args:
        paths: Its files.
        policy: ``crop`` or ``deface``.
    """
    import pydicom

    try:
        files = [pydicom.dcmread(path, force=True) for path in paths]
        if find_region([str(files[0].get(name, "")) for name in _TEXTS]) not in HEADS:
            return FaceVerdict("none", policy)
        image = _image(files)
        fit = None if image is None else fit_head(image)
    except ConfigError:
        raise
    except Exception:  # decoders and damaged headers raise nearly anything; nothing is removed then
        fit = None
    return FaceVerdict("fit" if fit is not None and fit.sure else "held", policy, fit)


def without_face(content: bytes, verdict: FaceVerdict) -> bytes:
    """A DICOM file of a fitted head, its face set to the lowest value of each frame.

    Raises:
        DataError: DATA-10 when pixel data cannot be decoded, DATA-17 for several frames.
    """
    import io

    import pydicom

    assert verdict.fit is not None
    header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, force=True)
    points = _points(header)
    gone = in_face(verdict.fit, points, verdict.policy).reshape(
        int(header.Rows), int(header.Columns)
    )

    def take_away(frames: npt.NDArray[Any]) -> None:
        if len(frames) != 1:
            raise DataError(
                "DATA-17", "a head in several frames of one file, which is not cropped."
            )
        frames[0][gone] = frames[0].min()

    return edited(content, take_away)


def nifti_without_face(path: Path, out: Path, policy: FacePolicy) -> bool:
    """Write a NIfTI file without its face to `out`.

    Returns:
        Whether there was a head; nothing is written for other regions.

    Raises:
        DataError: DATA-17 for a head, or an unknown region, that cannot be fitted.
    """
    import nibabel as nib
    import SimpleITK

    if find_region([path.name.split(".")[0].replace("_", " ")]) not in HEADS:
        return False
    loaded: Any = nib.load(path)
    array = np.array(loaded.dataobj.get_unscaled())
    volume = array.reshape(*array.shape[:3], -1)[..., 0].astype(np.float32)
    if volume.ndim != 3 or min(volume.shape) < 2:
        raise DataError("DATA-17", "a scan that may be a head and is no volume.")
    lps = _LPS @ loaded.affine[:3, :3]
    spacing = np.linalg.norm(lps, axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS @ loaded.affine[:3, 3]).tolist())
    image.SetDirection((lps / spacing).ravel().tolist())
    fit = fit_head(image)
    if not fit.sure:
        raise DataError("DATA-17", _unsure(fit))
    origin = _LPS @ loaded.affine[:3, 3]
    for index in range(array.shape[2]):  # a plane at a time: coordinates are three doubles a voxel
        plane = np.indices((*array.shape[:2], 1)).reshape(3, -1).astype(np.float64)
        plane[2] = index
        gone = in_face(fit, plane.T @ lps.T + origin, policy).reshape(array.shape[:2])
        array[:, :, index][gone] = array.min()
    nib.save(type(loaded)(array, loaded.affine, loaded.header), out)
    return True


def _unsure(fit: HeadFit | None) -> str:
    reached = 0.0 if fit is None else fit.information
    return (
        "a head, or a scan of an unknown region, to which the template could not be fitted "
        f"(information {reached:.2f})."
    )


def held_back(verdict: FaceVerdict) -> DataError:
    """The error of a series that is held back."""
    return DataError("DATA-17", _unsure(verdict.fit))


def _image(files: list[Dataset]) -> SimpleITK.Image | None:
    """Slices of one orientation as a volume; None where they form none."""
    import SimpleITK

    axes = [np.array(f.ImageOrientationPatient, dtype=float) for f in files]
    if len(files) < 4 or any(not np.allclose(a, axes[0], atol=1e-3) for a in axes):
        return None
    normal = np.cross(axes[0][:3], axes[0][3:])
    files = sorted(files, key=lambda f: float(np.array(f.ImagePositionPatient, float) @ normal))
    places = np.array([np.array(f.ImagePositionPatient, float) @ normal for f in files])
    if len({(f.Rows, f.Columns) for f in files}) > 1:
        return None
    keep = np.concatenate(([True], np.diff(places) > 1e-3))  # echoes and repetitions share a place
    chosen = [f for f, first in zip(files, keep, strict=True) if first]
    steps = np.diff(places[keep])
    if len(chosen) < 4 or steps.max() > 1.5 * steps.min():
        return None
    array = np.stack([np.asarray(f.pixel_array, dtype=np.float32) for f in chosen])
    if array.ndim != 3:
        return None
    image = SimpleITK.GetImageFromArray(array)
    rows_mm, columns_mm = map(float, chosen[0].PixelSpacing)
    image.SetSpacing([columns_mm, rows_mm, float(np.median(steps))])
    image.SetOrigin([float(v) for v in chosen[0].ImagePositionPatient])
    image.SetDirection(np.column_stack((axes[0][:3], axes[0][3:], normal)).ravel().tolist())
    return image


def _points(header: Dataset) -> npt.NDArray[np.float64]:
    """Patient coordinates of each pixel, row by row (PS3.3 C.7.6.2.1.1)."""
    try:
        position = np.array(header.ImagePositionPatient, dtype=float)
        axes = np.array(header.ImageOrientationPatient, dtype=float)
        rows_mm, columns_mm = map(float, header.PixelSpacing)
    except (AttributeError, TypeError, ValueError):
        raise DataError("DATA-17", "a head without the place of its pixels.") from None
    row, column = np.indices((int(header.Rows), int(header.Columns))).reshape(2, -1)
    across = np.outer(column * columns_mm, axes[:3])
    down = np.outer(row * rows_mm, axes[3:])
    return np.asarray(position + across + down)

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

from core_mri.errors import ConfigError, CoreMRIError, DataError
from data_registry.deidentify.burned_in import edited
from data_registry.deidentify.faces import HeadFit, fit_head, in_face
from data_registry.deidentify.scope import FacePolicy
from data_registry.label_words import find_region

if TYPE_CHECKING:
    import SimpleITK

    from core_mri.files.dicom_frames import Frame

NO_FACE = frozenset(
    {
        "lumbar spine", "shoulder", "upper arm", "elbow", "forearm", "wrist", "hand", "arm",
        "breast", "heart", "chest", "liver", "kidney", "pancreas", "abdomen", "prostate",
        "uterus", "rectum", "pelvis", "hip", "thigh", "knee", "lower leg", "ankle", "foot", "leg",
        "extremity", "fetal", "phantom",
    }
)  # fmt: skip
"""Regions whose scans show no face. All others may, and those of which nobody knows the region."""
_TEXTS = ("BodyPartExamined", "SeriesDescription", "ProtocolName", "StudyDescription")
_LPS = np.diag([-1.0, -1.0, 1.0])
_MIN_SLICES = 4


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


def look_at_series(
    paths: Sequence[Path], policy: FacePolicy, picture: Path | None = None
) -> FaceVerdict:
    """The verdict on one DICOM series: of its volumes, the template is fitted to the largest.

    Args:
        paths: Its files.
        policy: ``crop`` or ``deface``.
        picture: Where a picture of the head before and after goes.
    """
    import pydicom

    from core_mri.files.dicom import group_series, read_series

    try:
        header = pydicom.dcmread(paths[0], stop_before_pixels=True, force=True)
        if find_region([str(header.get(name, "")) for name in _TEXTS]) in NO_FACE:
            return FaceVerdict("none", policy)
        volumes = [v for v in group_series(paths).series if min(v.shape) >= _MIN_SLICES]
        if not volumes:
            return FaceVerdict("held", policy)
        volume = read_series(max(volumes, key=lambda v: int(np.prod(v.shape))))
        fit = _fit(volume.array.astype(np.float32), volume.affine, policy, picture)
    except ConfigError:
        raise
    except Exception:  # decoders and damaged headers raise nearly anything; nothing is removed then
        return FaceVerdict("held", policy)
    return FaceVerdict("fit" if fit.sure else "held", policy, fit)


def without_face(content: bytes, path: Path, verdict: FaceVerdict) -> bytes:
    """A DICOM file of a fitted head, its face set to the lowest value of each frame.

    Args:
        content: The file as far as it has been changed.
        path: The file as it was, whose header tells where its frames lie.
        verdict: With a fit.

    Raises:
        DataError: DATA-10 when pixel data cannot be decoded, DATA-17 when nothing tells where the
            frames lie.
    """
    from core_mri.files.dicom_frames import quiet_pydicom, read_frames

    assert verdict.fit is not None
    fit = verdict.fit
    try:
        with quiet_pydicom():
            places = read_frames(path)
    except CoreMRIError:
        raise DataError("DATA-17", "a head without the place of its pixels.") from None
    if places[0].mosaic_tiles:
        raise DataError("DATA-17", "a mosaic of a head, which is not cropped.")

    def take_away(frames: npt.NDArray[Any]) -> None:
        for place in places:
            gone = in_face(fit, _points(place), verdict.policy).reshape(place.rows, place.columns)
            frames[place.index][gone] = frames[place.index].min()

    return edited(content, take_away)


def nifti_without_face(
    path: Path, out: Path, policy: FacePolicy, picture: Path | None = None
) -> HeadFit | None:
    """Write a NIfTI file without its face to `out`.

    Returns:
        The fit of the head; None, and nothing is written, for other regions.

    Raises:
        DataError: DATA-17 for a head, or an unknown region, that cannot be fitted.
    """
    import nibabel as nib

    if find_region([path.name.split(".")[0].replace("_", " ")]) in NO_FACE:
        return None
    loaded: Any = nib.load(path)
    array = np.array(loaded.dataobj.get_unscaled())
    volume = array.reshape(*array.shape[:3], -1)[..., 0].astype(np.float32)
    if volume.ndim != 3 or min(volume.shape) < _MIN_SLICES:
        raise DataError("DATA-17", "a scan that may be a head and is no volume.")
    fit = _fit(volume, loaded.affine, policy, picture)
    if not fit.sure:
        raise DataError("DATA-17", _unsure(fit))
    lps, origin = _LPS @ loaded.affine[:3, :3], _LPS @ loaded.affine[:3, 3]
    for index in range(array.shape[2]):  # a plane at a time: coordinates are three doubles a voxel
        plane = np.indices((*array.shape[:2], 1)).reshape(3, -1).astype(np.float64)
        plane[2] = index
        gone = in_face(fit, plane.T @ lps.T + origin, policy).reshape(array.shape[:2])
        array[:, :, index][gone] = array.min()
    nib.save(type(loaded)(array, loaded.affine, loaded.header), out)
    return fit


def held_back(verdict: FaceVerdict) -> DataError:
    """The error of a series that is held back."""
    return DataError("DATA-17", _unsure(verdict.fit))


def _fit(
    array: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    policy: FacePolicy,
    picture: Path | None,
) -> HeadFit:
    """Fit the template to ``array[i, j, k]`` and `affine` (RAS+ mm), and draw it."""
    image = _image(array, affine)
    fit = fit_head(image)
    if picture is not None and fit.information > 0:
        from data_registry.deidentify.face_pictures import write_face_picture

        write_face_picture(image, fit, policy, picture)
    return fit


def _unsure(fit: HeadFit | None) -> str:
    doubts = "no regular volume" if fit is None else ", ".join(fit.doubts)
    return f"a head, or a scan of an unknown region, that the template does not fit ({doubts})."


def _image(array: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> SimpleITK.Image:
    """An array ``[i, j, k]`` as SimpleITK holds it, in LPS+ mm."""
    import SimpleITK

    lps = _LPS @ affine[:3, :3]
    spacing = np.linalg.norm(lps, axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS @ affine[:3, 3]).tolist())
    image.SetDirection((lps / spacing).ravel().tolist())
    return image


def _points(frame: Frame) -> npt.NDArray[np.float64]:
    """Patient coordinates of each pixel, row by row (PS3.3 C.7.6.2.1.1)."""
    row, column = np.indices((frame.rows, frame.columns)).reshape(2, -1)
    across = np.outer(column * frame.column_spacing, frame.row_direction)
    down = np.outer(row * frame.row_spacing, frame.column_direction)
    return np.asarray(np.array(frame.position) + across + down)

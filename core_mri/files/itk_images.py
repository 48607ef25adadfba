"""NRRD (``.nrrd``, ``.nhdr``) and MetaImage (``.mha``, ``.mhd``) through SimpleITK.

ITK keeps geometry in LPS+ millimeters, as DICOM does; RAS+ here and nowhere else.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError, GeometryError
from core_mri.files.itk_headers import check_metaimage, check_nrrd
from core_mri.files.label_values import as_classes, storable
from core_mri.volume import FactValue, Volume

if TYPE_CHECKING:
    import SimpleITK

NRRD_SUFFIXES = (".nrrd", ".nhdr")
METAIMAGE_SUFFIXES = (".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_itk(path: Path, kind: Literal["image", "label"] = "image") -> Volume:
    """Read a NRRD or MetaImage file, with its voxels inside or beside it.

    The array keeps the type of the file. A component, vector or fourth axis comes last, as time
    does. Geometry that is not stated in patient coordinates is taken as it is, and the fact
    ``"assumed_geometry"`` is True.

    Args:
        path: The file, or the header of detached voxels.
        kind: ``"label"`` demands whole numbers and gives the smallest type that holds them.

    Raises:
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-03 another format,
            color, or a label map with values that are no classes, DATA-10 complex voxels, DATA-13
            voxels outside the folder or a size that cannot be believed.
        GeometryError: GEOMETRY-01 without or with impossible spacing, GEOMETRY-02 for other than
            3 spatial axes.
    """
    import SimpleITK as sitk  # noqa: N813  its customary name

    path = Path(path)
    is_nrrd = path.suffix.lower() in NRRD_SUFFIXES
    header = check_nrrd(path) if is_nrrd else check_metaimage(path)
    if header.color:
        raise DataError("DATA-03", f"{path}: a color picture, not an MR image.")
    # ITK reports what it finds odd on stderr; it is judged here instead.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError:
        raise DataError("DATA-02", f"{path}: damaged, its voxels cannot be read.") from None
    array = _array(path, image)
    if kind == "label":
        array = as_classes(path, array)
    affine = _affine(path, image, header.mm_per_unit)
    facts: dict[str, FactValue] = {} if header.in_patient else {"assumed_geometry": True}
    try:
        return Volume(array, affine, kind, facts)
    except GeometryError as error:
        raise GeometryError(error.code, f"{path}: {error.message}", fix=error.fix) from None


def write_itk(volume: Volume, path: Path) -> None:
    """Write a volume as ``.nrrd`` or ``.mha``, compressed, with exact voxels and geometry.

    Booleans become uint8, half precision float32. A fourth axis is written as the components of
    each voxel. The file appears complete or not at all.

    Args:
        volume: Label maps must hold integers or booleans.
        path: Ends in ``.nrrd`` or ``.mha``.

    Raises:
        ConfigError: CONFIG-05 for 3 or 4 frames of uint8 in ``.mha``, which would read as color.
        DataError: DATA-03 for a label map of another type, DATA-07 when it cannot be written.
    """
    import SimpleITK as sitk  # noqa: N813

    path = Path(path)
    array = storable(path, volume)
    frames = array.shape[3] if array.ndim == 4 else 1
    if path.suffix.lower() in METAIMAGE_SUFFIXES and array.dtype == np.uint8 and frames in (3, 4):
        raise ConfigError(
            "CONFIG-05",
            f"{path}: {frames} frames of 8 bits cannot be told from color in this format.",
            fix="Write .nrrd or .nii.gz instead.",
        )
    axes = (2, 1, 0, 3)[: array.ndim]
    image = sitk.GetImageFromArray(
        np.ascontiguousarray(array.transpose(axes)), isVector=array.ndim == 4
    )
    lps = volume.affine_lps
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection((lps[:3, :3] / np.array(volume.spacing_mm)).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(partial), useCompression=True)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink()
        reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
        raise DataError("DATA-07", f"{path}: cannot be written ({reason}).") from error


def _array(path: Path, image: SimpleITK.Image) -> npt.NDArray[np.generic]:
    """Voxels ``(I, J, K)`` or ``(I, J, K, T)``."""
    import SimpleITK as sitk  # noqa: N813

    components = image.GetNumberOfComponentsPerPixel()
    if "complex" in image.GetPixelIDTypeAsString():
        raise DataError(
            "DATA-10", f"{path}: complex voxels are not read.", fix="Save their magnitude."
        )
    dimension = image.GetDimension() + (components > 1)
    if image.GetDimension() < 3 or dimension > 4:
        raise GeometryError(
            "GEOMETRY-02", f"{path}: expected 3 spatial axes and at most one more, got {dimension}."
        )
    array = sitk.GetArrayFromImage(image)
    axes = (2, 1, 0, 3) if components > 1 else tuple(range(array.ndim))[::-1]
    voxels: npt.NDArray[np.generic] = array.transpose(axes)
    return voxels


def _affine(path: Path, image: SimpleITK.Image, mm_per_unit: float) -> npt.NDArray[np.float64]:
    """Index to RAS+ mm; a fourth axis must be independent of the other three."""
    size = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(size, size)
    if size == 4 and (direction[:3, 3].any() or direction[3, :3].any()):
        raise GeometryError("GEOMETRY-02", f"{path}: its fourth axis is mixed with space.")
    lps = np.eye(4)
    lps[:3, :3] = direction[:3, :3] * np.array(image.GetSpacing()[:3]) * mm_per_unit
    lps[:3, 3] = np.array(image.GetOrigin()[:3]) * mm_per_unit
    return _LPS_TO_RAS @ lps

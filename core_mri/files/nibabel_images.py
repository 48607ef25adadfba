"""Analyze 7.5, NIfTI pairs, Philips PAR/REC and MINC 1 and 2, through nibabel."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from core_mri.errors import CoreMRIError, DataError, GeometryError
from core_mri.files.formats import companions
from core_mri.files.label_values import as_classes
from core_mri.files.nifti import quiet_nibabel
from core_mri.volume import FactValue, Volume


def read_nibabel(
    path: Path,
    form: Literal["analyze", "nifti", "parrec", "minc"],
    kind: Literal["image", "label"] = "image",
) -> Volume:
    """Read one volume; values are scaled as the file says.

    Analyze states no orientation: voxels are placed by nibabel's default (radiological, x to the
    left), and the fact ``"assumed_geometry"`` is True. PAR/REC is scaled to displayed values ("dv":
    ``stored * slope + intercept``, what the scanner's screen shows); echoes, dynamics and phases
    are the fourth axis. No text of a header is kept.

    Args:
        path: The file; of pairs the header (``.hdr``, ``.par``).
        form: As `core_mri.files.formats.image_format` tells it.
        kind: ``"label"`` demands whole numbers and gives the smallest type that holds them.

    Raises:
        DataError: DATA-01 cannot be opened or voxels missing, DATA-02 truncated or damaged, DATA-03
            color, or a label map with values that are no classes, DATA-10 complex voxels, DATA-13
            links to other files.
        GeometryError: GEOMETRY-01 impossible spacing, GEOMETRY-02 not 3 or 4 dimensions.
    """
    path = Path(path)
    try:
        with quiet_nibabel():
            array, affine = _read(path, form)
    except CoreMRIError:
        raise
    except OSError as error:
        raise DataError("DATA-02", f"{path}: truncated, or cannot be read.") from error
    except Exception as error:
        # nibabel raises many kinds of exceptions on damaged headers.
        raise DataError("DATA-02", f"{path}: damaged ({type(error).__name__}).") from None
    if array.dtype.kind not in "uifb":
        code = "DATA-10" if array.dtype.kind == "c" else "DATA-03"
        raise DataError(code, f"{path}: voxels of type {array.dtype} are no scalar image.")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if kind == "label":
        array = as_classes(path, array)
    facts: dict[str, FactValue] = {"assumed_geometry": True} if form == "analyze" else {}
    try:
        return Volume(array, affine, kind, facts)
    except GeometryError as error:
        raise GeometryError(error.code, f"{path}: {error.message}", fix=error.fix) from None


def _read(path: Path, form: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    import nibabel
    from nibabel import parrec

    if form in ("analyze", "parrec", "nifti") and not companions(path):
        raise DataError("DATA-01", f"{path}: the file with its voxels is not there.")
    if form == "minc":
        _check_minc(path)
    if form == "parrec":
        image = parrec.load(str(path), scaling="dv")
    elif form == "minc":
        image = nibabel.load(path)
    else:
        image = (nibabel.Nifti1Pair if form == "nifti" else nibabel.AnalyzeImage).load(path)
    _check_size(path, image)
    array = np.asanyarray(image.dataobj)
    stored = np.dtype(image.get_data_dtype())
    if array.dtype == np.float64 and stored.itemsize < 8:
        array = array.astype(np.float32)
    affine = np.asarray(image.affine, dtype=np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False), affine


def _check_size(path: Path, image: Any) -> None:
    """DATA-02 when a header declares more voxels than there are bytes, before memory is taken."""
    voxels = companions(path) or [path]
    expected = int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
    stored = voxels[0].stat().st_size
    packed = path.suffix.lower() == ".mnc"
    if expected > stored and not packed:
        raise DataError("DATA-02", f"{path}: truncated, {stored} of {expected} bytes of voxels.")


def _check_minc(path: Path) -> None:
    """MINC 2 is HDF5, with all that HDF5 can do; MINC 1 is netCDF and holds its voxels plainly."""
    with path.open("rb") as file:
        is_hdf5 = file.read(4) == b"\x89HDF"
    if is_hdf5:
        from core_mri.files.hdf5 import open_hdf5

        open_hdf5(path).close()

"""NIfTI-1 and NIfTI-2 single files to volumes and back."""

from __future__ import annotations

import gzip
import io
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt

from core_mri.errors import CoreMRIError, DataError, GeometryError
from core_mri.files.label_values import as_classes, storable
from core_mri.files.limits import MAX_RATIO, MAX_UNBELIEVED_BYTES
from core_mri.volume import FactValue, Volume

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

log = logging.getLogger(__name__)

_MAX_TAIL_MB = 16

_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""By the spatial code of ``xyzt_units``: unknown (taken as mm), meter, mm, micron."""


def read_nifti(path: Path, kind: Literal["image", "label"] = "image") -> Volume:
    """Read a ``.nii`` or ``.nii.gz`` file.

    Values are ``slope * stored + intercept`` exactly: the array keeps its type when the scaling is
    trivial, stays integer when slope and intercept are whole, else it is floating point. Geometry
    is the sform where its code is set, else the qform; with neither set, voxels are placed by their
    spacing alone and the fact ``"assumed_geometry"`` is True. No text of the header is kept.

    Args:
        path: The file; the format is seen from its content.
        kind: ``"label"`` demands whole numbers and gives the smallest unsigned (else signed) type.

    Raises:
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-03 no NIfTI, not
            scalar voxels, or a label map with values that are no classes, DATA-13 a file that would
            unpack to far more than it stores or than its header says.
        GeometryError: GEOMETRY-01 impossible spacing, GEOMETRY-02 not 3 or 4 dimensions.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw, _unpacked(raw) as file, quiet_nibabel():
            array, affine, assumed = _read(path, file)
            if isinstance(file, gzip.GzipFile):
                _read_to_the_end(path, file)
    except CoreMRIError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError("DATA-02", f"{path}: truncated or damaged compressed file.") from None
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    except Exception as error:
        # nibabel raises many kinds of exceptions on damaged headers.
        raise DataError("DATA-02", f"{path}: damaged header ({type(error).__name__}).") from None
    if kind == "label":
        array = as_classes(path, array)
    facts: dict[str, FactValue] = {"assumed_geometry": True} if assumed else {}
    if assumed:
        log.warning("a NIfTI file states no orientation; voxels are placed by spacing alone")
    return _volume(path, array, affine, kind, facts)


def _volume(
    path: Path,
    array: npt.NDArray[np.generic],
    affine: npt.NDArray[np.float64],
    kind: Literal["image", "label"],
    facts: dict[str, FactValue],
) -> Volume:
    try:
        return Volume(array, affine, kind, facts)
    except GeometryError as error:
        raise GeometryError(error.code, f"{path}: {error.message}", fix=error.fix) from None


@contextmanager
def _unpacked(raw: BinaryIO) -> Iterator[BinaryIO]:
    magic = raw.read(2)
    raw.seek(0)
    if magic == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=raw, mode="rb") as file:
            yield cast(BinaryIO, file)
    else:
        yield raw


@contextmanager
def quiet_nibabel() -> Iterator[None]:
    """Header problems that nibabel reports on stderr are judged here instead."""
    from nibabel import imageglobals

    before = imageglobals.logger.disabled
    imageglobals.logger.disabled = True
    try:
        yield
    finally:
        imageglobals.logger.disabled = before


def _read(
    path: Path, file: BinaryIO
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float64], bool]:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    start = file.read(4)
    if not start:
        raise DataError("DATA-02", f"{path}: an empty file.")
    sizes = {struct.unpack(order + "i", start)[0] for order in "<>"} if len(start) == 4 else set()
    header_type = Nifti1Header if 348 in sizes else Nifti2Header if 540 in sizes else None
    if header_type is None:
        raise DataError("DATA-03", f"{path}: not a NIfTI file.")
    block = start + file.read(header_type.sizeof_hdr - 4)
    if len(block) < header_type.sizeof_hdr:
        raise DataError("DATA-02", f"{path}: the file ends inside its header.")
    # Unchecked: nibabel would replace a zero spacing by 1 mm.
    header = header_type.from_fileobj(io.BytesIO(block), check=False)
    if header["magic"].item() not in (b"n+1", b"n+2"):
        raise DataError("DATA-03", f"{path}: not a single-file NIfTI image.")
    affine, assumed = _affine(path, header)
    array = _voxels(path, file, header)
    return array, affine, assumed


def _affine(path: Path, header: Nifti1Header) -> tuple[npt.NDArray[np.float64], bool]:
    num_dims = int(header["dim"][0])
    spacing = np.abs(header["pixdim"][1 : 1 + min(num_dims, 3)].astype(np.float64))
    if not np.isfinite(spacing).all() or (spacing == 0).any():
        raise GeometryError(
            "GEOMETRY-01",
            f"{path}: voxel spacing must be positive and finite, got "
            f"{tuple(float(s) for s in spacing)}.",
        )
    units = int(header["xyzt_units"]) & 0b111
    to_mm = np.diag([_MM_PER_UNIT.get(units, 1.0)] * 3 + [1.0])
    sform, sform_code = header.get_sform(coded=True)
    qform_code = int(header["qform_code"])
    if sform_code:
        affine = sform
    elif qform_code:
        affine = header.get_qform()
    else:
        affine = header.get_base_affine()
    return to_mm @ np.asarray(affine, dtype=np.float64), not (sform_code or qform_code)


def _voxels(path: Path, file: BinaryIO, header: Nifti1Header) -> npt.NDArray[np.generic]:
    dtype = header.get_data_dtype()
    if dtype.kind not in "uif":
        raise DataError("DATA-03", f"{path}: voxels of type {dtype} are no scalar image.")
    shape = tuple(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (3 - len(shape))
    if len(shape) > 4 or min(shape) <= 0:
        raise GeometryError("GEOMETRY-02", f"{path}: expected 3 or 4 dimensions, got {shape}.")
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    offset = int(header["vox_offset"])
    skip = offset - header.sizeof_hdr
    _check_size(path, offset + num_bytes, isinstance(file, gzip.GzipFile))
    if skip < 0 or len(file.read(skip)) < skip:
        raise DataError("DATA-02", f"{path}: the file ends before its voxels.")
    data = file.read(num_bytes)
    if len(data) < num_bytes:
        raise DataError(
            "DATA-02", f"{path}: truncated, {len(data)} of {num_bytes} bytes of voxels."
        )
    stored = np.frombuffer(data, dtype).reshape(shape, order="F")
    return _scaled(stored.astype(dtype.newbyteorder("="), copy=False), *_scaling(header))


def _check_size(path: Path, expected: int, packed: bool) -> None:
    """Refuse sizes that a file cannot hold, before memory is taken for them."""
    stored = path.stat().st_size
    # Deflate packs at most 1032 bytes into one.
    if expected > stored * (1040 if packed else 1):
        raise DataError("DATA-02", f"{path}: truncated, {expected} bytes expected.")
    if expected > MAX_UNBELIEVED_BYTES and expected > MAX_RATIO * stored:
        raise DataError(
            "DATA-13",
            f"{path}: {stored} bytes would unpack to {expected}, more than {MAX_RATIO} times as "
            "many.",
            fix="Store it uncompressed if it is what it says.",
        )


def _read_to_the_end(path: Path, file: gzip.GzipFile) -> None:
    """Make gzip compare its checksum; what follows the voxels may be short only."""
    for _ in range(_MAX_TAIL_MB):
        if not file.read(1 << 20):
            return
    raise DataError("DATA-13", f"{path}: unpacks to far more than its header says.")


def _scaling(header: Nifti1Header) -> tuple[float, float]:
    """Slope and intercept; a slope of zero or none means no scaling (nifti1.h, scl_slope)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0


def _scaled(
    stored: npt.NDArray[np.generic], slope: float, intercept: float
) -> npt.NDArray[np.generic]:
    if slope == 1 and intercept == 0:
        if stored.dtype.itemsize > 8:
            return stored.astype(np.float64)
        return stored
    if stored.dtype.kind in "ui" and slope.is_integer() and intercept.is_integer():
        limits = [int(stored.min()), int(stored.max())]
        ends = [int(slope) * limit + int(intercept) for limit in limits]
        dtype = np.result_type(np.min_scalar_type(min(ends)), np.min_scalar_type(max(ends)))
        if dtype.kind in "ui":
            wide = stored.astype(np.int64) * int(slope) + int(intercept)
            return wide.astype(dtype)
    values = stored.astype(np.float64) * slope + intercept
    return values if stored.dtype.itemsize > 4 else values.astype(np.float32)


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a NIfTI-1 file; the same volume always gives the same bytes.

    The array is stored in its own type without scaling (booleans as uint8, half precision as
    float32). The affine is written as sform and, where it has no shear, as qform; no text is
    written. The file appears complete or not at all.

    Args:
        volume: Label maps must hold integers or booleans.
        path: Ends in ``.nii`` or ``.nii.gz``, which is compressed.

    Raises:
        DataError: DATA-03 for a label map of another type, DATA-07 when it cannot be written.
    """
    from nibabel.nifti1 import Nifti1Image

    path = Path(path)
    array = storable(path, volume)
    image = Nifti1Image(array, volume.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(1, 0)
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1, strip_shears=True)
    if not np.allclose(image.get_qform(), volume.affine, atol=1e-3):
        image.set_qform(None, code=0)
    content = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        # No file name and no time in the gzip header: both would differ from run to run.
        content = gzip.compress(content, compresslevel=6, mtime=0)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DataError("DATA-07", f"{path}: cannot be written ({error.strerror}).") from error

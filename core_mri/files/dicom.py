"""DICOM files to volumes: which files form one regular volume, and its voxels.

Voxel axes are (column, row, slice): the column index grows along the first three values of
ImageOrientationPatient, and slices are sorted along the normal of the image plane, which is the
order of ITK. LPS+ of the standard (PS3.3 C.7.6.2) becomes RAS+ here and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core_mri.errors import CoreMRIError, DataError
from core_mri.files.dicom_frames import Frame, quiet_pydicom, read_frames
from core_mri.files.dicom_header import BIG_ENDIAN, open_dicom
from core_mri.files.dicom_stacks import find_stacks
from core_mri.volume import FactValue, Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SeriesFiles:
    """The slices of one regular volume, in the order of their positions; picklable."""

    frames: tuple[Frame, ...]
    affine: npt.NDArray[np.float64]
    """``(4, 4)``, (column, row, slice) index to RAS+ mm."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Each file once, in the order of the slices."""
        return tuple(dict.fromkeys(frame.path for frame in self.frames))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return self.frames[0].columns, self.frames[0].rows, len(self.frames)

    @property
    def facts(self) -> Mapping[str, FactValue]:
        """Header facts of the first slice; see :data:`core_mri.files.dicom_frames.FACTS`."""
        return self.frames[0].facts


@dataclass(frozen=True)
class SeriesScan:
    """What a set of files holds."""

    series: list[SeriesFiles] = field(default_factory=list)
    """Regular volumes, in the order in which their first file was given."""
    rejected: list[tuple[Path, CoreMRIError]] = field(default_factory=list)
    """Files that are in no volume, each with the reason."""
    copies: list[tuple[Path, Path]] = field(default_factory=list)
    """Files left out because they hold the same object as another, which comes second."""


def group_series(files: Iterable[Path]) -> SeriesScan:
    """Read headers and group the files into regular volumes.

    Never raises for what a file holds. The pixel data is located but not read, so a truncated file
    is found and a damaged code stream is not.

    Args:
        files: Any files, in any order, with any or no extension.
    """
    scan = SeriesScan()
    kept: list[Frame] = []
    seen: dict[tuple[object, ...], Path] = {}
    facts: dict[tuple[tuple[str, FactValue], ...], Mapping[str, FactValue]] = {}
    with quiet_pydicom():
        for path in files:
            try:
                frames = read_frames(path)
            except CoreMRIError as error:
                scan.rejected.append((path, error))
                continue
            first = frames[0]
            # Careless tools give all slices one UID, so the rest must agree as well.
            identity = (
                first.series_uid, first.sop_uid, first.instance, first.rows, first.columns,
                first.position, first.row_direction, first.column_direction, first.traits,
            )  # fmt: skip
            if first.sop_uid and seen.setdefault(identity, path) != path:
                scan.copies.append((path, seen[identity]))
                continue
            for frame in frames:
                # The slices of a series share one mapping instead of holding equal ones.
                object.__setattr__(
                    frame, "facts", facts.setdefault(tuple(frame.facts.items()), frame.facts)
                )
            kept.extend(frames)
    stacks, irregular = find_stacks(kept)
    scan.series.extend(SeriesFiles(stack.frames, stack.affine) for stack in stacks)
    for frames, reason in irregular:
        scan.rejected.extend((path, reason) for path in dict.fromkeys(f.path for f in frames))
    if scan.copies:
        log.info("%d files hold the same object as another and are left out", len(scan.copies))
    return scan


def read_series(series: SeriesFiles) -> Volume:
    """Decode the voxels of one volume.

    RescaleSlope and RescaleIntercept are applied exactly: the array stays integer where the slope
    is 1 and the intercept an integer, else it is float32. MONOCHROME1 is inverted, so that large
    values are bright.

    Raises:
        DataError: DATA-01 when a file has gone, DATA-02 when pixel data is damaged.
    """
    columns, rows, num_slices = series.shape
    dtype = _result_dtype(series.frames)
    array: npt.NDArray[np.generic] | None = None
    with quiet_pydicom():
        for path in series.files:
            places = [k for k, frame in enumerate(series.frames) if frame.path == path]
            first = series.frames[places[0]]
            plain = first.pixels[0] >= 0
            stored = _plain(path, first) if plain else _decode(path, first.transfer_syntax)
            if first.mosaic_tiles:
                stored = _tiles(stored, first.mosaic_tiles)
            for k in places:
                frame = series.frames[k]
                if frame.index >= len(stored) or stored.shape[1:] != (rows, columns):
                    raise DataError("DATA-02", f"{path}: the pixel data does not fit its header.")
                if array is None:
                    # Not before a slice has been decoded: damaged headers state any size.
                    array = np.empty((num_slices, rows, columns), dtype=dtype)
                array[k] = _scaled(stored[frame.index], frame, dtype)
    if array is None:
        raise ValueError("a series has at least one slice")
    return Volume(array.transpose(2, 1, 0), series.affine, facts=series.facts)


def _plain(path: Path, frame: Frame) -> npt.NDArray[np.generic]:
    """What `_decode` gives, for pixel data that needs no decoder: the header is not read again.

    Bits above BitsStored are cut off, or filled with the sign, as pydicom does: old files keep
    overlays there.
    """
    offset, length = frame.pixels
    tiles = max(frame.mosaic_tiles, 1)
    rows, columns = frame.rows * tiles, frame.columns * tiles
    order = ">" if frame.transfer_syntax == BIG_ENDIAN else "<"
    dtype = np.dtype(f"{order}{frame.dtype}")
    count = length // (rows * columns * dtype.itemsize)
    try:
        with open_dicom(path) as file:
            file.seek(offset)
            content = file.read(count * rows * columns * dtype.itemsize)
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    if len(content) < count * rows * columns * dtype.itemsize:
        raise DataError("DATA-02", f"{path}: truncated since its header was read.")
    stored = np.frombuffer(content, dtype).reshape(count, rows, columns)
    unused = 8 * dtype.itemsize - frame.bits_stored
    if dtype.kind == "f" or unused <= 0:
        return stored
    native = stored.astype(dtype.newbyteorder("="))
    shifted: npt.NDArray[np.generic] = (native << unused) >> unused
    return shifted


def _decode(path: Path, transfer_syntax: str) -> npt.NDArray[np.generic]:
    """Stored values of all frames of a file, shape ``(frames, rows, columns)``."""
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    try:
        with open_dicom(path) as file:
            dataset = dcmread(file, force=True)
        dataset.file_meta.TransferSyntaxUID = transfer_syntax
        pixels: npt.NDArray[np.generic] = pixel_array(dataset, raw=True)
    except DataError:
        raise
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    except Exception as error:
        # Decoders raise nearly any exception on damaged bytes.
        raise DataError(
            "DATA-02", f"{path}: the pixel data is damaged ({type(error).__name__})."
        ) from None
    return pixels if pixels.ndim == 3 else pixels[None]


def _tiles(stored: npt.NDArray[np.generic], tiles: int) -> npt.NDArray[np.generic]:
    """A mosaic ``(1, rows, columns)`` to its tiles, row by row from the top left."""
    rows, columns = stored.shape[1] // tiles, stored.shape[2] // tiles
    square = stored[0].reshape(tiles, rows, tiles, columns)
    return square.transpose(0, 2, 1, 3).reshape(tiles * tiles, rows, columns)


def _result_dtype(frames: tuple[Frame, ...]) -> np.dtype[np.generic]:
    """The smallest type that holds every value the stored types and the rescaling can give."""
    stored = {np.dtype(frame.dtype) for frame in frames}
    scaled = any(f.slope != 1 or not f.intercept.is_integer() for f in frames)
    if scaled or any(dtype.kind == "f" for dtype in stored):
        return np.dtype(np.float32)
    if all(frame.intercept == 0 for frame in frames):
        return np.result_type(*stored)
    limits = [(np.iinfo(frame.dtype), int(frame.intercept)) for frame in frames]
    low = min(info.min + shift for info, shift in limits)
    high = max(info.max + shift for info, shift in limits)
    return np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))


def _scaled(
    stored: npt.NDArray[np.generic], frame: Frame, dtype: np.dtype[np.generic]
) -> npt.NDArray[np.generic]:
    """Modality values of one slice: ``slope * stored + intercept`` (PS3.3 C.11.1)."""
    if frame.inverted and stored.dtype.kind == "f":
        stored = stored.max() - stored
    elif frame.inverted:
        # Swap the ends of the stored range; for signed values they are -2^(b-1) and 2^(b-1) - 1.
        top = -1 if stored.dtype.kind == "i" else 2**frame.bits_stored - 1
        if top >= 0 and int(stored.max()) > top:
            raise DataError(
                "DATA-02", f"{frame.path}: stored values exceed {frame.bits_stored} bits."
            )
        stored = (top - stored.astype(np.int64)).astype(stored.dtype)
    if frame.slope == 1 and frame.intercept == 0:
        return stored
    if dtype.kind == "f":
        return stored.astype(np.float64) * frame.slope + frame.intercept
    return stored.astype(np.int64) + int(frame.intercept)

"""The volumes below a folder: one by one, none read before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core_mri.errors import CoreMRIError, DataError
from core_mri.files.dicom import group_series, read_series
from core_mri.files.formats import Format, companions, image_format
from core_mri.files.scans import read_volume
from core_mri.volume import Volume


@dataclass(frozen=True)
class FoundVolume:
    """A volume on disk."""

    name: str
    """Path of its first file below the folder that was searched; further volumes of one file end in
    ``#2``, ``#3``, ..."""
    read: Callable[[], Volume]
    """Raises as `core_mri.read_volume`."""


def find_volumes(
    path: Path, *, spacing_mm: tuple[float, float, float] | None = None
) -> tuple[list[FoundVolume], list[tuple[Path, CoreMRIError]]]:
    """Volumes of a file or a folder with its subfolders, by name; and files that are none.

    DICOM files are grouped into series by their headers; every other image file is a volume.

    Args:
        path: A file or a folder.
        spacing_mm: As `core_mri.read_volume`'s.

    Returns:
        The volumes, and DICOM or unreadable files that belong to none, each with the reason.

    Raises:
        DataError: DATA-01 when there is nothing at `path`.
    """
    if not path.exists():
        raise DataError("DATA-01", f"{path}: no such file or folder.")
    root = path if path.is_dir() else path.parent
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    forms: dict[Path, Format | None] = {}
    failed: list[tuple[Path, CoreMRIError]] = []
    for file in files:
        try:
            forms[file] = image_format(file)
        except OSError as error:
            reason = DataError("DATA-01", f"{file}: cannot be opened ({error.strerror}).")
            failed.append((file, reason))
    voxels = {voxel for file in forms for voxel in companions(file)}
    wanted: Format | None = "dicom" if any(forms.values()) else None  # very old ones have no sign
    scan = group_series(file for file, form in forms.items() if form == wanted)
    reads: list[tuple[Path, Callable[[], Volume]]] = [
        (series.files[0], partial(read_series, series)) for series in scan.series
    ]
    reads += [
        (file, partial(read_volume, file, spacing_mm=spacing_mm))
        for file, form in forms.items()
        if form not in (None, "dicom") and file not in voxels
    ]
    found: list[FoundVolume] = []
    seen: dict[Path, int] = {}
    for file, read in sorted(reads, key=lambda item: item[0]):
        seen[file] = seen.get(file, 0) + 1
        repeated = f"#{seen[file]}" if seen[file] > 1 else ""
        found.append(FoundVolume(file.relative_to(root).as_posix() + repeated, read))
    return found, [*failed, *scan.rejected]

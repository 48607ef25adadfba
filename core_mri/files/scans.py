"""Any scan on disk to a `Volume` and back; the format is seen from the content or the name."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from core_mri.errors import DataError, GeometryError
from core_mri.files.dicom import SeriesScan, group_series, read_series
from core_mri.volume import Volume

log = logging.getLogger(__name__)

_NIFTI = (".nii", ".nii.gz")


def read_volume(path: Path | str | Iterable[Path]) -> Volume:
    """Read one volume.

    Args:
        path: A NIfTI file, a DICOM file, a folder with the files of one DICOM series (searched with
            its subfolders), or the files of one series.

    Raises:
        DataError: DATA-01 nothing there, DATA-02 a truncated or damaged file, DATA-03 no image or
            more than one volume, DATA-10 pixel data that cannot be decoded.
        GeometryError: GEOMETRY-01 impossible spacing, GEOMETRY-02 slices that form no volume.
    """
    if isinstance(path, (str, Path)):
        path = Path(path)
        if path.is_dir():
            name, files = str(path), sorted(f for f in path.rglob("*") if f.is_file())
        elif path.exists():
            if path.name.lower().endswith(_NIFTI):
                from core_mri.files.nifti import read_nifti

                return read_nifti(path)
            name, files = str(path), [path]
        else:
            raise DataError("DATA-01", f"{path}: no such file or folder.")
    else:
        files = [Path(file) for file in path]
        name = f"{len(files)} files"
    if not files:
        raise DataError("DATA-01", f"{name}: the folder is empty.")
    return _only_volume(name, group_series(files))


def _only_volume(name: str, scan: SeriesScan) -> Volume:
    # A damaged slice at the end of a stack leaves no gap, so it must not pass unseen.
    for _, error in scan.rejected:
        if error.code == "DATA-02":
            raise error
    if not scan.series:
        path, error = scan.rejected[0]
        if len(scan.rejected) == 1:
            raise error
        raise DataError(
            "DATA-03",
            f"{name}: none of {len(scan.rejected)} files can be read as MR; the first, {path.name}:"
            f" {error}",
        ) from error
    if len(scan.series) > 1:
        listing = "; ".join(
            f"{number}) {len(series.files)} files from {series.files[0].name}, "
            f"{'x'.join(map(str, series.shape))}"
            for number, series in enumerate(scan.series[:10], start=1)
        )
        raise DataError(
            "DATA-03",
            f"{name}: holds {len(scan.series)} volumes, expected one: {listing}"
            f"{' ...' if len(scan.series) > 10 else ''}.",
            fix="Pass one file or the files of one series.",
        )
    if scan.rejected:
        log.warning("%d files beside the series are no part of it", len(scan.rejected))
    return read_series(scan.series[0])


def write_volume(volume: Volume, path: Path | str, like: Volume | None = None) -> None:
    """Write a volume: NIfTI where the name ends in ``.nii`` or ``.nii.gz``, else a DICOM folder.

    Args:
        volume: What to write.
        path: File or folder; a folder must be new or empty.
        like: The scan that `volume` was made from: its affine is written, and in DICOM its patient
            and study.

    Raises:
        ConfigError: CONFIG-03 when the folder is not empty, CONFIG-05 when DICOM cannot hold the
            values.
        DataError: DATA-07 when the place cannot be written.
        GeometryError: GEOMETRY-03 when `like` has another grid.
    """
    path = Path(path)
    facts = volume.facts
    if like is not None:
        if not volume.same_grid(like):
            raise GeometryError(
                "GEOMETRY-03", f"{path}: {volume} does not lie on the grid of {like}."
            )
        volume = Volume(volume.array, like.affine, volume.kind, facts)
        facts = like.facts
    if path.name.lower().endswith(_NIFTI):
        from core_mri.files.nifti import write_nifti

        write_nifti(volume, path)
    else:
        from core_mri.files.dicom_write import write_dicom_series

        write_dicom_series(volume, path, facts=facts)

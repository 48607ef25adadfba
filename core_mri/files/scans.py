"""Any scan on disk to a `Volume` and back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from core_mri.errors import ConfigError, DataError, GeometryError
from core_mri.files.dicom import SeriesScan, group_series, read_series
from core_mri.files.formats import NIFTI_SUFFIXES, Format, companions, image_format
from core_mri.files.label_values import as_classes
from core_mri.volume import Volume

log = logging.getLogger(__name__)


def read_volume(
    path: Path | str | Iterable[Path],
    *,
    kind: Literal["image", "label"] = "image",
    spacing_mm: tuple[float, float, float] | None = None,
) -> Volume:
    """Read one volume of any known format; content decides, not the name.

    DICOM (classic, enhanced, mosaic, segmentations), NIfTI, NRRD, MetaImage, Analyze, PAR/REC,
    MINC, pictures and ``.npy``. Raw data is read by `core_mri.files.read_kspace`.

    Args:
        path: A file, a folder that holds one volume (searched with its subfolders), or the files of
            one DICOM series or of one stack of pictures.
        kind: ``"label"`` demands whole numbers and gives the smallest type that holds them.
        spacing_mm: Distance of voxels along the axes of the array, for pictures (columns, rows,
            slices) and ``.npy``, which state none; without effect on other formats.

    Raises:
        DataError: DATA-01 nothing there, DATA-02 a truncated or damaged file, DATA-03 no image or
            more than one volume, DATA-10 pixel data that cannot be decoded, DATA-13 a file that
            points at others or unpacks to far more than it stores.
        GeometryError: GEOMETRY-01 impossible or no spacing, GEOMETRY-02 slices that form no volume.
    """
    if isinstance(path, (str, Path)):
        path = Path(path)
        if not path.exists():
            raise DataError("DATA-01", f"{path}: no such file or folder.")
        files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
        name = str(path)
    else:
        files = [Path(file) for file in path]
        name = f"{len(files)} files"
    if not files:
        raise DataError("DATA-01", f"{name}: the folder is empty.")
    known = _known(files)
    others = [(file, form) for file, form in known if form != "dicom"]
    if not others:
        volume = _read_dicom(name, files)
    elif all(form == "picture" for _, form in others):
        from core_mri.files.pictures_and_arrays import read_pictures

        return read_pictures([f for f, _ in others], spacing_mm=spacing_mm, kind=kind)
    elif len(known) > 1:
        listing = ", ".join(file.name for file, _ in known[:5])
        raise DataError(
            "DATA-03",
            f"{name}: holds {len(known)} images, expected one: {listing}"
            f"{' ...' if len(known) > 5 else ''}.",
            fix="Pass one file.",
        )
    else:
        return _read_file(*others[0], kind, spacing_mm)
    if kind == "label" and volume.kind != "label":
        return Volume(as_classes(files[0], volume.array), volume.affine, kind, volume.facts)
    return volume


def _known(files: list[Path]) -> list[tuple[Path, Format]]:
    """Files of known formats, without those that hold the voxels of another."""
    beside = {companion for file in files for companion in companions(file)}
    found = []
    for file in files:
        if file in beside:
            continue
        try:
            form = image_format(file)
        except OSError as error:
            raise DataError("DATA-01", f"{file}: cannot be opened ({error.strerror}).") from None
        if form is not None:
            found.append((file, form))
    return found


def _read_file(
    path: Path,
    form: Format,
    kind: Literal["image", "label"],
    spacing_mm: tuple[float, float, float] | None,
) -> Volume:
    if form in ("nrrd", "metaimage"):
        from core_mri.files.itk_images import read_itk

        return read_itk(path, kind)
    if form == "npy":
        from core_mri.files.pictures_and_arrays import read_npy

        return read_npy(path, spacing_mm=spacing_mm, kind=kind)
    if form == "analyze" or form == "parrec" or form == "minc":
        from core_mri.files.nibabel_images import read_nibabel

        return read_nibabel(path, form, kind)
    if path.suffix.lower() in (".hdr", ".img"):
        from core_mri.files.nibabel_images import read_nibabel

        return read_nibabel(path.with_suffix(".hdr"), "nifti", kind)
    from core_mri.files.nifti import read_nifti

    return read_nifti(path, kind)


def _read_dicom(name: str, files: list[Path]) -> Volume:
    from core_mri.files.segmentation import is_segmentation, read_segmentation

    if len(files) == 1 and is_segmentation(files[0]):
        return read_segmentation(files[0])
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
        patients = {str(series.facts.get("PatientID", "")) for series in scan.series}
        if len(patients) > 1:
            name = f"{name}: files of {len(patients)} patients"
        raise DataError(
            "DATA-03",
            f"{name}: holds {len(scan.series)} volumes, expected one: {listing}"
            f"{' ...' if len(scan.series) > 10 else ''}.",
            fix="Pass one file or the files of one series.",
        )
    if scan.rejected:
        log.warning("%d files beside the series are no part of it", len(scan.rejected))
    return read_series(scan.series[0])


def write_volume(
    volume: Volume,
    path: Path | str,
    like: Volume | Path | str | Sequence[Path] | None = None,
    *,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Write a volume on its own grid.

    Args:
        volume: What to write.
        path: ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``; ``.dcm`` for a label map as DICOM
            segmentation; any other name is a folder of DICOM files, which must be new or empty.
        like: The scan that `volume` was made from: its affine is written, and in DICOM its patient
            and study. For a segmentation the folder or the files of that series.
        labels: Names of the values of a label map; a DICOM segmentation holds them, other formats
            cannot.

    Raises:
        ConfigError: CONFIG-03 when the folder is not empty, CONFIG-05 when the format cannot hold
            the values or a segmentation has no source.
        DataError: DATA-07 when the place cannot be written.
        GeometryError: GEOMETRY-03 when `like` has another grid.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(".dcm") and volume.kind == "label":
        from core_mri.files.segmentation import write_segmentation

        if like is None or isinstance(like, Volume):
            raise ConfigError(
                "CONFIG-05",
                f"{path}: a DICOM segmentation refers to the images it was made on.",
                fix="Pass the folder or the files of the series as like=...",
            )
        source = Path(like) if isinstance(like, str) else like
        write_segmentation(volume, path, source, labels=labels)
        return
    if like is not None and not isinstance(like, Volume):
        like = read_volume(like)
    facts = volume.facts
    if like is not None:
        if not volume.same_grid(like):
            raise GeometryError(
                "GEOMETRY-03", f"{path}: {volume} does not lie on the grid of {like}."
            )
        volume = Volume(volume.array, like.affine, volume.kind, facts)
        facts = like.facts
    if name.endswith(NIFTI_SUFFIXES):
        from core_mri.files.nifti import write_nifti

        write_nifti(volume, path)
    elif name.endswith((".nrrd", ".mha")):
        from core_mri.files.itk_images import write_itk

        write_itk(volume, path)
    else:
        from core_mri.files.dicom_write import write_dicom_series

        write_dicom_series(volume, path, facts=facts)

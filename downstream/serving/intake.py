"""An upload to clean scans: told apart by content, unpacked with limits, de-identified.

Nothing of an upload is opened by a name that it brought along, and whatever goes on from here went
through the engine of `core-mri data deidentify`.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from core_mri.errors import DataError, ServingError
from core_mri.files.limits import MAX_RATIO, MAX_UNBELIEVED_BYTES
from downstream.serving.dicom.multipart import split
from downstream.serving.dicom.objects import check_objects

Kind = Literal["hdf5", "npy", "zip", "dicom", "multipart", "nii", "nii.gz"]
TAKEN = "fastMRI or ISMRMRD HDF5, a zip of one DICOM series, or NIfTI"
_MAX_MEMBERS = 20_000
_COPY = 1 << 20
_NIFTI_SIZES = (b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM")
_OTHERS = {
    b"%PDF": "a PDF",
    b"\x80\x02": "a Python pickle, which is never opened",
    b"\x80\x03": "a Python pickle, which is never opened",
    b"\x80\x04": "a Python pickle, which is never opened",
    b"\x80\x05": "a Python pickle, which is never opened",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
}


@dataclass(frozen=True)
class Intake:
    """What came in, clean."""

    path: Path
    """A raw data file, a NIfTI file or a folder of DICOM files."""
    is_raw: bool
    layout: str
    """``hdf5``, ``npy``, ``dicom`` or ``nifti``."""
    held_back: dict[str, int] = field(default_factory=dict)
    """Files that were left out, by code."""


def kind_of(path: Path) -> Kind:
    """Which kind of file was sent.

    Raises:
        ServingError: SERVE-08 for one that is not taken, with what to send instead.
    """
    with path.open("rb") as file:
        head = file.read(540)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(_NIFTI_SIZES):
        return "nii"
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(path) as packed:
                if packed.read(4) in _NIFTI_SIZES:
                    return "nii.gz"
        except (OSError, EOFError, zlib.error):
            raise DataError("DATA-02", "your file is a damaged gzip file.") from None
    raise ServingError(
        "SERVE-08", f"your file is {_described(head)}.", fix=f"Send the scan itself: {TAKEN}."
    )


def take_in(
    path: Path, kind: Kind, folder: Path, key: bytes, *, boundary: str = "", study: str = ""
) -> Intake:
    """De-identify an upload.

    Args:
        path: The file as it was sent; it is erased.
        kind: Of it.
        folder: Empty; for everything in between.
        key: Of the pseudonyms.
        boundary: Between the parts of ``multipart``.
        study: Study instance UID that all DICOM objects must have.

    Raises:
        DataError: What readers and the engine raise; DATA-11 when an identifier survived, DATA-13
            for an archive that unpacks to far more than its size allows.
        ServingError: SERVE-33 or SERVE-37 for a multipart body that is wrong, SERVE-34 when no
            object has a transfer syntax that can be read, SERVE-35 when none is of the study.
    """
    if kind == "npy":  # numbers alone
        return Intake(path.rename(folder / "raw.npy"), True, "npy")
    if kind == "hdf5":
        from data_registry.deidentify.raw_data import deidentify_raw_data

        clean = folder / "raw.h5"
        _, _, result = deidentify_raw_data(path, clean, key)
        path.unlink()
        if result.findings:
            raise DataError(
                "DATA-11",
                "the header of your file holds what may name a patient, in a place where it cannot "
                "be taken out.",
                fix="Remove it from the header and send the file again.",
            )
        return Intake(clean, True, "hdf5")
    sent = folder / "sent"
    sent.mkdir()
    if kind == "zip":
        _unpack(path, sent)
        path.unlink()
    elif kind == "multipart":
        split(path, boundary, sent)
        path.unlink()
    else:
        path.rename(sent / f"0000.{kind.replace('dicom', 'dcm')}")
    set_aside = {}
    if kind not in ("nii", "nii.gz"):
        set_aside = check_objects(sent, study, strict=kind == "multipart")
    clean, held_back = _deidentified(sent, folder / "clean", key)
    held_back |= set_aside
    if kind in ("nii", "nii.gz"):
        (clean,) = (file for file in clean.rglob("*") if file.name.endswith(kind))
        return Intake(clean, False, "nifti", held_back)
    return Intake(clean, False, "dicom", held_back)


def _described(head: bytes) -> str:
    if not head:
        return "empty"
    if head.startswith(_PICTURES):
        return "a picture, such as a photo or a screenshot, not a scan"
    for start, name in _OTHERS.items():
        if head.startswith(start):
            return name
    return "of a kind that this service does not know"


def _unpack(path: Path, folder: Path) -> None:
    """Members under numbers of ours; their own names are not used."""
    most = max(MAX_UNBELIEVED_BYTES, MAX_RATIO * path.stat().st_size)
    left = most
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if len(members) > _MAX_MEMBERS:
                raise DataError("DATA-13", f"your zip holds more than {_MAX_MEMBERS} files.")
            for number, info in enumerate(members):
                if info.flag_bits & 1:
                    raise ServingError(
                        "SERVE-08", "your zip is encrypted.", fix="Send it without a password."
                    )
                with archive.open(info) as source, (folder / f"{number:05d}").open("wb") as out:
                    for part in _parts(source):
                        left -= len(part)
                        if left < 0:
                            raise DataError(
                                "DATA-13",
                                f"your zip of {path.stat().st_size} bytes unpacks to more than "
                                f"{most} bytes.",
                                fix="Send one series.",
                            )
                        out.write(part)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError):
        raise DataError(
            "DATA-02", "your zip is damaged.", fix="Make it again and send it again."
        ) from None
    if not any(folder.iterdir()):
        raise DataError("DATA-01", "your zip is empty.", fix="Send a zip of one DICOM series.")


def _parts(source: IO[bytes]) -> Iterator[bytes]:
    while part := source.read(_COPY):
        yield part


def _deidentified(source: Path, out: Path, key: bytes) -> tuple[Path, dict[str, int]]:
    """The clean folder, and how many files were held back by code."""
    from data_registry.deidentify.folder import deidentify_folder, find_files
    from data_registry.deidentify.profile import PROFILES
    from data_registry.deidentify.scope import Scope

    held: Counter[str] = Counter()
    first: DataError | None = None
    done = 0
    for item in deidentify_folder(
        source, find_files(source), out, key, PROFILES["tcia-mr"], scope=Scope(pixels="check")
    ):
        if item.outcome.status == "done":
            done += 1
            continue
        held[item.outcome.code] += 1
        first = first or DataError(item.outcome.code, item.details.message)
    (out / "audit.jsonl").unlink(missing_ok=True)
    if not done and first is not None:
        raise first
    return out, dict(held)

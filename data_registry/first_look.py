"""A first look at files: which there are, and what each is, from a few bytes or its header."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

SIDE_SUFFIXES = (".json", ".tsv", ".bval", ".bvec")
"""Side files of BIDS; no unit is made of them, and they are counted as left out."""
RAW_SUFFIXES = (".h5", ".hdf5", ".mrd", ".dat", ".7", ".lab", ".sin")
"""Raw data: HDF5 (fastMRI, ISMRMRD), and vendors' own, which need a converter."""

UnitKind = Literal["dicom", "image", "stack", "kspace"]

_HEADERS_OF = {".img": (".hdr",), ".rec": (".par", ".xml")}
"""Voxel files that lie beside a header of the same name ..."""
_DETACHED = (".raw", ".zraw", ".gz", ".bz2", ".bin")
"""... and those that a header names."""
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Header:
    """What a first look tells; empty when nothing is known."""

    patient: str = ""
    series: str = ""
    instance: str = ""
    leader: Path | None = None
    """The file that this one belongs to, such as the ``.hdr`` of an ``.img``."""


def walk(
    root: Path, skip: set[str], on_error: Callable[[OSError], None] | None = None
) -> Iterator[Path]:
    """Files below a folder in a fixed order, or the file itself.

    Hidden folders are left out; links to folders are not followed, links to files are.
    """
    if root.is_file():
        yield root
        return
    for folder, subfolders, names in os.walk(root, onerror=on_error):
        subfolders[:] = sorted(
            n for n in subfolders if not n.startswith(".") and f"{folder}/{n}" not in skip
        )
        for name in sorted(names):
            path = f"{folder}/{name}"
            if path not in skip:
                yield Path(path)


def is_scan(path: Path) -> bool:
    """Whether a file may hold a scan by its name: hidden files, DICOMDIR and side files do not."""
    return not (
        path.name.startswith(".")
        or path.name == "DICOMDIR"
        or path.name.lower().endswith(SIDE_SUFFIXES)
    )


def kind_of(path: Path) -> UnitKind:
    """How to read a file, from its name and its first bytes.

    Whatever is not known is "dicom": that reader sees DICOM by content and names what is none.
    """
    from core_mri.files.formats import image_format

    found = image_format(path)
    if found == "npy":
        return "kspace" if _is_complex(path) else "image"
    if found not in (None, "dicom"):
        return "image"
    if path.suffix.lower() in RAW_SUFFIXES:
        return "kspace"
    with path.open("rb") as file:
        return "kspace" if file.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC else "dicom"


def look_at(files: list[tuple[int, Path]]) -> list[tuple[int, Header]]:
    """Patient, series and instance of DICOM files, leaders of others; runs in worker processes."""
    from core_mri.files.dicom_frames import quiet_pydicom

    with quiet_pydicom():
        return [(number, _header(path)) for number, path in files]


def _header(path: Path) -> Header:
    try:
        if kind_of(path) != "dicom":
            return Header()
    except OSError:
        return Header()
    leader = _leader(path)
    return Header(leader=leader) if leader is not None else _dicom_header(path)


def _dicom_header(path: Path) -> Header:
    import pydicom

    from core_mri.files.dicom_header import open_dicom, refuse_bomb

    tags = [
        "PatientID", "SeriesInstanceUID", "SOPInstanceUID", "InstanceNumber",
        "ImagePositionPatient",
    ]  # fmt: skip
    try:
        with open_dicom(path) as file:
            refuse_bomb(path, file)
            bare = file.read(2) in (b"\x08\x00", b"\x02\x00", b"\x00\x08")  # no preamble
            file.seek(0)
            found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=bare)
        patient, series, *instance = (str(found.get(tag, "")).strip() for tag in tags)
    except Exception:
        return Header()  # no DICOM, or a damaged one; reading it will tell the reason
    # As in `core_mri.files.dicom`: careless tools give all slices of a series one instance UID.
    return Header(patient, series, " ".join(instance) if instance[0] else "")


def _leader(path: Path) -> Path | None:
    """The header that a file of bare voxels belongs to."""
    suffix = path.suffix.lower()
    for header_suffix in _HEADERS_OF.get(suffix, ()):
        for name in (header_suffix, header_suffix.upper()):
            if (header := path.with_suffix(name)).is_file():
                return header
    if suffix in _DETACHED:
        return next((h for h, named in _detached(path.parent) if path.name in named), None)
    return None


@lru_cache(maxsize=64)
def _detached(folder: Path) -> Sequence[tuple[Path, frozenset[str]]]:
    """Headers in a folder, each with the names of the voxel files it points to."""
    from core_mri.errors import CoreMRIError
    from core_mri.files.formats import companions

    found = []
    for header in sorted(folder.iterdir()):
        if header.suffix.lower() in (".mhd", ".nhdr"):
            try:
                found.append((header, frozenset(c.name for c in companions(header))))
            except CoreMRIError:
                continue  # reading the header itself tells the reason
    return found


def _is_complex(path: Path) -> bool:
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).dtype.kind == "c"
    except (ValueError, EOFError):
        return False

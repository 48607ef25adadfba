"""Which format a file has, from its name and its first bytes, and which files belong to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from core_mri.errors import DataError

Format = Literal[
    "dicom", "nifti", "nrrd", "metaimage", "analyze", "parrec", "minc", "picture", "npy"
]
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_FIRST_BYTES = 512
_PICTURE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
_MINC_MAGIC = (b"CDF\x01", b"CDF\x02", b"\x89HDF\r\n\x1a\n")
_NAMED = re.compile(r"^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*(\S.*?)\s*$", re.I | re.M)


def image_format(path: Path) -> Format | None:
    """The format of an image file, None when it is none of the known ones.

    Content decides where it has a signature; DICOM without one, and Analyze, go by their names.

    Args:
        path: The file; at most 512 bytes of it are read.

    Raises:
        OSError: It cannot be opened.
    """
    name = path.name.lower()
    with path.open("rb") as file:
        start = file.read(_FIRST_BYTES)
    if start[128:132] == b"DICM":
        return "dicom"
    if start[:8] in (b"NRRD0001", b"NRRD0002", b"NRRD0003", b"NRRD0004", b"NRRD0005"):
        return "nrrd"
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start.startswith(_PICTURE_MAGIC):
        return "picture"
    if name.endswith(".mnc") and start.startswith(_MINC_MAGIC):
        return "minc"
    if name.endswith(NIFTI_SUFFIXES) or start[344:348] in (b"n+1\0", b"ni1\0"):
        return "nifti"
    if re.search(rb"^\s*(?:ObjectType|NDims)\s*=", start, re.M):
        return "metaimage"
    if name.endswith(".par") and b"DATA DESCRIPTION FILE" in start:
        return "parrec"
    if name.endswith(".hdr") and start[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return "analyze"
    by_name: dict[str, Format] = {
        ".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage", ".npy": "npy",
        ".mnc": "minc", ".par": "parrec", ".dcm": "dicom", ".ima": "dicom",
        **dict.fromkeys(PICTURE_SUFFIXES, "picture"),
    }  # fmt: skip
    return by_name.get(path.suffix.lower())


def companions(path: Path) -> list[Path]:
    """Files that hold the voxels of a header, in its folder.

    Args:
        path: An ``.hdr``, ``.par``, ``.mhd`` or ``.nhdr`` file; others have none.

    Raises:
        DataError: DATA-13 when the header names a file outside its folder.
    """
    suffix = path.suffix.lower()
    beside = {".hdr": ".img", ".par": ".rec"}.get(suffix)
    if beside is not None:
        names = [path.with_suffix(beside), path.with_suffix(beside.upper())]
        return [name for name in names if name.is_file()][:1]
    if suffix not in (".mhd", ".nhdr"):
        return []
    from core_mri.files.itk_headers import detached_files

    with path.open("rb") as file:
        text = file.read(1 << 16).decode("latin-1")
    match = _NAMED.search(text)
    if match is None or match[1].upper() in ("LOCAL", "LIST") or "%" in match[1]:
        return []
    try:
        return list(detached_files(path, [match[1]]))
    except DataError as error:
        if error.code == "DATA-01":
            return []
        raise

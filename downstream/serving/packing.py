"""A folder of DICOM files as a zip, the same bytes for the same files."""

from __future__ import annotations

import zipfile
from pathlib import Path


def pack(folder: Path, out: Path) -> None:
    """Write a zip of all files below `folder`, aside and renamed."""
    partial = out.with_name(f".{out.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o600 << 16
            archive.writestr(info, path.read_bytes(), compresslevel=1)
    partial.replace(out)


def unpack_own(path: Path, folder: Path) -> Path:
    """The inverse, of a zip that `pack` made."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder

"""What NRRD and MetaImage headers promise, checked before the library that reads them is let loose.

A header is a stranger's text: it may name voxel files anywhere on the disk, declare any size, and
compress any amount of zeros. Nothing but the header is read here, and nothing is allocated.

Sources: Teem, "Definition of NRRD File Format" (teem.sourceforge.net/nrrd/format.html); Kitware,
"MetaIO/Documentation" (ITK wiki).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core_mri.errors import DataError, GeometryError

MAX_RATIO = 200
"""Voxel bytes for each stored byte that are believed ..."""
MAX_UNBELIEVED_BYTES = 2**28
"""... and the size up to which any ratio is (an empty label map packs a thousand to one)."""
_DEFLATE_LIMIT = 1040
"""Deflate never packs more than 1032 bytes into one (zlib, "Maximum compression factor")."""
_MAX_HEADER_BYTES = 1 << 16

_NRRD_TYPES = {
    1: ("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"),
    2: ("short", "short int", "signed short", "signed short int", "int16", "int16_t", "ushort",
        "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    4: ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t",
        "float"),
    8: ("longlong", "long long", "long long int", "signed long long", "signed long long int",
        "int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int", "uint64",
        "uint64_t", "double"),
}  # fmt: skip
_NRRD_BYTES = {name: size for size, names in _NRRD_TYPES.items() for name in names}
_META_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4,
    "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
_PATIENT_SPACES = {
    "right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior",
    "lps",
}  # fmt: skip
_MM_PER_UNIT = {"mm": 1.0, "m": 1000.0, "cm": 10.0, "um": 0.001}


@dataclass(frozen=True)
class ItkHeader:
    """What is needed beside what the library says."""

    in_patient: bool
    """The geometry is stated in patient coordinates."""
    mm_per_unit: float
    """Length of the unit of the geometry."""
    color: bool
    """The components of a voxel are colors, not a time series."""


def check_nrrd(path: Path) -> ItkHeader:
    """Check a NRRD header.

    Raises:
        DataError: DATA-01, DATA-02 shorter than declared, DATA-03 no NRRD or no numbers, DATA-13
            voxels elsewhere or a size that cannot be believed.
        GeometryError: GEOMETRY-01 without spacing.
    """
    text, header_bytes = _header_text(path)
    if not text.startswith("NRRD000"):
        raise DataError("DATA-03", f"{path}: not a NRRD file.")
    lines = [line for line in text.splitlines()[1:] if not line.startswith("#")]
    fields: dict[str, str] = {}
    for number, line in enumerate(lines):
        key, found, value = line.partition(": ") if ": " in line else line.partition(":")
        if not found or value.startswith("="):  # key:=value is free text
            continue
        fields.setdefault(key.strip().lower(), value.strip())
        if key.strip().lower() in ("data file", "datafile") and value.strip().startswith("LIST"):
            fields["files"] = "\n".join(lines[number + 1 :])
    sizes = _integers(path, fields.get("sizes", ""))
    itemsize = _NRRD_BYTES.get(fields.get("type", "").lower())
    if itemsize is None:
        raise DataError("DATA-03", f"{path}: voxels that are no plain numbers.")
    kinds = fields.get("kinds", "").lower().split()
    if not any(name in fields for name in ("space directions", "spacings")):
        raise GeometryError(
            "GEOMETRY-01",
            f"{path}: states no spacing.",
            fix="Add `spacings:` or `space directions:` to its header.",
        )
    encoding = fields.get("encoding", "raw").lower()
    detached = fields.get("data file", fields.get("datafile", ""))
    names = fields["files"].split("\n") if "files" in fields else _expanded(detached)
    stored = _stored_bytes(path, names, header_bytes)
    _check_size(path, sizes, itemsize, stored, encoding)
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    return ItkHeader(
        in_patient=fields.get("space", "").lower().removesuffix("-time") in _PATIENT_SPACES,
        mm_per_unit=_MM_PER_UNIT.get(units[0], 1.0) if units else 1.0,
        color=any("color" in kind for kind in kinds),
    )


def check_metaimage(path: Path) -> ItkHeader:
    """Check a MetaImage header (``.mha``, ``.mhd``).

    Raises:
        DataError: As `check_nrrd`.
        GeometryError: As `check_nrrd`.
    """
    text, _ = _header_text(path)
    fields: dict[str, str] = {}
    header_bytes, rest = 0, ""
    for line in text.splitlines(keepends=True):
        header_bytes += len(line.encode("latin-1"))
        key, found, value = line.partition("=")
        if not found:
            raise DataError("DATA-03", f"{path}: not a MetaImage header.")
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            rest = text[header_bytes:]
            break
    name = fields.get("elementdatafile", "")
    if not name or "dimsize" not in fields:
        raise DataError("DATA-03", f"{path}: not a MetaImage header.")
    kind = fields.get("elementtype", "").removeprefix("MET_").removesuffix("_ARRAY")
    itemsize = _META_BYTES.get(kind)
    if itemsize is None:
        raise DataError("DATA-03", f"{path}: voxels that are no plain numbers.")
    if "elementspacing" not in fields and "elementsize" not in fields:
        raise GeometryError(
            "GEOMETRY-01", f"{path}: states no spacing.", fix="Add ElementSpacing to its header."
        )
    channels = int(_integers(path, fields.get("elementnumberofchannels", "1"))[0])
    sizes = [*_integers(path, fields["dimsize"]), channels]
    first = name.split()[0]
    if first.upper() == "LIST":
        names = rest.splitlines()
    else:
        names = [] if first.upper() == "LOCAL" else _expanded(name)
    stored = _stored_bytes(path, names, header_bytes)
    packed = fields.get("compresseddata", "").lower() == "true"
    if packed and not names and "compresseddatasize" in fields:
        declared = int(_integers(path, fields["compresseddatasize"])[0])
        if declared > stored:
            raise _truncated(path, stored, declared)
    binary = fields.get("binarydata", "true").lower() == "true"
    _check_size(path, sizes, itemsize, stored, "zlib" if packed else "raw" if binary else "text")
    placed = {"transformmatrix", "rotation", "orientation", "offset", "position", "origin"}
    return ItkHeader(
        in_patient=bool(placed & fields.keys()),
        mm_per_unit=1.0,
        color=kind == "UCHAR" and channels in (3, 4),
    )


def _header_text(path: Path) -> tuple[str, int]:
    """The text before the first empty line, or the first 64 kB, and its length with that line."""
    try:
        with path.open("rb") as file:
            block = file.read(_MAX_HEADER_BYTES)
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    if not block:
        raise DataError("DATA-02", f"{path}: an empty file.")
    end = re.search(rb"\r?\n\r?\n", block) if block.startswith(b"NRRD") else None
    text = block[: end.start()] if end else block
    return text.decode("latin-1"), end.end() if end else len(block)


def _integers(path: Path, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise DataError("DATA-02", f"{path}: a size in its header is no positive number.")
    return numbers


def _expanded(pattern: str) -> list[str]:
    """Names of a ``printf`` pattern with first, last and step, or the one name itself."""
    match = re.fullmatch(r"(\S*%[0-9]*[dui]\S*)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(?:\s+\d+)?", pattern)
    if match is None:
        return [pattern] if pattern else []
    first, last, step = (int(match[i]) for i in (2, 3, 4))
    if step == 0 or abs(last - first) // abs(step) > 100_000:
        return [match[1]]
    end = last + (1 if step > 0 else -1)
    return [match[1] % number for number in range(first, end, step)]


def _stored_bytes(path: Path, names: list[str], header_bytes: int) -> int:
    """Bytes that hold the voxels: the rest of the file, or all detached files."""
    if not names:
        return max(path.stat().st_size - header_bytes, 0)
    return sum(file.stat().st_size for file in detached_files(path, names))


def detached_files(path: Path, names: list[str]) -> Iterator[Path]:
    """Voxel files that a header names; each must lie in the folder of the header.

    Raises:
        DataError: DATA-13 for a name that leads elsewhere, DATA-01 for a missing file.
    """
    folder = path.parent.resolve()
    for name in names:
        file = path.parent / name.strip()
        if Path(name).is_absolute() or file.resolve().parent != folder:
            raise DataError(
                "DATA-13",
                f"{path}: names a file outside its own folder for its voxels; nothing was read.",
                fix="Put the voxel file beside its header.",
            )
        if not file.is_file():
            raise DataError("DATA-01", f"{path}: the file with its voxels is not there.")
        yield file


def _check_size(path: Path, sizes: list[int], itemsize: int, stored: int, encoding: str) -> None:
    expected = int(np.prod(sizes, dtype=object)) * itemsize
    if encoding in ("text", "txt", "ascii"):
        if stored < 2 * (expected // itemsize) - 1:
            raise _truncated(path, stored, expected)
    elif encoding in ("raw", "hex"):
        if stored < expected * (2 if encoding == "hex" else 1):
            raise _truncated(path, stored, expected)
    elif expected > _DEFLATE_LIMIT * stored and encoding not in ("bzip2", "bz2"):
        raise _truncated(path, stored, expected)
    elif expected > MAX_UNBELIEVED_BYTES and expected > MAX_RATIO * stored:
        raise DataError(
            "DATA-13",
            f"{path}: {stored} bytes would unpack to {expected}, more than {MAX_RATIO} times as "
            "many.",
            fix="Store it uncompressed if it is what it says.",
        )


def _truncated(path: Path, stored: int, expected: int) -> DataError:
    return DataError(
        "DATA-02", f"{path}: truncated, {stored} bytes of voxels where its header says {expected}."
    )

"""NIfTI files: a header with numbers only, no extensions, voxels byte for byte.

Fields that hold text (NIfTI-1: `data_type`, `db_name`, `descrip`, `aux_file`, `intent_name`;
NIfTI-2: the last three) and all header extensions, among which are whole DICOM headers, are
dropped, but for the words of `descrip` and `intent_name` that the vocabularies know. The gzip
wrapper is written anew: its own header may name the file and the time.

Source: nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core_mri.errors import DataError
from core_mri.files.limits import MAX_RATIO, MAX_UNBELIEVED_BYTES
from data_registry.deidentify.descriptors import clean_text
from data_registry.deidentify.identifiers import file_id, patient_pseudonym
from data_registry.deidentify.outcome import Result
from data_registry.deidentify.verify import find_text
from data_registry.source_list import Source
from data_registry.vocabulary import is_technical, words

_CHUNK = 1 << 20
_LEVEL = 6
_SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.json)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Layout:
    """Of one version of the format; offsets and lengths in bytes."""

    size: int
    texts: tuple[tuple[int, int], ...]
    """Fields that are emptied."""
    cleaned: tuple[tuple[int, int], ...]
    """Fields of which known words stay."""
    dim: tuple[int, str]
    bitpix: int
    vox_offset: tuple[int, str]


_LAYOUTS = {
    348: _Layout(
        348, ((4, 10), (14, 18), (228, 24)), ((148, 80), (328, 16)), (40, "8h"), 72, (108, "f")
    ),
    540: _Layout(540, ((320, 24), (525, 15)), ((240, 80), (508, 16)), (16, "8q"), 14, (168, "q")),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the output of a file that is no DICOM goes.

    Args:
        output: Path below the output folder.
        patient: Pseudonym.
        old: What told the patient: part of the path.
    """

    output: str
    patient: str
    old: str


def place_of(key: bytes, path: str, root: str) -> Place:
    """A keyed place for a file whose patient only its path tells; image and sidecar share it.

    The patient is who `Source.subject_of` finds: ``sub-XXX``, a numbered word, the first folder.
    """
    top = Path(root)
    relative = Path(path).relative_to(top).as_posix() if Path(path) != top else top.name
    source = Source(name="path", licence="unknown", root=root)
    found = source.subject_of(f"{top.name}/{relative}", {})
    patient = patient_pseudonym(key, found[-1])
    suffix = _SUFFIX.search(path)
    stem = path[: suffix.start()] if suffix else path
    name = file_id(key, Path(stem).resolve())
    return Place(f"{patient}/{name}{suffix[0].lower() if suffix else ''}", patient, found[-1])


def deidentify_nifti(path: Path, out: Path | None) -> Result:
    """Write the clean form of `path` to `out`; voxels are streamed.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        out: Where to; None to write nothing.

    Raises:
        DataError: DATA-02 cut off or damaged, DATA-07 cannot be written, DATA-13 when it unpacks to
            far more than its size allows.
    """
    packed = _is_packed(path)
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            header, texts, order, layout = _read_header(stream)  # type: ignore[arg-type]
            length = _voxel_bytes(header, layout, order)
            if packed and length > max(MAX_UNBELIEVED_BYTES, MAX_RATIO * path.stat().st_size):
                raise DataError("DATA-13", "it unpacks to far more than its size allows.")
            clean = _clean(header, layout, order)
            _copy(stream, length, clean, out, packed)  # type: ignore[arg-type]
            while packed and stream.read(_CHUNK):  # to the check sum
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error):
        raise DataError("DATA-02", "cut off, or a damaged NIfTI file.") from None
    names = [*texts, *_telling(path)]
    findings = find_text(clean, "header", texts=names)
    if out is not None and packed:
        findings += find_text(_gzip_header(out), "gzip", texts=names)
    changed = sum(any(header[o : o + n]) for o, n in (*layout.texts, *layout.cleaned))
    return Result(
        findings,
        {"C": changed, "X": max(len(texts) - changed, 0)},
    )


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _read_header(stream: BinaryIO) -> tuple[bytes, list[str], str, _Layout]:
    """Header, every text of it and of its extensions, byte order, layout; then voxels follow."""
    start = stream.read(4)
    order = "<" if struct.unpack("<i", start)[0] in _LAYOUTS else ">"
    layout = _LAYOUTS[struct.unpack(order + "i", start)[0]]
    header = start + stream.read(layout.size - 4)
    if len(header) < layout.size:
        raise EOFError
    offset, form = layout.vox_offset
    vox_offset = int(struct.unpack_from(order + form, header, offset)[0])
    vox_offset = max(vox_offset, layout.size + 4)
    if vox_offset > MAX_UNBELIEVED_BYTES:
        raise DataError("DATA-02", "its voxels are said to begin after 256 MiB of extensions.")
    extensions = stream.read(vox_offset - layout.size)
    if len(extensions) < vox_offset - layout.size:
        raise EOFError
    fields = [header[o : o + n] for o, n in (*layout.texts, *layout.cleaned)]
    texts = [run.decode("ascii") for part in (*fields, extensions) for run in _runs(part)]
    return header, texts, order, layout


def _runs(part: bytes) -> list[bytes]:
    return re.findall(rb"[\x20-\x7e]{4,}", part)


def _voxel_bytes(header: bytes, layout: _Layout, order: str) -> int:
    offset, form = layout.dim
    rank, *sizes = struct.unpack_from(order + form, header, offset)
    if not 1 <= rank <= 7 or any(size < 1 for size in sizes[:rank]):
        raise DataError("DATA-02", "a NIfTI header without dimensions.")
    bits = struct.unpack_from(order + "h", header, layout.bitpix)[0]
    voxels = 1
    for size in sizes[:rank]:
        voxels *= size
    return (voxels * bits + 7) // 8


def _clean(header: bytes, layout: _Layout, order: str) -> bytes:
    """The header without texts, its voxels right behind it, and no extension."""
    clean = bytearray(header)
    for offset, length in layout.texts:
        clean[offset : offset + length] = bytes(length)
    for offset, length in layout.cleaned:
        text = header[offset : offset + length].split(b"\0")[0].decode("latin-1")
        kept = clean_text(text).encode("ascii", "ignore")[: length - 1]
        clean[offset : offset + length] = kept.ljust(length, b"\0")
    offset, form = layout.vox_offset
    struct.pack_into(order + form, clean, offset, layout.size + 4)
    return bytes(clean) + bytes(4)


def _copy(stream: BinaryIO, length: int, header: bytes, out: Path | None, packed: bool) -> None:
    """Voxels from `stream` to `out`; what follows the last one is left."""
    parts = _chunks(stream, length)
    if out is None:
        for _ in parts:
            pass
        return
    try:
        with out.open("wb") as raw:
            if not packed:
                raw.write(header)
                raw.writelines(parts)
            else:
                with gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as target:
                    target.write(header)
                    for part in parts:
                        target.write(part)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise
        out.unlink(missing_ok=True)
        raise DataError(
            "DATA-07", f"cannot write to the output folder: {error.strerror}."
        ) from None


def _chunks(stream: BinaryIO, length: int) -> Iterator[bytes]:
    while length:
        part = stream.read(min(_CHUNK, length))
        if not part:
            raise EOFError
        length -= len(part)
        yield part


def _telling(path: Path) -> list[str]:
    """Words of the file's name that are no technical ones."""
    return [w for w in words(path.name.split(".")[0]) if len(w) > 3 and not is_technical(w)]


def _gzip_header(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(64)[:10]

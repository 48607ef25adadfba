"""The header of a DICOM file up to its pixel data, and values from it that survive damage.

Finds where the pixel data lies and whether all of it is there, without reading it.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from core_mri.errors import DataError
from core_mri.files.limits import MAX_RATIO, MAX_UNBELIEVED_BYTES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

FLOAT_PIXEL_DATA = {0x7FE00008: "f4", 0x7FE00009: "f8"}
"""Number type by the tag of (Double) Float Pixel Data."""
_PIXEL_DATA = (0x7FE00010, *FLOAT_PIXEL_DATA)
_UNDEFINED = 0xFFFFFFFF
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NATIVE = (_IMPLICIT, _EXPLICIT, _DEFLATED, BIG_ENDIAN)


Values = Mapping[str | int, object]
"""Decoded elements by keyword, private ones by tag; damaged ones are left out."""


@dataclass(frozen=True)
class PixelElement:
    """Where the pixel data of a file lies: tag, offset and length of the value in bytes."""

    tag: int
    offset: int
    length: int


@dataclass(frozen=True)
class Header:
    """What a file says before its pixel data."""

    values: Values
    transfer_syntax: str
    """For files without file meta, the native one that their first element shows."""
    pixels: PixelElement | None


def open_dicom(path: Path) -> BinaryIO:
    """Open a file for reading; one that gzip packed (``.dcm.gz``) is unpacked in memory.

    Raises:
        DataError: DATA-02 when the packed file is damaged, DATA-13 when it would unpack to far more
            than it stores.
        OSError: It cannot be opened.
    """
    file = path.open("rb")
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        return file
    stored = path.stat().st_size
    most = max(MAX_UNBELIEVED_BYTES, MAX_RATIO * stored)
    with file, gzip.GzipFile(fileobj=file) as unpacked:
        try:
            content = unpacked.read(most + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise DataError("DATA-02", f"{path}: truncated or damaged compressed file.") from None
    if len(content) > most:
        raise _bomb(path, stored)
    return io.BytesIO(content)


def _bomb(path: Path, stored: int) -> DataError:
    return DataError(
        "DATA-13",
        f"{path}: {stored} bytes unpack to more than {MAX_RATIO} times as many.",
        fix="Store it uncompressed if it is what it says.",
    )


def refuse_bomb(path: Path, file: BinaryIO) -> None:
    """Inflate a deflated data set without keeping it, and stop when it grows beyond belief.

    pydicom inflates the whole at once, whatever comes out, and goes through all of it.

    Args:
        path: Name of the file, for messages.
        file: The same, open for reading; from its start afterwards.

    Raises:
        DataError: DATA-02 when the deflated data is damaged, DATA-13 when it would unpack to far
            more than the file stores.
    """
    from pydicom.filereader import _read_file_meta_info, read_preamble

    size = file.seek(0, 2)
    file.seek(0)
    deflated = _DEFLATED.encode() in file.read(1024)
    file.seek(0)
    if not deflated:
        return
    read_preamble(file, force=True)
    _read_file_meta_info(file)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    most, total = max(MAX_UNBELIEVED_BYTES, MAX_RATIO * size), 0
    while block := file.read(1 << 16):
        while block:
            try:
                total += len(inflater.decompress(block, 1 << 20))
            except zlib.error:
                raise DataError("DATA-02", f"{path}: damaged deflated data.") from None
            if total > most:
                raise _bomb(path, size)
            block = inflater.unconsumed_tail
    file.seek(0)


def read_header(path: Path, file: BinaryIO, elements: tuple[str | int, ...]) -> Header:
    """Some elements before the pixel data, and where that lies.

    Args:
        path: Name of the file, for messages.
        file: The same, open for reading.
        elements: Keywords and tags to keep.

    Raises:
        DataError: DATA-02 when the file ends inside its header, DATA-03 when it is no DICOM.
    """
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_partial

    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(4)
    if not start:
        raise DataError("DATA-02", f"{path}: an empty file.")
    refuse_bomb(path, file)
    found: PixelElement | None = None
    last = (0, 0)

    def stop(tag: BaseTag, _: str | None, length: int) -> bool:
        nonlocal found, last
        last = (file.tell(), length)
        if tag in _PIXEL_DATA:
            found = PixelElement(int(tag), file.tell(), length)
        return found is not None

    # Files of old archives have no preamble; they start with group 0002 or 0008.
    bare = start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")
    try:
        dataset = read_partial(file, stop_when=stop, force=bare, specific_tags=_tags(elements))
    except InvalidDicomError:
        raise DataError("DATA-03", f"{path}: not a DICOM file.") from None
    if bare and "SOPClassUID" not in dataset and "Modality" not in dataset:
        raise DataError("DATA-03", f"{path}: not a DICOM file.")
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if not syntax:
        implicit, little = dataset.original_encoding
        syntax = _IMPLICIT if implicit else _EXPLICIT if little else BIG_ENDIAN
    offset, length = last
    if length == _UNDEFINED and found is None:
        file.seek(max(size - 8, 0))
        ended = file.read(8) in (b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xff\xfe\xe0\xdd\0\0\0\0")
    else:
        ended = offset + length == size
    if not (found or ended or syntax == _DEFLATED):
        raise DataError("DATA-02", f"{path}: the file ends inside its header.")
    return Header(values_of(dataset), syntax, found)


@lru_cache(maxsize=4)
def _tags(elements: tuple[str | int, ...]) -> list[BaseTag | int]:
    from pydicom.tag import Tag

    return [Tag(element) for element in elements]


def values_of(dataset: Dataset) -> Values:
    """Every element that can be decoded."""
    values: dict[str | int, object] = {}
    for tag in dataset.keys():  # noqa: SIM118 (a Dataset iterates over decoded elements)
        try:
            element = dataset[tag]
        except Exception:
            # pydicom raises many kinds of exceptions on damaged values; absent is all we can say.
            continue
        values[element.keyword or int(tag)] = element.value
    return values


def item_of(values: Values, keyword: str) -> Values | None:
    """The first item of a sequence."""
    return next(items_of(values, keyword), None)


def items_of(values: Values, keyword: str) -> Iterator[Values]:
    """The items of a sequence; none when it is absent."""
    from pydicom.sequence import Sequence as DicomSequence

    sequence = values.get(keyword)
    if isinstance(sequence, DicomSequence):
        yield from map(values_of, sequence)


def check_pixel_length(path: Path, file: BinaryIO, header: Header, pixels: PixelElement) -> None:
    """Raise DATA-02 when pixel data is shorter than stated, DATA-10 when it is empty."""
    values = header.values
    size = file.seek(0, 2)
    if header.transfer_syntax == _DEFLATED:
        size = _UNDEFINED
    expected = (
        integer_of(values, "Rows", 0)
        * integer_of(values, "Columns", 0)
        * max(integer_of(values, "NumberOfFrames", 1), 1)
        * (integer_of(values, "BitsAllocated", 16) // 8)
    )
    if pixels.length == _UNDEFINED:
        # Decoders take memory for what the header declares before they look at the stream.
        if expected > MAX_UNBELIEVED_BYTES and expected > MAX_RATIO * size:
            raise _bomb(path, size)
        file.seek(pixels.offset)
        whole = _fragments_are_whole(file, size)
    else:
        whole = pixels.offset + pixels.length <= size and pixels.length >= expected
        if pixels.length == 0:
            raise DataError("DATA-10", f"{path}: has no pixel data.")
    if not whole:
        raise DataError(
            "DATA-02", f"{path}: truncated, the pixel data is shorter than the header says."
        )


def _fragments_are_whole(file: BinaryIO, size: int) -> bool:
    """Walk the items of encapsulated pixel data (PS3.5 annex A.4) without reading them."""
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000) or file.seek(length, 1) > size:
            return False
    # Some writers leave out the closing delimiter; the decoder decides then.
    return not head


def text_of(values: Values, keyword: str) -> str:
    """A value as text, several joined by a backslash as in the file; "" when absent."""
    value = values.get(keyword)
    if value is None:
        return ""
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return "\\".join(str(part).strip() for part in value)
    return str(value).strip()


def numbers_of(values: Values, key: str | int) -> list[float]:
    """All numbers of an element; none when it is absent or one is no finite number."""
    value = values.get(key)
    many = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    parts: list[Any] = list(cast("Iterable[object]", value)) if many else [value]
    numbers = []
    for part in parts:
        # Private elements come as bytes from files with implicit value types.
        text = part.decode("ascii", "replace") if isinstance(part, bytes) else part
        try:
            numbers.append(float(text))
        except (ValueError, TypeError, OverflowError):
            return []
    return numbers if all(map(math.isfinite, numbers)) else []


def first_number(groups: Sequence[Values], key: str | int, default: float) -> float:
    """The first number of an element in the first group that states one, else `default`."""
    return next((n for group in groups for n in numbers_of(group, key)[:1]), default)


def integer_of(values: Values, key: str | int, default: int) -> int:
    """An element as integer, `default` when it is absent or damaged."""
    return int(first_number([values], key, default))


def is_plain(header: Header) -> bool:
    """Whether the bytes of the pixel data are the stored values, one after the other."""
    if header.pixels is None or header.pixels.length == _UNDEFINED:
        return False
    # Big-endian files may hold 8-bit pixels in swapped words.
    return header.transfer_syntax in (_IMPLICIT, _EXPLICIT) or (
        header.transfer_syntax == BIG_ENDIAN and integer_of(header.values, "BitsAllocated", 16) > 8
    )


@lru_cache(maxsize=64)
def is_decodable(syntax: str) -> bool:
    """Whether a decoder for this transfer syntax is installed."""
    from pydicom.pixels import get_decoder

    if syntax in _NATIVE:
        return True
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False

"""DICOM data sets as bytes: where each element lies, and elements back to bytes (PS3.5 section 7).

De-identification keeps most elements of a file as they are. So a file is not decoded into objects:
an element is a tag, a VR and three offsets into the bytes of the file, its value is looked at only
where a rule asks for it, and runs of kept elements are copied as one piece.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from core_mri.errors import DataError
from core_mri.files.limits import MAX_RATIO, MAX_UNBELIEVED_BYTES
from data_registry.deidentify.dictionary import dictionary_vr

Buffer = bytes | memoryview

IMPLICIT, DEFLATED, BIG_ENDIAN = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
GE_IMPLICIT = "1.2.840.113619.5.2"
"""GE's private syntax: implicit VR, pixels in big endian."""
_UNCOMPRESSED = (IMPLICIT, "1.2.840.10008.1.2.1", DEFLATED, BIG_ENDIAN, GE_IMPLICIT)
_REFERENCED_PIXELS = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95")

MAX_DEPTH = 24
"""Levels of sequences; the deepest objects of the standard (structured reports) have about 15."""

VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR "
    b"US UT UV".split()
)
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs with a 32-bit length (PS3.5 7.1.2)."""
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF


class Element(NamedTuple):
    """One element and where it lies.

    Args:
        tag: Group and element number, 32 bits.
        vr: Two letters; those of the dictionary where the file states none.
        start: Offset of its tag.
        value: Offset of its value.
        end: Offset behind its value.
        items: Elements of each item of a sequence; None for all other VRs.
        fragments: Whether the value is encapsulated pixel data, with items and delimiter.
    """

    tag: int
    vr: bytes
    start: int
    value: int
    end: int
    items: list[list[Element]] | None = None
    fragments: bool = False


@dataclass(frozen=True)
class Encoding:
    """How the elements of a data set are written."""

    explicit: bool
    little: bool

    @property
    def order(self) -> str:
        """Byte order as `struct` names it."""
        return "<" if self.little else ">"


EXPLICIT_LITTLE = Encoding(explicit=True, little=True)
IMPLICIT_LITTLE = Encoding(explicit=False, little=True)


@dataclass(frozen=True)
class Parsed:
    """A file, taken apart.

    Args:
        content: What the offsets count in: the file, or its inflated data set.
        meta: Elements of the file meta group; offsets count in the file.
        syntax: UID of the transfer syntax; empty when the file states none.
        encoding: Of the data set.
        elements: Of the data set, pixel data included.
        rest: Bytes behind the last element that belong to none.
    """

    content: Buffer
    meta: list[Element]
    syntax: str
    encoding: Encoding
    elements: list[Element]
    rest: int


def parse(file: Buffer) -> Parsed:
    """Take a DICOM file apart.

    Args:
        file: All bytes, with or without preamble and file meta group (PS3.10 section 7).

    Raises:
        DataError: DATA-02 when it is cut off or damaged, has an unknown VR, is nested too deep or
            keeps its pixels elsewhere; DATA-03 when it is no DICOM file; DATA-13 when it inflates
            to far more than its size allows.
    """
    meta: list[Element] = []
    start = 0
    if bytes(file[128:132]) == b"DICM":
        meta, start = _meta(file, 132)
    elif bytes(file[:4]) == b"\x02\0\0\0":
        meta, start = _meta(file, 0)
    elif bytes(file[:2]) not in (b"\x08\0", b"\0\x08"):
        raise DataError("DATA-03", "no DICOM file.")
    syntax = next((text(file, element) for element in meta if element.tag == 0x00020010), "")
    if syntax in _REFERENCED_PIXELS:
        raise DataError("DATA-10", "its pixel data are elsewhere (JPIP).")
    if syntax == DEFLATED:
        file, start = _inflate(file, start), 0
    encoding = _encoding(file, start, syntax)
    walk = _Walk(file, encoding, start)
    elements = walk.elements()
    if not elements:
        raise DataError("DATA-03" if not meta else "DATA-02", "no DICOM data set.")
    return Parsed(file, meta, syntax, encoding, elements, len(file) - walk.position)


def text(content: Buffer, element: Element) -> str:
    """The value as ASCII, padding removed; other bytes become question marks."""
    value = bytes(content[element.value : element.end])
    return value.decode("ascii", "replace").strip(" \0")


def is_uncompressed(syntax: str) -> bool:
    """Whether pixel data lie in the file as they are."""
    return syntax in ("", *_UNCOMPRESSED)


def header_of(tag: int, vr: bytes, length: int, encoding: Encoding) -> bytes:
    """The bytes before a value."""
    order = encoding.order
    if not encoding.explicit:
        return struct.pack(order + "HHL", tag >> 16, tag & 0xFFFF, length)
    if vr in _LONG:
        return struct.pack(order + "HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, length)
    if length > 0xFFFF:  # PS3.5 6.2.2: what does not fit a short length is written as UN
        return struct.pack(order + "HH2sHL", tag >> 16, tag & 0xFFFF, b"UN", 0, length)
    return struct.pack(order + "HH2sH", tag >> 16, tag & 0xFFFF, vr, length)


def item_of(content: bytes, encoding: Encoding) -> bytes:
    """An item of a sequence."""
    return struct.pack(encoding.order + "HHL", 0xFFFE, 0xE000, len(content)) + content


def _meta(file: Buffer, start: int) -> tuple[list[Element], int]:
    """Elements of group 0002, always explicit little endian, and where the data set begins."""
    walk = _Walk(file, EXPLICIT_LITTLE, start, group=0x0002)
    return walk.elements(), walk.position


def _encoding(file: Buffer, start: int, syntax: str) -> Encoding:
    """From the syntax; what the first element shows wins, since some files say otherwise."""
    head = bytes(file[start : start + 6])
    if len(head) < 6:
        raise DataError("DATA-02", "the file ends before its data set.")
    stated = not syntax or syntax not in (IMPLICIT, GE_IMPLICIT)
    explicit = head[4:6] in VRS if head[4:6].isalpha() else False
    little = syntax != BIG_ENDIAN
    if not syntax:
        little = not (head[0] == 0 and head[1] != 0)
    return Encoding(explicit if explicit or stated else False, little)


def _inflate(file: Buffer, start: int) -> bytes:
    """The data set of the deflated syntax (PS3.5 A.5), a bounded number of bytes."""
    packed = file[start:]
    most = max(MAX_UNBELIEVED_BYTES, MAX_RATIO * len(packed))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(packed, most)
        if inflater.unconsumed_tail and inflater.decompress(inflater.unconsumed_tail, 1):
            raise DataError(
                "DATA-13", f"{len(packed)} bytes inflate to more than {most}: a deflate bomb."
            )
    except zlib.error:
        raise DataError("DATA-02", "its deflated data set is damaged.") from None
    if not inflater.eof:
        raise DataError("DATA-02", "its deflated data set is cut off.")
    return content


class _Walk:
    """Reads elements one after another; `position` is where it stands."""

    def __init__(
        self, content: Buffer, encoding: Encoding, start: int, *, group: int | None = None
    ) -> None:
        self.position = start
        self._content = content
        self._end = len(content)
        self._group = group
        self._use(encoding)

    def _use(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._explicit = struct.Struct(encoding.order + "HH2sH").unpack_from
        self._implicit = struct.Struct(encoding.order + "HHL").unpack_from
        self._length = struct.Struct(encoding.order + "L").unpack_from

    def elements(self) -> list[Element]:
        """Elements up to the end, or up to the end of the group; zeros behind them are rest."""
        return self._elements(self._end, 0, delimited=False)

    def _elements(self, end: int, depth: int, *, delimited: bool) -> list[Element]:
        content, explicit, implicit = self._content, self._explicit, self._implicit
        is_explicit, group_only, long = self._encoding.explicit, self._group, _LONG
        found: list[Element] = []
        position = self.position
        while position < end:
            if position + 8 > end:
                if depth == 0 and not any(content[position:end]):
                    break
                raise _cut_off()
            start = position
            if is_explicit:
                group, number, vr, length = explicit(content, position)
            else:
                group, number, length = implicit(content, position)
                vr = b""
            if group_only is not None and group != group_only:
                break
            tag = group << 16 | number
            if group == 0xFFFE:
                if tag == _ITEM_END and delimited:
                    self.position = position + 8
                    return found
                raise DataError("DATA-02", "a delimiter stands where an element should.")
            if not is_explicit:
                vr = dictionary_vr(tag)
                position += 8
            elif vr in long:
                if position + 12 > end:
                    raise _cut_off()
                length = self._length(content, position + 8)[0]
                position += 12
            elif vr in VRS:
                position += 8
            elif depth == 0 and found and not any(content[start:end]):
                break
            else:
                raise DataError("DATA-02", "an element has an unknown VR.")
            nested = vr == b"SQ" or (vr == b"UN" and dictionary_vr(tag) == b"SQ")
            if length == _UNDEFINED or (nested and length):
                self.position = position
                element = self._nested(tag, vr, start, length, end, depth)
                position = self.position
            else:
                stop = position + length
                if stop > end:
                    raise _cut_off()
                element = Element(tag, vr, start, position, stop, [] if nested else None)
                position = stop
            found.append(element)
        if delimited:
            raise _cut_off()
        self.position = position
        return found

    def _nested(
        self, tag: int, vr: bytes, start: int, length: int, end: int, depth: int
    ) -> Element:
        """A sequence, or pixel data in fragments."""
        value = self.position
        undefined = length == _UNDEFINED
        stop = end if undefined else value + length
        if stop > end:
            raise _cut_off()
        if tag == 0x7FE00010 and undefined:  # at the top, or of an icon
            self._fragments(end)
            return Element(tag, vr, start, value, self.position, None, fragments=True)
        if depth >= MAX_DEPTH:
            raise DataError("DATA-02", f"sequences are nested deeper than {MAX_DEPTH} levels.")
        outer = self._encoding
        if vr == b"UN":  # PS3.5 6.2.2 note 4: a sequence in implicit VR little endian
            self._use(IMPLICIT_LITTLE)
        items = self._items(stop, depth + 1, delimited=undefined)
        self._use(outer)
        # An unknown sequence keeps its VR UN, whose items are written as they were read.
        return Element(tag, b"UN" if vr == b"UN" else b"SQ", start, value, self.position, items)

    def _items(self, end: int, depth: int, *, delimited: bool) -> list[list[Element]]:
        items: list[list[Element]] = []
        while self.position < end:
            if self.position + 8 > end:
                raise _cut_off()
            group, number, length = self._implicit(self._content, self.position)
            tag = group << 16 | number
            self.position += 8
            if tag == _SEQUENCE_END and delimited:
                return items
            if tag != _ITEM:
                raise DataError("DATA-02", "a sequence holds something else than items.")
            stop = end if length == _UNDEFINED else self.position + length
            if stop > end:
                raise _cut_off()
            items.append(self._elements(stop, depth, delimited=length == _UNDEFINED))
        if delimited:
            raise _cut_off()
        return items

    def _fragments(self, end: int) -> None:
        """Step over encapsulated pixel data (PS3.5 A.4)."""
        while self.position + 8 <= end:
            group, number, length = self._implicit(self._content, self.position)
            self.position += 8
            if group << 16 | number == _SEQUENCE_END:
                return
            if group << 16 | number != _ITEM or length == _UNDEFINED:
                raise DataError("DATA-02", "its encapsulated pixel data are damaged.")
            self.position += length
        raise _cut_off()


def _cut_off() -> DataError:
    return DataError("DATA-02", "the file is cut off, or an element is longer than it can be.")

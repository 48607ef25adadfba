"""A second reader of DICOM, for the verifier alone: it shares no code with the engine's.

It is a flat scan with a stack of where sequences and items end, lists every value with its path,
and every byte that belongs to none.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from core_mri.errors import DataError
from core_mri.files.limits import MAX_RATIO, MAX_UNBELIEVED_BYTES

Place = tuple[int, ...]

_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_NAMES = {
    vr.encode(): vr
    for vr in (
        "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD", "OF",
        "OL", "OV", "OW", "PN", "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN",
        "UR", "US", "UT", "UV",
    )
}  # fmt: skip
_NO_END = 0xFFFFFFFF
_MAX_LEVELS = 200


class Value(NamedTuple):
    """One value.

    Args:
        path: Tags and item numbers from the top, its own tag last.
        tag: Its tag.
        vr: As written; empty in implicit VR.
        raw: Its bytes; for pixel data a view.
    """

    path: Place
    tag: int
    vr: str
    raw: bytes | memoryview


class Scan(NamedTuple):
    """A file: every value, and the bytes that belong to none (preamble, what follows the end)."""

    values: list[Value]
    outside: list[bytes]
    syntax: str


def scan(content: bytes | memoryview) -> Scan:
    """List the values of a DICOM file.

    Raises:
        DataError: DATA-02 when it cannot be read to its end.
    """
    try:
        return _scan(content)
    except (struct.error, zlib.error, IndexError):
        raise _unreadable() from None


def _scan(content: bytes | memoryview) -> Scan:
    outside: list[bytes] = []
    offset, syntax = 0, ""
    values: list[Value] = []
    if bytes(content[128:132]) == b"DICM":
        outside.append(bytes(content[:128]))
        offset = 132
    while bytes(content[offset : offset + 2]) == b"\2\0":
        value, offset = _meta_value(content, offset)
        values.append(value)
        if value.tag == 0x00020010:
            syntax = bytes(value.raw).rstrip(b"\0 ").decode("ascii", "replace")
    body = content[offset:]
    if syntax == "1.2.840.10008.1.2.1.99":
        limit = max(MAX_UNBELIEVED_BYTES, MAX_RATIO * len(body))
        stream = zlib.decompressobj(-15)
        body = stream.decompress(body, limit)
        outside.append(stream.unused_data)
    big = syntax == "1.2.840.10008.1.2.2" or (not syntax and body[0] == 0 and body[1] != 0)
    left = _scan_data_set(body, big, values)
    outside.append(left)
    return Scan(values, outside, syntax)


def _meta_value(content: bytes | memoryview, offset: int) -> tuple[Value, int]:
    number, vr, short = struct.unpack_from("<H2sH", content, offset + 2)
    name = vr.decode("latin-1")
    if vr in _SHORT:
        start, length = offset + 8, short
    else:
        start, length = offset + 12, struct.unpack_from("<L", content, offset + 8)[0]
    end = start + length
    if end > len(content):
        raise _unreadable()
    tag = 0x00020000 | number
    return Value((tag,), tag, name, bytes(content[start:end])), end


@dataclass
class _Level:
    """A sequence that the scan stands in.

    Args:
        path: Of the sequence.
        stop: Where it ends; -1 when a delimiter ends it.
        explicit, outer: Whether its items, and what is around it, state VRs.
        item: Number of the item.
    """

    path: Place
    stop: int
    explicit: bool
    outer: bool
    item: int = -1


def _scan_data_set(body: bytes | memoryview, big: bool, values: list[Value]) -> bytes:
    """Append the values of the data set; return what follows them."""
    order = ">" if big else "<"
    pair, word = struct.Struct(order + "HH").unpack_from, struct.Struct(order + "L").unpack_from
    explicit = bytes(body[4:6]).isalpha() and bytes(body[4:6]).isupper()
    both = struct.Struct(order + "HH2sH").unpack_from
    levels: list[_Level] = []
    ends: list[int] = []  # of the items that the scan stands in
    path: Place = ()
    offset, total = 0, len(body)
    end, append, is_short = total, values.append, _SHORT.__contains__
    while True:
        if levels and (len(ends) < len(levels) or offset >= end):
            del ends[len(levels) - 1 :]
            level = levels[-1]
            if level.stop < 0 or offset < level.stop:
                (group, number), (length,) = pair(body, offset), word(body, offset + 4)
                offset += 8
                if (group, number) == (0xFFFE, 0xE000):
                    level.item += 1
                    end = total + 1 if length == _NO_END else offset + length
                    ends.append(end)
                    path, explicit = (*level.path, level.item), level.explicit
                    continue
                if (group, number) != (0xFFFE, 0xE0DD) or level.stop >= 0:
                    raise _unreadable()
            levels.pop()
            path, explicit = level.path[:-1], level.outer
            end = ends[-1] if ends else total
            continue
        if offset >= total or (not levels and total - offset < 8):
            return bytes(body[offset:])
        if explicit:
            group, number, vr, length = both(body, offset)
            if is_short(vr):
                start = offset + 8
            elif group != 0xFFFE and offset + 12 <= total:
                start, (length,) = offset + 12, word(body, offset + 8)
            else:
                start = offset + 8
        else:
            (group, number), (length,) = pair(body, offset), word(body, offset + 4)
            start, vr = offset + 8, b""
        tag = group << 16 | number
        if group == 0xFFFE:
            if number != 0xE00D or not levels:
                raise _unreadable()
            offset += 8
            ends[-1] = end = offset
            continue
        if not levels and group == 0 and not any(body[offset:]):
            return bytes(body[offset:])
        here = (*path, tag)
        if (
            length
            and (vr == b"SQ" or length == _NO_END or (vr in (b"", b"UN") and _is_sequence(tag)))
            and tag != 0x7FE00010
        ):
            if len(levels) == _MAX_LEVELS:
                raise _unreadable()
            stop = -1 if length == _NO_END else start + length
            levels.append(_Level(here, stop, explicit and vr != b"UN", explicit))
            offset = start
        elif length == _NO_END:
            offset = _end_of_fragments(body, start, pair, word)
            append(Value(here, tag, _NAMES.get(vr, ""), memoryview(body)[start:offset]))
        else:
            offset = start + length
            if offset > total:
                raise _unreadable()
            raw = memoryview(body)[start:offset] if group == 0x7FE0 else bytes(body[start:offset])
            append(Value(here, tag, _NAMES.get(vr, ""), raw))


def _end_of_fragments(body: bytes | memoryview, offset: int, pair: Any, word: Any) -> int:
    while True:
        (group, number), (length,) = pair(body, offset), word(body, offset + 4)
        offset += 8
        if (group, number) == (0xFFFE, 0xE0DD):
            return offset
        if (group, number) != (0xFFFE, 0xE000):
            raise _unreadable()
        offset += length


@cache
def _sequences() -> frozenset[int]:
    with (Path(__file__).parent / "tables" / "dictionary.csv").open(encoding="utf-8") as stream:
        lines = (line.split(",") for line in stream)
        return frozenset(int(tag, 16) for tag, vr, *_ in lines if vr == "SQ" and "X" not in tag)


def _is_sequence(tag: int) -> bool:
    return tag in _sequences()


def _unreadable() -> DataError:
    return DataError("DATA-02", "the verifier cannot read it to its end.")

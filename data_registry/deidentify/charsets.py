"""Text values of DICOM: bytes to characters by Specific Character Set (PS3.3 C.12.1.1.2).

Our own, since importing pydicom takes longer than de-identifying two hundred files; the tests
compare it with pydicom's.
"""

from __future__ import annotations

import re
from functools import lru_cache

from core_mri.errors import DataError

ASCII: tuple[str, ...] = ()
"""No character set declared: ISO 646, seven bits."""
_ESCAPE = 0x1B
_BY_REGISTRATION = {
    "6": "ascii", "100": "iso8859_1", "101": "iso8859_2", "109": "iso8859_3", "110": "iso8859_4",
    "144": "iso8859_5", "127": "iso8859_6", "126": "iso8859_7", "138": "iso8859_8",
    "148": "iso8859_9", "203": "iso8859_15", "166": "iso8859_11", "13": "shift_jis",
    "87": "iso2022_jp", "159": "iso2022_jp_2", "149": "euc_kr", "58": "gb2312",
}  # fmt: skip
CODECS = {
    "": "ascii", "ISO_IR 192": "utf_8", "GB18030": "gb18030", "GBK": "gbk",
    "ISO 2022 GBK": "gbk", "ISO 2022 58": "gb2312",
    **{f"ISO_IR {number}": codec for number, codec in _BY_REGISTRATION.items()},
    **{f"ISO 2022 IR {number}": codec for number, codec in _BY_REGISTRATION.items()},
}  # fmt: skip
"""Defined terms, and two spellings that are met, to codecs of Python."""
_ESCAPES = {
    b"(B": "ascii", b"-A": "iso8859_1", b"-B": "iso8859_2", b"-C": "iso8859_3",
    b"-D": "iso8859_4", b"-L": "iso8859_5", b"-G": "iso8859_6", b"-F": "iso8859_7",
    b"-H": "iso8859_8", b"-M": "iso8859_9", b"-b": "iso8859_15", b"-T": "iso8859_11",
    b")I": "shift_jis", b"(J": "shift_jis", b"$)C": "euc_kr", b"$)A": "gb2312",
}  # fmt: skip
"""Escape sequences of PS3.3 Table C.12-3 and C.12-4 that choose an eight-bit set."""
_JAPANESE = {b"$B": "iso2022_jp", b"$(D": "iso2022_jp_2", b"$@": "iso2022_jp"}
"""Those of seven-bit sets, which the codec itself reads."""
_FRAGMENT = re.compile(rb"\x1b(\$\)[AC]|\$\(D|\$[B@]|\([BJ]|\)I|-[A-Za-z])")
_NOT_OF_IT = DataError("DATA-02", "text that is not of its declared character set.")


@lru_cache(maxsize=64)
def character_set(value: bytes) -> tuple[str, ...]:
    """Terms of Specific Character Set (0008,0005).

    Raises:
        DataError: DATA-02 for a term that the standard does not define.
    """
    text = value.decode("ascii", "replace").rstrip("\0 ")
    terms = tuple(term.strip() for term in text.split("\\"))
    if not set(terms) <= set(CODECS):
        raise DataError("DATA-02", "an unknown character set.")
    return ASCII if terms in (("",), ("ISO_IR 6",)) else terms


def decode(value: bytes, terms: tuple[str, ...]) -> str:
    """Characters of one value, which may hold several parts separated by backslashes.

    Args:
        value: Bytes of the value.
        terms: As `character_set` returns them.

    Raises:
        DataError: DATA-02 when bytes are not of the declared character set, or none is declared.
    """
    escaped = _ESCAPE in value
    if value.isascii() and not escaped:
        return value.decode("ascii").rstrip(" \0")
    if not terms:
        raise DataError("DATA-02", "text with an undeclared character set.")
    try:
        if not escaped:
            return value.decode(_without_escape(terms)).rstrip(" \0")
        return _with_escapes(value, CODECS[terms[0]]).rstrip(" \0")
    except UnicodeDecodeError:
        raise _NOT_OF_IT from None


def _without_escape(terms: tuple[str, ...]) -> str:
    """The first set; where it has seven bits only, the one set beside it that has eight."""
    first = CODECS[terms[0]]
    if first == "ascii" and len(terms) > 1:
        return CODECS[terms[1]]
    return first


def _with_escapes(value: bytes, codec: str) -> str:
    """Piece by piece; each escape sequence (ISO 2022) says what follows it."""
    pieces = []
    start = 0
    for match in _FRAGMENT.finditer(value):
        pieces.append(value[start : match.start()].decode(codec))
        start = match.end()
        codec = _ESCAPES.get(match[1], codec)
        if match[1] in _JAPANESE:
            end = value.find(b"\x1b", start)
            part = value[match.start() : len(value) if end < 0 else end]
            pieces.append(part.decode(_JAPANESE[match[1]]))
            start = match.start() + len(part)
    pieces.append(value[start:].decode(codec))
    return "".join(pieces)

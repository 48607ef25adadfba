"""Text values of DICOM: bytes to characters by Specific Character Set (PS3.3 C.12.1.1.2)."""

from __future__ import annotations

import warnings
from functools import lru_cache

from core_mri.errors import DataError

ASCII: tuple[str, ...] = ()
"""No character set declared: ISO 646, seven bits."""
_ESCAPE = 0x1B
_REGISTRATIONS = (6, 13, 58, 87, 100, 101, 109, 110, 126, 127, 138, 144, 148, 149, 159, 166, 203)
TERMS = frozenset(
    {"", "ISO_IR 192", "GB18030", "GBK", "ISO 2022 GBK", "ISO 2022 58"}
    | {f"{start} {number}" for start in ("ISO_IR", "ISO 2022 IR") for number in _REGISTRATIONS}
)
"""Defined terms of PS3.3 C.12.1.1.2, with and without code extensions."""

_ALONE = {
    "ISO_IR 100": "iso8859_1", "ISO_IR 101": "iso8859_2", "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4", "ISO_IR 144": "iso8859_5", "ISO_IR 127": "iso8859_6",
    "ISO_IR 126": "iso8859_7", "ISO_IR 138": "iso8859_8", "ISO_IR 148": "iso8859_9",
    "ISO_IR 203": "iso8859_15", "ISO_IR 166": "iso8859_11", "ISO_IR 13": "shift_jis",
    "ISO_IR 192": "utf_8", "GB18030": "gb18030", "GBK": "gbk",
}  # fmt: skip
"""Codecs of character sets without code extensions."""
_NOT_OF_IT = DataError("DATA-02", "text that is not of its declared character set.")


@lru_cache(maxsize=64)
def character_set(value: bytes) -> tuple[str, ...]:
    """Terms of Specific Character Set (0008,0005).

    Raises:
        DataError: DATA-02 for a term that the standard does not define.
    """
    text = value.decode("ascii", "replace").rstrip("\0 ")
    terms = tuple(term.strip() for term in text.split("\\"))
    if not TERMS.issuperset(terms):
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
    if value.isascii() and _ESCAPE not in value:
        return value.decode("ascii").rstrip(" \0")
    if not terms:
        raise DataError("DATA-02", "text with an undeclared character set.")
    if len(terms) == 1 and terms[0] in _ALONE and _ESCAPE not in value:
        try:
            return value.decode(_ALONE[terms[0]]).rstrip(" \0")
        except UnicodeDecodeError:
            raise _NOT_OF_IT from None
    # Imported for the first such text: it takes longer than two hundred files.
    from pydicom.charset import decode_bytes
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydicom warns, and quotes, where it had to guess
        try:
            text = decode_bytes(value, list(_codecs(terms)), TEXT_VR_DELIMS | PN_DELIMS)
        except (UserWarning, UnicodeError, LookupError):
            raise _NOT_OF_IT from None
    return text.rstrip(" \0")


@lru_cache(maxsize=64)
def _codecs(terms: tuple[str, ...]) -> tuple[str, ...]:
    from pydicom.charset import convert_encodings

    return tuple(convert_encodings(list(terms)))

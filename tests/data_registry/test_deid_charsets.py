"""Character sets: the characters that pydicom reads, and an error for what is none."""

from __future__ import annotations

import warnings

import pydicom
import pytest
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.data import get_charset_files
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from core_mri.errors import DataError
from data_registry.deidentify.charsets import ASCII, character_set, decode
from data_registry.deidentify.verify_reader import scan

NAMES = {
    "ISO_IR 100": "Äneas^Rüdiger", "ISO_IR 144": "Щербаков^Яков", "ISO_IR 127": "قباني^لنزار",
    "ISO_IR 126": "Διονυσιος", "ISO_IR 138": "שרון^דבורה", "ISO_IR 166": "นามสกุล",
    "ISO_IR 192": "Wang^XiaoDong=王^小东", "GB18030": "王^小东", "GBK": "王^小东",
    "\\ISO 2022 IR 149": "Hong^Gildong=洪^吉洞=홍^길동",
    "\\ISO 2022 IR 87": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    "ISO 2022 IR 13\\ISO 2022 IR 87": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    "ISO 2022 IR 100\\ISO 2022 IR 144": "Dionysios Люк",
    "\\ISO 2022 IR 58": "Zhang^XiaoDong=张^小东",
}  # fmt: skip


@pytest.mark.parametrize("charset", NAMES)
def test_what_pydicom_writes(charset: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoded = pydicom.charset.encode_string(
            NAMES[charset], convert_encodings(charset.split("\\"))
        )
    assert decode(encoded, character_set(charset.encode())) == NAMES[charset]


def test_files_of_every_character_set() -> None:
    compared = 0
    for path in get_charset_files("*.dcm"):
        with open(path, "rb") as stream:  # noqa: PTH123
            content = stream.read()
        values = scan(content).values
        declared = [bytes(v.raw) for v in values if v.path == (0x00080005,)]
        terms = character_set(declared[0]) if declared else ASCII
        for value in values:
            if (
                value.tag not in (0x00100010, 0x00100020, 0x00321060, 0x00081050)
                or len(value.path) > 1
            ):
                continue
            raw = bytes(value.raw)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                codecs = convert_encodings(list(terms)) if terms else ["iso8859"]
                wanted = decode_bytes(raw, codecs, TEXT_VR_DELIMS | PN_DELIMS).rstrip(" \0")
            try:
                got = decode(raw, terms)
            except DataError:
                assert not terms, path
                continue
            assert got == wanted, path
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("charset", ["ISO_IR 999", "latin1", "ISO_IR 100\\nonsense"])
def test_unknown_terms(charset: str) -> None:
    with pytest.raises(DataError, match="unknown character set"):
        character_set(charset.encode())


@pytest.mark.parametrize(
    ("raw", "charset"),
    [(b"M\xfcller", ""), (b"M\xfcller", "ISO_IR 6"), (b"\xff\xfe\xfd", "ISO_IR 192")],
)
def test_bytes_of_no_declared_set(raw: bytes, charset: str) -> None:
    with pytest.raises(DataError):
        decode(raw, character_set(charset.encode()))

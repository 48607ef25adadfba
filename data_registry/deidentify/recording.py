"""What the output says of itself: method, codes, file meta group, and a seal.

The seal is an HMAC over the header of the output. It tells our own output when it is given to us
again: sealed with the same key and unchanged since, it is passed on as it is.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from core_mri.version import __version__
from data_registry.deidentify.actions import EDITION
from data_registry.deidentify.encoding import (
    EXPLICIT_LITTLE,
    PIXEL_TAGS,
    Buffer,
    Encoding,
    Parsed,
    header_of,
    item_of,
)
from data_registry.deidentify.profile import CLEAN_FACES, CLEAN_PIXELS, CODES, Profile
from data_registry.deidentify.rules import PATIENT_ID, PATIENT_NAME

IMPLEMENTATION_UID = "2.25.309057942993711921583822705243986725411"
IMPLEMENTATION_NAME = "CORE-MRI"
IDENTITY_REMOVED, METHOD, METHOD_CODES, TEMPORAL = 0x00120062, 0x00120063, 0x00120064, 0x00280303
BURNED_IN, FEATURES = 0x00280301, 0x00280302
RECORDED = frozenset((PATIENT_NAME, PATIENT_ID, IDENTITY_REMOVED, METHOD, METHOD_CODES, TEMPORAL))
"""Attributes of the top level that are written anew."""
_SEAL_START = "seal "
_NO_SEAL = b"0" * 32


def method(
    profile: Profile, *, pixels_clean: bool = False, document_inside: bool = False
) -> list[str]:
    """De-identification Method (0012,0063), of at most 64 characters a value."""
    seen = "no text found in pixels" if pixels_clean else "pixels not inspected"
    return [
        f"core-mri {__version__}, PS3.15 {EDITION}, {profile.name}",
        f"header; {'document not read' if document_inside else seen}",
    ]


def recorded(
    profile: Profile,
    patient: str,
    encoding: Encoding,
    *,
    pixels_clean: bool = False,
    face_removed: bool = False,
    document_inside: bool = False,
) -> list[tuple[int, bytes]]:
    """Elements that every output holds, with an empty seal; tags ascend.

    Args:
        profile: What was done.
        patient: Pseudonym.
        encoding: Of the data set.
        pixels_clean: The pixels were read and show no text, or were blanked: Clean Pixel Data.
        face_removed: The face of a head was removed: Clean Recognizable Visual Features.
        document_inside: There is a document that nobody read: Patient Identity Removed is NO.
    """
    pixel_codes = [CLEAN_PIXELS[0]] if pixels_clean else []
    pixel_codes += [CLEAN_FACES[0]] if face_removed else []
    codes = b"".join(
        item_of(
            b"".join(
                element(tag, vr, value.encode(), encoding)
                for tag, vr, value in (
                    (0x00080100, b"SH", code),
                    (0x00080102, b"SH", "DCM"),
                    (0x00080104, b"LO", _MEANINGS[code]),
                )
            ),
            encoding,
        )
        for code in sorted([*profile.codes, *pixel_codes])
    )
    told = method(profile, pixels_clean=pixels_clean, document_inside=document_inside)
    text = "\\".join([*told, _SEAL_START]).encode() + _NO_SEAL
    removed = b"NO" if document_inside else b"YES"
    return [
        (PATIENT_NAME, element(PATIENT_NAME, b"PN", patient.encode(), encoding)),
        (PATIENT_ID, element(PATIENT_ID, b"LO", patient.encode(), encoding)),
        (IDENTITY_REMOVED, element(IDENTITY_REMOVED, b"CS", removed, encoding)),
        (METHOD, element(METHOD, b"LO", text, encoding)),
        (METHOD_CODES, element(METHOD_CODES, b"SQ", codes, encoding)),
        *([(BURNED_IN, element(BURNED_IN, b"CS", b"NO", encoding))] if pixels_clean else []),
        *([(FEATURES, element(FEATURES, b"CS", b"NO", encoding))] if face_removed else []),
        (TEMPORAL, element(TEMPORAL, b"CS", profile.temporal.encode(), encoding)),
    ]


def element(tag: int, vr: bytes, value: bytes, encoding: Encoding) -> bytes:
    """An element, its value padded to an even length (PS3.5 6.2)."""
    if len(value) & 1:
        value += b"\0" if vr in (b"UI", b"OB", b"UN") else b" "
    return header_of(tag, vr, len(value), encoding) + value


def file_meta(sop_class: str, instance: str, syntax: str) -> bytes:
    """Preamble of zeros, ``DICM`` and a new file meta group (PS3.10 7.1)."""
    group = element(0x00020001, b"OB", b"\0\1", EXPLICIT_LITTLE) + b"".join(
        element(0x00020000 | number, vr, value.encode(), EXPLICIT_LITTLE)
        for number, vr, value in (
            (0x02, b"UI", sop_class),
            (0x03, b"UI", instance),
            (0x10, b"UI", syntax),
            (0x12, b"UI", IMPLEMENTATION_UID),
            (0x13, b"SH", IMPLEMENTATION_NAME),
        )
    )
    length = element(0x00020000, b"UL", struct.pack("<L", len(group)), EXPLICIT_LITTLE)
    return bytes(128) + b"DICM" + length + group


def sealed(header: bytes, key: bytes) -> bytes:
    """`header` with its empty seal filled in.

    Args:
        header: Meta group and data set up to the pixel data, an empty seal among them.
        key: Project key.
    """
    place = header.index(_SEAL_START.encode() + _NO_SEAL) + len(_SEAL_START)
    return header[:place] + _seal(header, key) + header[place + len(_NO_SEAL) :]


def is_sealed(parsed: Parsed, file: Buffer, key: bytes) -> bool:
    """Whether a file is our own output, made with this key and unchanged."""
    found = next((e for e in parsed.elements if e.tag == METHOD), None)
    if found is None or parsed.rest:
        return False
    value = bytes(parsed.content[found.value : found.end]).rstrip(b" ")
    start = len(value) - len(_NO_SEAL)
    if start < 0 or not value[:start].endswith(_SEAL_START.encode()):
        return False
    header = sealed_part(parsed, file)
    place = header.find(value)
    if place < 0:
        return False
    blank = header[: place + start] + _NO_SEAL + header[place + len(value) :]
    return hmac.compare_digest(_seal(blank, key), value[start:])


def sealed_part(parsed: Parsed, file: Buffer) -> bytes:
    """The bytes that a seal covers: all before the value of the pixel data."""
    pixels = next((e for e in parsed.elements if e.tag in PIXEL_TAGS), None)
    end = len(parsed.content) if pixels is None else pixels.value
    if parsed.content is file:
        return bytes(file[:end])
    return bytes(file[: parsed.meta[-1].end]) + bytes(parsed.content[:end])


def _seal(header: bytes, key: bytes) -> bytes:
    digest = hmac.new(key, b"core-mri seal" + header, hashlib.sha256).hexdigest()
    return digest[: len(_NO_SEAL)].encode()


_MEANINGS = dict([*CODES.values(), CLEAN_PIXELS, CLEAN_FACES])

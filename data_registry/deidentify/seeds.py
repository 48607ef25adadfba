"""Whose DICOM file it is: every value that names somebody, in whatever character set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

from data_registry.deidentify.actions import row_of
from data_registry.deidentify.charsets import ASCII, character_set, decode
from data_registry.deidentify.dictionary import dictionary_vr
from data_registry.deidentify.encoding import Buffer, Element, Parsed
from data_registry.deidentify.subject import Kind, Subject, make_subject

_CHARACTER_SET, _PATIENT_NAME, _PATIENT_ID = 0x00080005, 0x00100010, 0x00100020
_OTHER_IDS, _ACCESSION = 0x00101000, 0x00080050
_SEED_VRS = frozenset(b"LO SH ST AE UC".split())
_DATE_VRS = (b"DA", b"DT")


def subject_of(parsed: Parsed, patient_id: str, issuer: str, study: str, key: bytes) -> Subject:
    """The subject, from all words that the file gives away; the files of a series share it."""
    codecs = codecs_of(parsed.content, parsed.elements, ASCII)
    seeds = tuple(dict.fromkeys(seeds_of(parsed.content, parsed.elements, codecs)))
    return _known_subject(key, patient_id, issuer, study, seeds)


@lru_cache(maxsize=64)
def _known_subject(
    key: bytes,
    patient_id: str,
    issuer: str,
    study: str,
    seeds: tuple[tuple[Kind, bytes, tuple[str, ...]], ...],
) -> Subject:
    texts: list[tuple[Kind, str]] = []
    for kind, value, codecs in seeds:
        for part in decode(value, codecs).split("\\"):
            texts.append((kind, part[:8] if kind == "date" else part))
    return make_subject(key, patient_id, issuer, study, texts)


def seeds_of(
    content: Buffer, elements: list[Element], codecs: tuple[str, ...]
) -> Iterator[tuple[Kind, bytes, tuple[str, ...]]]:
    """Every value that names somebody or something: kind, bytes, character set."""
    for element in elements:
        if element.items is not None:
            for item in element.items:
                yield from seeds_of(content, item, codecs_of(content, item, codecs))
            continue
        kind = _seed_kind(element.tag, element.vr)
        if kind is not None and element.end > element.value:
            end = min(element.end, element.value + 8) if kind == "date" else element.end
            value = bytes(content[element.value : end])
            if kind != "date" or value.isdigit():
                yield kind, value, codecs


@cache
def _seed_kind(tag: int, vr: bytes) -> Kind | None:
    """What an attribute names; None when it names nothing."""
    known = dictionary_vr(tag)
    if known != b"UN":
        vr = known
    if vr in _DATE_VRS:
        return "date"
    if vr == b"PN":
        return "patient" if tag == _PATIENT_NAME else "name"
    if tag >> 16 & 1 or vr not in _SEED_VRS:
        return None
    if tag in (_PATIENT_ID, _OTHER_IDS):
        return "patient"
    if tag == _ACCESSION:
        return "name"
    row = row_of(tag)
    if row is None or "descriptors" in row.options or "patient_characteristics" in row.options:
        return None
    return "place"


def codecs_of(
    content: Buffer, elements: list[Element], inherited: tuple[str, ...]
) -> tuple[str, ...]:
    """The character set of a data set or item; items inherit that of the data set around them."""
    for element in elements:
        if element.tag == _CHARACTER_SET:
            return character_set(bytes(content[element.value : element.end]))
        if element.tag > _CHARACTER_SET:
            break
    return inherited

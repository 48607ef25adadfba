"""What the verifier must not find: words, numbers, dates and UIDs of the original."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from data_registry.deidentify.verify_reader import Value
from data_registry.deidentify.verify_tables import (
    dictionary_vr,
    is_published_creator,
    may_stay,
    row_of,
)
from data_registry.vocabulary import is_technical

_NAME_TAGS = frozenset({0x00100010, 0x00100020, 0x00101000, 0x00101001, 0x00080050})
_DATES, _TIMES = ("DA", "DT"), ("TM",)
_BYTES = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "UN"])
_TEXT = frozenset(["AE", "AS", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "DS", "IS"])
NUMBER = re.compile(rb"[\s\d+\-.eE\\\0]*")
RUN = re.compile(rb"[\x20-\x7e]{4,}")
WIDE = re.compile(rb"(?:[\x20-\x7e]\0){3,}[\x20-\x7e]|(?:\0[\x20-\x7e]){4,}")
DATE = re.compile(r"(\d{4})[.\-/]?(\d{2})[.\-/]?(\d{2})(?!\d?\.)")
WORD = re.compile("[a-z0-9]+")
MIN = 4
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MAX_BYTES_VALUE = 4096
_CODE = 0x00080100
_DOCUMENT = 0x00420011
"""An encapsulated document: searched for what the other values hold, not for its own words."""


@dataclass
class Wanted:
    """What must not be found.

    Args:
        names: Words of names and numbers of people: not even technical ones in what was cleaned.
        words: Words of names, places and numbers: nowhere.
        weak: Words of other texts: not in what was changed.
        phrases, weak_phrases: Whole values that hold such a word.
        dates: Dates and times of day as they are written, the time of day cut off.
        uids, raw: As they are written; raw holds parts in other scripts.
    """

    names: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    weak: set[str] = field(default_factory=set)
    phrases: set[str] = field(default_factory=set)
    weak_phrases: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)
    uids: set[bytes] = field(default_factory=set)
    raw: set[bytes] = field(default_factory=set)


def wanted_of(
    values: list[Value], outside: list[bytes], options: frozenset[str], local: set[tuple[int, ...]]
) -> Wanted:
    """What must not be found in the output of a file.

    Args:
        values: Of the original.
        outside: Bytes of the original that belong to no element.
        options: Claimed by the output.
        local: Paths of codes that are no published ones.
    """
    wanted = Wanted()
    for value in values:
        group = value.tag >> 16
        if group == 0x7FE0 or value.tag == _DOCUMENT or not len(value.raw):
            continue
        raw = bytes(value.raw)
        if value.path in local:
            add_text(wanted, raw, person=False, place=value.tag == _CODE)
        vr = value.vr if value.vr not in ("", "UN") else dictionary_vr(value.tag)
        if group & 1:
            if not 0x10 <= value.tag & 0xFFFF <= 0xFF or not is_published_creator(raw):
                _add_private(wanted, raw, vr)
        elif group == 2:
            if value.tag & 0xFFFF in (0x0016, 0x0017, 0x0018, 0x0102):
                add_text(wanted, raw, person=False, place=True)
            elif value.tag & 0xFFFF in (0x0003, 0x0100):
                _add_uid(wanted, raw)
        elif not may_stay(value.tag, options) or (vr in _DATES and "full_dates" not in options):
            _add(wanted, value.tag, vr, raw)
    for rest in outside:
        for run in RUN.findall(rest):
            add_text(wanted, run, person=False, place=True)
    return wanted


def _add(wanted: Wanted, tag: int, vr: str, raw: bytes) -> None:
    if vr == "UI":
        _add_uid(wanted, raw)
    elif vr in _DATES:
        for part in raw.decode("latin-1").split("\\"):
            wanted.dates.add(part.strip(" \0")[:10])
    elif vr in _TIMES:
        for part in raw.decode("latin-1").split("\\"):
            if len(part.strip()) > 6:  # to fractions of a second: hardly by chance
                wanted.dates.add(part.strip(" \0"))
    elif vr in _TEXT:
        row = row_of(tag)
        free = not row or "descriptors" in row or vr in ("LT", "UT")
        add_text(wanted, raw, person=vr == "PN" or tag in _NAME_TAGS, place=not free)
    elif vr in _BYTES and MIN <= len(raw) <= _MAX_BYTES_VALUE:
        for run in RUN.findall(raw):
            add_text(wanted, run, person=False, place=True)


def _add_private(wanted: Wanted, raw: bytes, vr: str) -> None:
    if vr == "UI":
        _add_uid(wanted, raw)
    elif vr in ("DA", "DT"):
        _add(wanted, 0, vr, raw)
    elif vr == "PN":
        add_text(wanted, raw, person=True, place=True)
    elif vr in ("LO", "SH", "LT", "ST", "UT", "UC", "AE") or (
        vr in _BYTES and len(raw) <= _MAX_BYTES_VALUE and not NUMBER.fullmatch(raw)
    ):
        for run in _text_runs(raw):
            add_text(wanted, run, person=False, place=False)


def _text_runs(raw: bytes) -> Iterator[bytes]:
    """Runs of text that are long enough not to be numbers that look like it."""
    for run in RUN.findall(raw):
        if len(run) >= 8:
            yield run
    for run in WIDE.findall(raw):
        yield run.replace(b"\0", b"")


def _add_uid(wanted: Wanted, raw: bytes) -> None:
    for uid in raw.strip(b"\0 ").split(b"\\"):
        if len(uid) > 5 and not uid.startswith(b"1.2.840.10008."):
            wanted.uids.add(uid)


def add_text(wanted: Wanted, raw: bytes, *, person: bool, place: bool) -> None:
    """Add the words of a text: a person's name or number, a place or device, or any other text."""
    words, phrases, foreign = _parts_of(raw)
    if person:
        wanted.names.update(word for word in words if not word.isdigit() or len(word) >= MIN)
    telling = [word for word in words if _is_telling(word)]
    if person or place:
        wanted.words.update(telling)
        wanted.phrases.update(phrases)
        wanted.raw.update(foreign)
    else:
        wanted.weak.update(telling)
        wanted.weak_phrases.update(phrases)


@lru_cache(maxsize=4096)
def _parts_of(raw: bytes) -> tuple[tuple[str, ...], tuple[str, ...], tuple[bytes, ...]]:
    """Words, whole values worth searching, and parts in other scripts, of a text value."""
    words: list[str] = []
    phrases: list[str] = []
    foreign: list[bytes] = []
    for part in raw.split(b"\\"):
        found = words_of(part)
        words += [word for word in found if len(word) > 1]
        whole = " ".join(found)
        if len(whole) >= MIN and any(_is_telling(word) for word in found):
            phrases.append(whole)
            joined = "".join(found)
            if joined.isdigit() and len(joined) >= 6:
                phrases.append(joined)
        foreign += [
            piece
            for piece in re.split(rb"[\^= ]+", part.strip(b" \0"))
            if len(piece) >= MIN and (not piece.isascii() or b"\x1b" in piece)
        ]
    return tuple(words), tuple(phrases), tuple(foreign)


def _is_telling(word: str) -> bool:
    if word.isdigit():
        return len(word) >= MIN
    return len(word) >= 3 and not is_technical(word)


@lru_cache(maxsize=4096)
def words_of(raw: bytes) -> tuple[str, ...]:
    """Lower-case words of letters and digits, accents dropped."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if not text.isascii():
        parts = unicodedata.normalize("NFKD", text)
        text = "".join(character for character in parts if not unicodedata.combining(character))
    return tuple(WORD.findall(text.lower()))


@lru_cache(maxsize=1 << 14)
def layouts(date: str) -> list[str]:
    """Usual ways to write ``YYYYMMDD``, in words as :func:`_words` leaves them; a time as it is."""
    match = DATE.match(date)
    if match is None or not 1 <= int(match[2]) <= 12:
        return [" ".join(WORD.findall(date))] if len(date) > 6 else []
    year, month, day = match.groups()
    name, short = _MONTHS[int(month) - 1], (str(int(day)), str(int(month)))
    orders = ((year, month, day), (day, month, year), (month, day, year))
    return [
        *("".join(order) for order in orders),
        *(" ".join(order) for order in orders),
        f"{short[0]} {short[1]} {year}",
        f"{short[1]} {short[0]} {year}",
        f"{short[0]} {name}",
        f"{day} {name}",
        f"{name} {day} {year}",
        f"{day}{name}{year}",
    ]

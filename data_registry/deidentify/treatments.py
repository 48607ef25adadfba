"""What happens to one value: kept, cleaned, shifted, replaced or removed.

A treatment takes a `Place` and the bytes of a value, and returns the very same bytes (kept), other
bytes (replaced; empty for a zero-length value) or None (removed). It never sees pixel data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

from data_registry.deidentify.charsets import decode
from data_registry.deidentify.descriptors import split_text
from data_registry.deidentify.identifiers import keyed_uid, pseudonym
from data_registry.deidentify.policy import policy
from data_registry.deidentify.subject import Subject
from data_registry.vocabulary import words

MAX_AGE_YEARS = 90
DUMMY_TEXT = "ANONYMIZED"
MAX_LENGTH = {b"CS": 16, b"SH": 16, b"LO": 64, b"PN": 64, b"AE": 16}
"""Characters that PS3.5 6.2 allows in one value."""

_DUMMIES: dict[bytes, bytes] = {
    b"AE": b"ANONYMIZED",
    b"AS": b"000D",
    b"CS": b"ANONYMIZED",
    b"DA": b"19000101",
    b"DT": b"19000101000000",
    b"TM": b"000000",
    b"DS": b"0",
    b"IS": b"0",
    b"UR": b"about:blank",
}
_NUMBER = re.compile(rb"[ ]*(?:[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)?[ \0]*")
_CODE = re.compile(rb"[A-Z0-9_ \\]*\0?")
_TELLING_BYTES = re.compile(rb"[A-Za-z0-9 ^.,_\-\0]{8,}")
_DATE = re.compile(r"(\d{4})([.\-/]?)(\d{2})\2(\d{2})")
_DATE_TIME = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{2,6}(?:\.\d{1,6})?)?(?:[+-]\d{4})?")
_TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?")


@dataclass
class Place:
    """Where a value stands, and what its file is about.

    Args:
        subject: The patient.
        codecs: Character set of this data set or item.
        scheme: Coding Scheme Designator of this item; None when it has none.
        removed: Receives the words that cleaning took away.
    """

    subject: Subject
    codecs: tuple[str, ...]
    scheme: str | None = None
    removed: list[str] = field(default_factory=list)


Treatment = Callable[[Place, bytes], bytes | None]


def keep(_: Place, value: bytes) -> bytes:
    """As it is."""
    return value


def remove(_: Place, _value: bytes) -> None:
    """Not in the output."""
    return None


def empty(_: Place, _value: bytes) -> bytes:
    """A value of length zero."""
    return b""


def dummy(vr: bytes) -> Treatment:
    """A value of the VR that is the same for everybody."""
    if vr == b"UI":
        return new_uid
    known = _DUMMIES.get(vr)
    text = DUMMY_TEXT.encode() if known is None else known

    def replace(_: Place, value: bytes) -> bytes:
        if vr in _BINARY:
            return bytes(len(value))
        return text

    return replace


def patient_name(place: Place, _value: bytes) -> bytes:
    """A patient's name, wherever it stands: the pseudonym."""
    return place.subject.name.encode()


def patient_id(place: Place, value: bytes) -> bytes:
    """A patient's number: the pseudonym; another patient's, inside a sequence, has another one."""
    text = decode(value, place.codecs).strip()
    subject = place.subject
    if text in ("", subject.patient_id, subject.name):
        return subject.name.encode()
    return pseudonym(subject.key, "patient", "", text).encode()


def new_uid(place: Place, value: bytes) -> bytes:
    """Each UID keyed; those of the standard stay."""
    memo = place.subject.memo
    found = memo.get(value)
    if found is None:
        old = value.decode("ascii", "replace").rstrip(" \0")
        new = "\\".join(keyed_uid(place.subject.key, uid) for uid in old.split("\\")) if old else ""
        found = value if new == old else new.encode()
        if len(memo) < _MAX_MEMO:
            memo[value] = found
    return found  # type: ignore[return-value]


def number_string(_: Place, value: bytes) -> bytes | None:
    """DS and IS: numbers stay, text that stands in their place goes."""
    return value if _is_number(value) else None


def binary_number(_: Place, value: bytes) -> bytes | None:
    """Numbers as bytes stay; what reads as a text of at least eight characters goes."""
    return None if _TELLING_BYTES.fullmatch(value) and value.strip(b"\0 ") else value


def code_string(place: Place, value: bytes) -> bytes | None:
    """CS: stays unless it holds a word of the patient that is no technical one."""
    return _code_string(place, value)


def private_code(place: Place, value: bytes) -> bytes | None:
    """A CS of a vendor, whose terms no standard lists: capitals, no word of the patient."""
    return _code_string(place, value) if _CODE.fullmatch(value) else None


def cleaned(vr: bytes, instead: str = "") -> Treatment:
    """A description: the words of the vocabularies stay, but not those of the patient's name.

    Args:
        vr: Bounds the length of each value.
        instead: Replaces a value of which nothing is left.
    """
    return _remembered(lambda place, text: _clean(place, text, vr, instead))


def scrubbed(vr: bytes) -> Treatment:
    """A technical text: stays, but for words and dates of the patient."""
    return _remembered(lambda place, text: _scrub(place, text, vr))


def ethnic_group(place: Place, value: bytes) -> bytes:
    """The words of a short list stay."""
    text = decode(value, place.codecs)
    kept = [word for word in words(text) if word in policy().ethnic_groups]
    return value if kept == words(text) else " ".join(kept).encode()


def age(_: Place, value: bytes) -> bytes:
    """Over 89 years: 90 (45 CFR 164.514(b)(2)(i)(C))."""
    text = value.decode("ascii", "replace").strip(" \0")
    new = cap_age(text)
    return value if new == text else new.encode()


def shifted_date(place: Place, value: bytes) -> bytes | None:
    """DA: moved by the days of the subject; what is no date goes."""
    return _shifted(value, lambda text: move_date(text, place.subject.days))


def shifted_time(place: Place, value: bytes) -> bytes | None:
    """TM: moved by the time of the subject, around the clock; what is no time goes."""
    return _shifted(value, lambda text: move_time(text, place.subject.time))


def shifted_date_time(place: Place, value: bytes) -> bytes | None:
    """DT: date and time moved like DA and TM, so that both agree; the time zone goes."""

    def move(text: str) -> str:
        match = _DATE_TIME.fullmatch(text)
        if match is None:
            return ""
        year, month, day, clock = match.groups()
        date = move_date(year + (month or "07") + (day or "15"), place.subject.days)
        if not date or day is None or clock is None:
            return date[: len(year + (month or "") + (day or ""))]
        time = move_time(clock, place.subject.time)
        return date + time if time else ""

    return _shifted(value, move)


def code_value(place: Place, value: bytes) -> bytes | None:
    """Of a published scheme: stays. Of a hospital's own, which may hold numbers: keyed."""
    if not _is_local(place):
        return _scrub_short(place, value)
    text = decode(value, place.codecs)
    if text.isalpha() and not place.subject.holds_own(text):
        return value
    return pseudonym(place.subject.key, "code", text)[:16].encode() if text else value


def code_meaning(place: Place, value: bytes) -> bytes | None:
    """Of a published scheme: stays but for the patient's words. Else cleaned like a description."""
    if not _is_local(place):
        return _scrub_long(place, value)
    return _clean_meaning(place, value)


def cap_age(age: str) -> str:
    """A DICOM age string with every age over 89 years as ``090Y`` (45 CFR 164.514(b)(2)(i)(C))."""
    match = re.fullmatch(r"\s*(\d{1,3})([DWMY])\s*", age)
    if match is None:
        return ""
    years = int(match[1]) / {"D": 365, "W": 52, "M": 12, "Y": 1}[match[2]]
    return f"{int(match[1]):03d}{match[2]}" if years < MAX_AGE_YEARS else f"{MAX_AGE_YEARS:03d}Y"


def move_date(text: str, days: timedelta) -> str:
    """``YYYYMMDD`` (or the legacy ``YYYY.MM.DD``) moved by days; empty when it is no date."""
    match = _DATE.fullmatch(text)
    if match is None:
        return ""
    try:
        moved = datetime(int(match[1]), int(match[3]), int(match[4])) + days
    except (ValueError, OverflowError):
        return ""
    return f"{moved.year:04d}{moved.month:02d}{moved.day:02d}"


def move_time(text: str, shift: timedelta) -> str:
    """``HHMMSS.FFFFFF`` moved around the clock, at the precision it has; empty when it is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        return ""
    hours, minutes, seconds, fraction = match.groups()
    if int(hours) > 23 or int(minutes or 0) > 59 or int(seconds or 0) > 60:
        return ""
    moment = datetime(2000, 1, 1, int(hours), int(minutes or 0), min(int(seconds or 0), 59))
    moment += timedelta(microseconds=int((fraction or "").ljust(6, "0"))) + shift
    whole = moment.strftime("%H%M%S")[: 2 * sum(p is not None for p in (hours, minutes, seconds))]
    return (
        f"{whole}.{moment.microsecond:06d}"[: len(whole) + 1 + len(fraction)] if fraction else whole
    )


_BINARY = frozenset(b"AT FD FL SL SS SV UL US UV OB OD OF OL OV OW UN".split())
_MAX_MEMO = 20_000


@lru_cache(maxsize=8192)
def _is_number(value: bytes) -> bool:
    return all(_NUMBER.fullmatch(part) for part in value.split(b"\\"))


def _is_local(place: Place) -> bool:
    return place.scheme is not None and place.scheme not in policy().coding_schemes


def _remembered(change: Callable[[Place, str], tuple[str, list[str]]]) -> Treatment:
    """Decode, change, encode; values that are seen again (all files of a series) are looked up."""

    def treat(place: Place, value: bytes) -> bytes | None:
        memo = place.subject.memo
        name = (treat, place.codecs, value)
        found: tuple[bytes, list[str]] | None = memo.get(name)  # type: ignore[assignment]
        if found is None:
            old = decode(value, place.codecs)
            new, gone = change(place, old)
            found = (value if new == old else new.encode("ascii", "ignore"), gone)
            if len(memo) < _MAX_MEMO:
                memo[name] = found
        place.removed.extend(found[1])
        return found[0]

    return treat


def _clean(place: Place, text: str, vr: bytes, instead: str) -> tuple[str, list[str]]:
    kept, removed = [], []
    for part in text.split("\\"):
        clean, gone = split_text(part, place.subject.forbidden)
        kept.append(clean[: MAX_LENGTH.get(vr, len(clean))] or instead)
        removed += gone
    joined = "\\".join(kept)
    return joined.upper() if vr == b"CS" and joined != text else joined, removed


def _scrub(place: Place, text: str, vr: bytes) -> tuple[str, list[str]]:
    kept, removed = [], []
    for part in text.split("\\"):
        if not place.subject.holds_own(part):
            kept.append(part)
            continue
        clean, gone = split_text(part, place.subject.forbidden)
        # What is required must not become empty (PS3.3, type 1).
        kept.append(clean[: MAX_LENGTH.get(vr, len(clean))] or DUMMY_TEXT)
        removed += gone
    return "\\".join(kept), removed


_scrub_short, _scrub_long = scrubbed(b"SH"), scrubbed(b"LO")
_clean_meaning = cleaned(b"LO", DUMMY_TEXT)


def _code(place: Place, text: str) -> tuple[str, list[str]]:
    if place.subject.holds_own(text):
        return _clean(place, text, b"CS", DUMMY_TEXT)
    return text, []


_code_string = _remembered(_code)


def _shifted(value: bytes, move: Callable[[str], str]) -> bytes | None:
    old = value.decode("ascii", "replace").strip(" \0")
    if not old:
        return value
    moved = [move(part.strip()) for part in old.split("\\")]
    return "\\".join(moved).encode() if all(moved) else None

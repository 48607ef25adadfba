"""The verifier: looks for what identified the original in the bytes of the output, and vetoes.

It shares the published table and the vocabulary with the engine, and no code that decides: it reads
both files with its own reader, learns from the original what must not be found, takes from the
output every byte that is not proven harmless, and searches the one in the other. Proven harmless is
only: pixel data that equal the original's; binary and decimal numbers that are no text; new UIDs
(2.25.) and those of the standard; dates and times that differ from the original's in the same
place; the pseudonym; and what the output says of its own method.

Known limit: a name that is also a technical word is not seen in attributes that the profile keeps.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from data_registry.deidentify.mapped import pieces
from data_registry.deidentify.verify_reader import Value, scan
from data_registry.deidentify.verify_tables import (
    Creators,
    claims,
    dictionary_vr,
    local_codes,
    may_stay,
)
from data_registry.deidentify.verify_wanted import (
    DATE,
    MIN,
    NUMBER,
    RUN,
    WIDE,
    Wanted,
    add_text,
    layouts,
    wanted_of,
    words_of,
)
from data_registry.vocabulary import is_technical

_NUMERIC = frozenset(["FL", "FD", "SS", "US", "SL", "UL", "SV", "UV", "AT"])
_LETTERS = re.compile(rb"[A-Za-z0-9 ^.,_\-\0]{8,}")
_UID = re.compile(
    rb"(2\.25\.\d{30,39}|1\.2\.840\.10008\.[\d.]+)(\\(2\.25\.\d{30,39}|1\.2\.840\.10008\.[\d.]+))*"
)
_PSEUDONYM = re.compile(rb"P[A-Z2-7]{16}")
_OWN_METHOD = re.compile(rb"core-mri [^\\]*\\[^\\]*\\seal [0-9a-f]{32}")
_DIGITS = re.compile(r"\d{6}|\d \d{1,2} \d|\d ?[a-z]{3}|[a-z]{3} \d")
"""What a text must hold to hold a date or a time."""
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{8,}")
_METHOD, _METHOD_CODES = 0x00120063, 0x00120064


class _Unproven(NamedTuple):
    """Bytes of the output that are not proven harmless.

    Args:
        where: As in `Finding`.
        raw: The bytes.
        changed: They are not as they were in an attribute that may stay.
    """

    where: str
    raw: bytes
    changed: bool


class Finding(NamedTuple):
    """An identifier of the original that is in the output; never its value.

    Args:
        where: Tag in the output as eight digits, ``outside`` for bytes of no element, ``pixels``.
        kind: What was found: name, text, number, date, time, uid, pixels.
    """

    where: str
    kind: str


def find_leaks(original: bytes | memoryview, output: bytes | memoryview) -> list[Finding]:
    """Everything of `original` that identifies and is in `output`.

    Args:
        original: A DICOM file.
        output: Its de-identified form; the options that it claims in its method codes decide which
            attributes may be as they were.

    Returns:
        Findings without values; empty when there are none.

    Raises:
        DataError: DATA-02 when one of them cannot be read to its end.
    """
    before, after = scan(original), scan(output)
    options = frozenset(claims(after.values))
    old = {value.path: value.raw for value in before.values}
    local = local_codes(before.values)
    # Files that say that pixels were blanked or cropped are not compared there.
    worked_on = bool(options & {"pixels", "faces"})
    findings = set() if worked_on else set(_pixels(before.values, after.values))
    creators = Creators()
    unproven: list[_Unproven] = []
    for value in after.values:
        group = value.tag >> 16
        if group == 0x7FE0 or (group & 1 and creators.names(value)):
            continue
        stays = creators.is_safe(value) if group & 1 else may_stay(value.tag, options)
        stays = stays and value.path not in local
        original_value = old.get(value.path)
        if _is_unmoved(value, original_value, options):
            findings.add(Finding(f"{value.tag:08X}", "date"))
        elif not _is_proven(value, original_value, stays):
            raw = bytes(value.raw)
            same = stays and original_value is not None and bytes(original_value) == raw
            unproven.append(_Unproven(f"{value.tag:08X}", raw, not same))
    unproven += [_Unproven("outside", rest, True) for rest in after.outside if any(rest)]
    wanted = wanted_of(before.values, before.outside, options, local)
    # Most files hold nothing of it: all is searched as one, and by place only after a hit.
    if _holds(unproven, wanted):
        for part in unproven:
            findings.update(_search(part, wanted))
    return sorted(findings)


def find_text(
    content: bytes, where: str, *, names: Iterable[str] = (), texts: Iterable[str] = ()
) -> list[Finding]:
    """What identifies, in any bytes, such as a header of another format.

    Args:
        content: To search.
        where: How findings call it.
        names: Names, numbers and dates of people: no word of them may be there.
        texts: Other texts: only their technical words may be there.
    """
    wanted = Wanted()
    for person, originals in ((True, names), (False, texts)):
        for original in originals:
            if DATE.match(original.strip()):
                wanted.dates.add(original.strip()[:10])
            else:
                add_text(wanted, original.encode(), person=person, place=True)
    return sorted(set(_search(_Unproven(where, content, True), wanted)))


def _pixels(before: list[Value], after: list[Value]) -> Iterator[Finding]:
    """Pixel data must equal the original's, which may have had bytes behind the last pixel."""
    old = {value.tag: memoryview(value.raw) for value in before if value.tag >> 16 == 0x7FE0}
    for value in after:
        if value.tag >> 16 == 0x7FE0:
            original = old.get(value.tag)
            new = memoryview(value.raw)
            if original is None or len(original) < len(new) or not _same(original, new):
                yield Finding("pixels", "pixels")


def _same(original: memoryview, new: memoryview) -> bool:
    """Whether `original` begins with `new`; as bytes, since views are compared item by item."""
    return all(bytes(a) == bytes(b) for a, b in pieces(original[: len(new)], new))


def _is_unmoved(value: Value, old: bytes | memoryview | None, options: frozenset[str]) -> bool:
    """Whether a date or time is the original's, or one that the original does not have there."""
    if "full_dates" in options or not len(value.raw) or value.tag >> 16 == 2:
        return False
    vr = value.vr if value.vr not in ("", "UN") else dictionary_vr(value.tag)
    if vr not in ("DA", "DT", "TM"):
        return False
    return bytes(value.raw) == bytes(old or b"") or (old is None and value.tag >> 16 & 1 == 1)


def _is_proven(value: Value, old: bytes | memoryview | None, stays: bool) -> bool:
    """Whether a value of the output cannot tell anything of the original."""
    raw, tag = bytes(value.raw), value.tag
    if not raw:
        return True
    vr = value.vr if value.vr not in ("", "UN") else dictionary_vr(tag)
    if vr == "UI":
        return _UID.fullmatch(raw.strip(b"\0 ")) is not None
    if vr in _NUMERIC:
        return not (len(raw) >= 8 and _LETTERS.fullmatch(raw))
    if vr in ("DS", "IS"):
        return stays and NUMBER.fullmatch(raw) is not None
    if vr in ("DA", "DT", "TM"):
        return old is not None
    if tag in (0x00100010, 0x00100020):
        return _PSEUDONYM.fullmatch(raw.strip(b" \0")) is not None
    if tag == _METHOD:
        return _OWN_METHOD.fullmatch(raw.rstrip(b" ")) is not None
    return value.path[0] == _METHOD_CODES or tag == 0x00020001


def _holds(unproven: list[_Unproven], wanted: Wanted) -> bool:
    """Whether anything wanted is anywhere in what is unproven."""
    together = b"\n".join(part.raw for part in unproven)
    if any(uid in together for uid in wanted.uids) or any(r in together for r in wanted.raw):
        return True
    texts: list[str] = []
    strange: list[str] = []
    changed: list[str] = []
    for part in unproven:
        for words, odd in _read(part.raw):
            texts.append(" ".join(words))
            strange += odd
            if part.changed:
                changed += words
    if not wanted.names.isdisjoint(changed) or not wanted.words.isdisjoint(strange):
        return True
    if not wanted.weak.isdisjoint(changed):
        return True
    joined, odd_text = "\n".join(texts), "\n".join(strange)
    return (
        any(word in odd_text for word in wanted.words if len(word) > MIN)
        or any(phrase in joined for phrase in wanted.phrases)
        or any(phrase in joined for phrase in wanted.weak_phrases)
        or _holds_date(joined, wanted.dates)
    )


def _search(part: _Unproven, wanted: Wanted) -> Iterator[Finding]:
    """What of the wanted is in one value, as it is, as UTF-16 and as base64."""
    raw, where = part.raw, part.where
    if any(uid in raw for uid in wanted.uids):
        yield Finding(where, "uid")
    if any(foreign in raw for foreign in wanted.raw):
        yield Finding(where, "name")
    for words, strange in _read(raw):
        joined = " ".join(words)
        if part.changed and not wanted.names.isdisjoint(words):
            yield Finding(where, "name")
        if not wanted.words.isdisjoint(strange) or any(
            known in word
            for known in wanted.words
            if len(known) > MIN and not known.isdigit()
            for word in strange
        ):
            yield Finding(where, "name")
        if part.changed and not wanted.weak.isdisjoint(strange):
            yield Finding(where, "text")
        phrases = wanted.phrases | wanted.weak_phrases if part.changed else wanted.phrases
        if strange and any(phrase in joined for phrase in phrases):
            yield Finding(where, "text")
        if _holds_date(joined, wanted.dates):
            yield Finding(where, "date")


def _holds_date(joined: str, dates: set[str]) -> bool:
    if not _DIGITS.search(joined):
        return False
    padded = f" {joined} ".replace("\n", " ")
    return any(
        (way in padded) if len(way) >= 8 and " " not in way else f" {way} " in padded
        for date in dates
        for way in layouts(date)
    )


@lru_cache(maxsize=1 << 14)
def _read(raw: bytes) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Words of every reading of the bytes, all and those that are no technical terms."""
    return tuple((words, _strange(words)) for text in _readings(raw) if (words := words_of(text)))


@lru_cache(maxsize=4096)
def _strange(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words that are no technical terms."""
    return tuple(word for word in words if not is_technical(word))


@lru_cache(maxsize=4096)
def _readings(raw: bytes) -> tuple[bytes, ...]:
    """The bytes, and what they say as UTF-16 and as base64."""
    found = [raw]
    if b"\0" in raw.rstrip(b"\0"):
        found += [run.replace(b"\0", b"") for run in WIDE.findall(raw)]
    for run in _BASE64.findall(raw):
        for start in range(4):
            text = run[start:]
            try:
                decoded = base64.b64decode(text[: len(text) // 4 * 4])
            except binascii.Error:
                continue
            readable = [part for part in RUN.findall(decoded) if len(part) >= 5]
            found += readable
            found += [run.replace(b"\0", b"") for run in WIDE.findall(decoded)]
    return tuple(found)

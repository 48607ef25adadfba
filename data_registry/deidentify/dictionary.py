"""Attributes of the standard: VR and keyword by tag (PS3.6), from ``tables/dictionary.csv``.

A table of our own, since importing pydicom costs more than de-identifying two hundred files.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

TABLES = Path(__file__).parent / "tables"


@cache
def dictionary_vr(tag: int) -> bytes:
    """VR of an attribute of the standard, the first where several are allowed; UN when unknown."""
    if tag & 0xFFFF == 0:
        return b"UL"
    if tag >> 16 & 1:
        return b"LO" if 0x10 <= tag & 0xFFFF <= 0xFF else b"UN"
    return _entry(tag)[0] or b"UN"


@cache
def keyword_of(tag: int) -> str:
    """Keyword of an attribute of the standard; empty when unknown."""
    return _entry(tag)[1]


def tag_of(keyword: str) -> int | None:
    """Tag of a keyword; None when the standard has no such attribute."""
    return _tags().get(keyword)


def _entry(tag: int) -> tuple[bytes, str]:
    """VR and keyword; of repeating groups by the pattern, such as ``60XX3000``."""
    name = f"{tag:08X}"
    listed = _attributes()
    found = listed.get(name) or listed.get(name[:2] + "XX" + name[4:])
    return found or (b"", "")


@cache
def _attributes() -> dict[str, tuple[bytes, str]]:
    with (TABLES / "dictionary.csv").open(encoding="utf-8", newline="") as stream:
        return {tag: (vr.encode(), keyword) for tag, vr, keyword in csv.reader(stream)}


@cache
def _tags() -> dict[str, int]:
    return {
        keyword: int(tag, 16)
        for tag, (_, keyword) in _attributes().items()
        if keyword and "X" not in tag and tag != "tag"
    }

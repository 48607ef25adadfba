"""Preconditions and byte ranges of RFC 9110 (HTTP Semantics), sections 13 and 14, without a server.

Representations have a strong ETag and no Last-Modified, so every condition on a date is ignored
(13.1.3, 13.1.4), or, in If-Range, false (13.1.5).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_SPEC = re.compile(r"(?:([0-9]{1,19})-([0-9]{0,19})|-([0-9]{1,19}))")
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')


@dataclass(frozen=True)
class Part:
    """Bytes `first` to `last`, both included, as Content-Range names them."""

    first: int
    last: int


Wanted = Part | Literal["whole", "outside"]


def wanted(field: str | None, size: int) -> Wanted:
    """What a Range field asks for.

    Another unit, wrong syntax and several ranges give the whole, as 14.2 allows: a client that
    wants many pieces asks for them one by one, and nobody makes us join thousands of tiny ones.

    Args:
        field: Value of Range; None without.
        size: Bytes of the file.

    Returns:
        A part; ``"whole"``; or ``"outside"`` when it begins behind the end (416).
    """
    unit, equals, ranges = (field or "").partition("=")
    specs = [spec.strip(" \t") for spec in ranges.split(",") if spec.strip(" \t")]
    if not equals or unit.strip().lower() != "bytes" or len(specs) != 1:
        return "whole"
    match = _SPEC.fullmatch(specs[0])
    if match is None:
        return "whole"
    if match[3] is not None:  # the last bytes
        length = int(match[3])
        if not length:
            return "outside"
        return Part(max(0, size - length), size - 1) if size else "whole"
    first = int(match[1])
    last = int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return "whole"
    return Part(first, min(last, size - 1)) if first < size else "outside"


def may_be_partial(if_range: str | None, etag: str) -> bool:
    """Whether a Range counts: without If-Range, or when that names this very representation."""
    return if_range is None or if_range.strip() == etag


def precondition(
    if_match: str | None, if_none_match: str | None, etag: str
) -> Literal["go on", "not modified", "failed"]:
    """What conditions on ETags say of a GET or HEAD (13.2.2): 200 or 206, 304, or 412.

    Args:
        if_match: Value of If-Match, compared strongly; None without.
        if_none_match: Value of If-None-Match, compared weakly; None without.
        etag: Strong, of the file.
    """
    if if_match is not None and if_match.strip() != "*" and etag not in _TAG.findall(if_match):
        return "failed"
    if if_none_match is not None:
        tags = {tag.removeprefix("W/") for tag in _TAG.findall(if_none_match)}
        if if_none_match.strip() == "*" or etag in tags:
            return "not modified"
    return "go on"

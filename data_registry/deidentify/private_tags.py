"""Private attributes that may stay: by the name of their creator, never by their number alone.

A private attribute (gggg,bbee) belongs to the creator whose name stands in (gggg,00bb) of the same
data set (PS3.5 7.8.1); ee is its number within the block.
"""

from __future__ import annotations

import csv
from functools import cache

from data_registry.deidentify import treatments
from data_registry.deidentify.dictionary import TABLES
from data_registry.deidentify.treatments import Place

_SIZES = {
    b"FL": 4, b"FD": 8, b"SS": 2, b"US": 2, b"SL": 4, b"UL": 4, b"SV": 8, b"UV": 8,
}  # fmt: skip
_UNTYPED = (b"UN", b"OB")
"""VRs under which a converter without the vendor's dictionary stores a private value."""


@cache
def safe_private() -> dict[tuple[str, int, int], tuple[bytes, ...]]:
    """(creator, group, number in the block) -> VRs that its value may have."""
    with (TABLES / "safe_private.csv").open(encoding="utf-8", newline="") as stream:
        return {
            (line["creator"], int(line["group"], 16), int(line["element"], 16)): tuple(
                line["vr"].encode().split()
            )
            for line in csv.DictReader(stream)
        }


def treat_private(place: Place, creator: str, tag: int, vr: bytes, value: bytes) -> bytes | None:
    """The value of a safe attribute, judged by its VR; None for all others.

    Args:
        place: Where it stands.
        creator: Name of the creator of its block.
        tag: Group and element number.
        vr: As the file states it; UN and OB are judged by the VRs of the table.
        value: Its bytes.
    """
    allowed = safe_private().get((creator, tag >> 16, tag & 0xFF))
    if allowed is None:
        return None
    if vr not in _UNTYPED:
        return _judged(place, vr, value) if vr in allowed else None
    for candidate in allowed:
        kept = _judged(place, candidate, value)
        if kept is not None:
            return kept
    return None


def _judged(place: Place, vr: bytes, value: bytes) -> bytes | None:
    size = _SIZES.get(vr)
    if size is not None:
        return treatments.binary_number(place, value) if len(value) % size == 0 else None
    if not value.isascii():
        return None
    if vr in (b"DS", b"IS"):
        return treatments.number_string(place, value)
    if vr == b"CS":
        return treatments.private_code(place, value)
    return _SCRUB[vr](place, value) if vr in _SCRUB else None


_SCRUB = {vr: treatments.cleaned(vr) for vr in (b"SH", b"LO", b"LT", b"ST")}

"""Free text to labels: which region, sequence, plane or use of contrast a description names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from data_registry.vocabulary import Entry, table, words

UNKNOWN = "unknown"

_NOT_SEQUENCES = ("contrast", "no contrast", "inversion recovery")
_GLUED = re.compile("(?<=[a-z]{3})(?=[A-Z][a-z]{2})")


def regions() -> tuple[str, ...]:
    """Every region a label can have, `unknown` last."""
    return (*(entry.name for entry in table("regions")), UNKNOWN)


def sequences() -> tuple[str, ...]:
    """Every sequence a label can have, `unknown` last."""
    names = [e.name for e in table("sequences") if e.name not in _NOT_SEQUENCES]
    names.insert(names.index("T1") + 1, "T1 contrast")
    return (*names, UNKNOWN)


def around(region: str) -> tuple[str, ...]:
    """The regions that contain one, from the inside out."""
    containers = {entry.name: entry.within for entry in table("regions")}
    found: list[str] = []
    while region := containers.get(region, ""):
        found.append(region)
    return tuple(found)


def find_region(texts: Sequence[str]) -> str:
    """The region named by the first of `texts` that names one, the innermost; else ``unknown``.

    Of several in one text it is the region that contains them all, or else the earliest.
    """
    return _first(_region_in, texts)


def find_sequence(texts: Sequence[str], *, inversion_ms: float | None = None) -> str:
    """The sequence named by the first of `texts` that names one; else ``unknown``.

    "tirm" and "tir" name a readout whose contrast is FLAIR or STIR by its inversion time.
    """
    return _first(lambda text: _sequence_in(text, inversion_ms), texts)


def find_plane(texts: Sequence[str]) -> str:
    """The plane named by the first of `texts` that names just one; else ``unknown``."""
    return _first(_plane_in, texts)


def find_contrast(texts: Sequence[str]) -> str:
    """Whether a text says that an agent was given: ``yes``, ``no``; ``unknown`` if both or none."""
    return _first(_contrast_in, texts)


def by_inversion_time(inversion_ms: float | None) -> str:
    """Short times null fat, long ones fluid; the limits are our judgement, with a gap between."""
    if inversion_ms is not None and 80 <= inversion_ms <= 300:
        return "STIR"
    if inversion_ms is not None and 1200 <= inversion_ms <= 3000:
        return "FLAIR"
    return UNKNOWN


def _first(find: Callable[[str], str], texts: Sequence[str]) -> str:
    """The first answer; each text is read as written, then with ``RoutineHead`` in two words."""
    for text in texts:
        for form in dict.fromkeys((text, _GLUED.sub(" ", text))):
            if (found := find(" ".join(words(form)))) != UNKNOWN:
                return found
    return UNKNOWN


@lru_cache(maxsize=1 << 14)
def _region_in(normal: str) -> str:
    spans = {
        entry.name: match.span()
        for entry in table("regions")
        if (match := entry.pattern.search(normal))
    }
    found = {  # "head and neck" is one region: a word inside a longer name does not count
        name: (start, -end)  # the earliest, then the longest
        for name, (start, end) in spans.items()
        if not any(a <= start and end <= b and b - a > end - start for a, b in spans.values())
    }
    outer = {container for name in found for container in around(name)}
    inner = [name for name in found if name not in outer]
    bodies = [name for name in inner if name != "phantom"] or inner
    if len(bodies) > 1:  # "liver and kidney" is abdomen
        shared = set.intersection(*(set(around(name)) for name in bodies))
        whole = next((name for name in around(bodies[0]) if name in shared), UNKNOWN)
        if whole != UNKNOWN:
            return whole
    return min(bodies, key=lambda name: found[name], default=UNKNOWN)


@lru_cache(maxsize=1 << 14)
def _sequence_in(normal: str, inversion_ms: float | None) -> str:
    for entry in table("sequences"):
        if not entry.pattern.search(normal) or entry.name in ("contrast", "no contrast"):
            continue
        if entry.unless and entry.unless.search(normal):
            continue
        if entry.name == "inversion recovery":
            return by_inversion_time(inversion_ms)
        if entry.name == "T1" and _contrast_in(normal) == "yes":
            return "T1 contrast"
        return entry.name
    return UNKNOWN


@lru_cache(maxsize=1 << 14)
def _plane_in(normal: str) -> str:
    named = [entry.name for entry in table("planes") if entry.pattern.search(normal)]
    return named[0] if len(named) == 1 else UNKNOWN


@lru_cache(maxsize=1 << 14)
def _contrast_in(normal: str) -> str:
    given = _entry("contrast").pattern.search(normal)
    without = _entry("no contrast").pattern.search(normal)
    if without:
        # "without contrast" holds both words; "pre and post" means that the images are of both.
        return UNKNOWN if given and re.search(r"\bpost", normal) else "no"
    return "yes" if given else UNKNOWN


def _entry(name: str) -> Entry:
    return next(entry for entry in table("sequences") if entry.name == name)

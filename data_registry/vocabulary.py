"""The words of MRI protocols: one normal form of a text, and tables of words that name a thing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent / "tables"
_WORD = re.compile("[a-z0-9]+")
_SUFFIX = "[0-9]{0,2}[a-z]{0,2}[0-9]?"
_COUNT = "[0-9]{1,3}"
_PLUS_CONTRAST = re.compile(r"\+\s*(?:c|gd|gad|km)\b|\bc\s*\+|\bi\.?v\.?\s*\+", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A name and how to find it in a text of `words`.

    Args:
        name: What the words stand for, such as ``"knee"``.
        pattern: Finds one of its words.
        unless: Finds a word that forbids the answer; None when nothing does.
        within: Name of the entry that contains this one; empty at the top.
    """

    name: str
    pattern: re.Pattern[str]
    unless: re.Pattern[str] | None
    within: str


def words(text: str) -> list[str]:
    """Lower-case runs of ASCII letters and digits; accents are dropped, ``+C`` is `postcontrast`.

    Characters that have no ASCII form end a word and are never part of one.
    """
    text = _PLUS_CONTRAST.sub(" postcontrast ", text)
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in decomposed if not unicodedata.combining(c))
    return _WORD.findall(text.lower())


@cache
def table(name: str) -> tuple[Entry, ...]:
    """The entries of ``tables/NAME.yaml``, in the order of the file."""
    return tuple(
        Entry(
            name=label,
            pattern=_pattern(entry["words"]),
            unless=_pattern(entry["unless"]) if "unless" in entry else None,
            within=entry.get("within", ""),
        )
        for label, entry in read_table(name).items()
    )


@lru_cache(maxsize=1 << 16)
def is_technical(word: str) -> bool:
    """Whether `word` (of `words`) says something about a scan: it stands in one of the tables."""
    return _technical().fullmatch(word) is not None


@cache
def _technical() -> re.Pattern[str]:
    """Every word of every table; words of more than one word are allowed one by one."""
    phrases = [
        phrase
        for name in ("regions", "sequences", "technical")
        for entry in read_table(name).values()
        for phrase in entry["words"]
    ]
    single = sorted({word for phrase in phrases for word in str(phrase).split()})
    return re.compile("|".join(_regex(word) for word in single))


@cache
def read_table(name: str) -> dict[str, Any]:
    """The content of ``tables/NAME.yaml``."""
    import yaml

    content: dict[str, Any] = yaml.safe_load((TABLES / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


def _pattern(phrases: Iterable[object]) -> re.Pattern[str]:
    longest_first = sorted(map(str, phrases), key=len, reverse=True)
    alternatives = "|".join(map(_regex, longest_first))
    return re.compile(rf"(?<!\S)(?:{alternatives})(?!\S)")


def _regex(phrase: str) -> str:
    return re.escape(phrase).replace(r"\*", _SUFFIX).replace("%", _COUNT)

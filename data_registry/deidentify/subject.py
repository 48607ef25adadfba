"""Whose file it is: the words and dates that may not stay, the pseudonym, the shift of times."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from data_registry.deidentify.descriptors import name_words
from data_registry.deidentify.identifiers import date_shift_days, patient_pseudonym, time_shift
from data_registry.vocabulary import is_technical, words

Kind = Literal["patient", "name", "place", "date"]
"""Of a seed: the patient's name or number, another person or number, a place or device, a date."""

_MIN_WORD, _MIN_NUMBER, _MIN_INSIDE = 3, 4, 5
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_NUMBERS = re.compile(r"(?=(?<!\d)(\d{1,4})[-./_ ](\d{1,2})[-./_ ](\d{1,4})(?!\d))")
_EIGHT = re.compile(r"(?=(\d{8}))")
_NAMES = "|".join(_MONTHS)
_DAY_FIRST = re.compile(rf"(\d{{1,2}})[-./ ]?({_NAMES})[a-z]*[-./, ]*(\d{{4}})", re.IGNORECASE)
_MONTH_FIRST = re.compile(rf"({_NAMES})[a-z]*[-./ ]*(\d{{1,2}})[-./, ]+(\d{{4}})", re.IGNORECASE)


@dataclass(frozen=True)
class Subject:
    """What cleaning one file needs to know of its patient.

    Args:
        key: Project key.
        name: Pseudonym, both name and number in the output.
        patient_id: Patient ID as it was, to know it again inside sequences.
        days: Added to every date.
        time: Added to every time of day.
        forbidden: Words of people's names and numbers: gone from every description.
        own: Words of `forbidden`, places and devices that are no technical terms: gone from all
            text that stays.
        foreign: The same in other scripts, as they are written.
        inside: Those of `own` that are looked for inside longer words.
        dates: Every date of the file, ``YYYYMMDD``.
        memo: Results for values seen before; belongs to this subject alone.
    """

    key: bytes
    name: str
    patient_id: str
    days: timedelta
    time: timedelta
    forbidden: frozenset[str]
    own: frozenset[str]
    foreign: frozenset[str]
    inside: tuple[str, ...]
    dates: frozenset[str]
    memo: dict[object, object] = field(default_factory=dict, compare=False, repr=False)

    def holds_own(self, text: str) -> bool:
        """Whether `text` holds a word or date of this patient."""
        found = words(text)
        if not self.own.isdisjoint(found):
            return True
        strange = [word for word in found if not is_technical(word)]
        if strange and any(own in word for word in strange for own in self.inside):
            return True
        if not text.isascii() and any(part in text for part in self.foreign):
            return True
        return not self.dates.isdisjoint(dates_in(text))


def make_subject(
    key: bytes, patient_id: str, issuer: str, study_uid: str, seeds: Iterable[tuple[Kind, str]]
) -> Subject:
    """The subject of a file.

    Args:
        key: Project key.
        patient_id: Patient ID (0010,0020), may be empty.
        issuer: Issuer of Patient ID (0010,0021), may be empty.
        study_uid: Stands in when there is no Patient ID.
        seeds: Identifying texts of the file, and its dates as ``YYYYMMDD``.
    """
    texts: dict[Kind, list[str]] = {"patient": [], "name": [], "place": [], "date": []}
    for kind, text in seeds:
        texts[kind].append(text)
    people = name_words([*texts["patient"], *texts["name"]])
    everything = people | name_words(texts["place"]) | set(_compact(texts["patient"]))
    name = patient_pseudonym(key, patient_id, issuer, study_uid=study_uid)
    own = frozenset(word for word in everything if _is_telling(word))
    return Subject(
        key=key,
        name=name,
        patient_id=patient_id.strip(),
        days=timedelta(days=date_shift_days(key, name)),
        time=time_shift(key, name),
        forbidden=people,
        own=own,
        foreign=frozenset(_foreign([*texts["patient"], *texts["name"]])),
        inside=tuple(sorted(word for word in own if len(word) >= _MIN_INSIDE)),
        dates=frozenset(texts["date"]),
    )


def dates_in(text: str) -> Iterator[str]:
    """Every date that `text` can be read to hold, in the usual ways to write one, ``YYYYMMDD``."""
    if sum(character.isdigit() for character in text) < 5:
        return
    for first, second, third in _NUMBERS.findall(text):
        for year, month, day in (
            (first, second, third),
            (third, second, first),
            (third, first, second),
        ):
            if len(year) == 4 and len(month) <= 2 and len(day) <= 2:
                yield f"{year}{int(month):02d}{int(day):02d}"
    for run in _EIGHT.findall(text):
        yield run
        yield run[4:] + run[2:4] + run[:2]
        yield run[4:] + run[:2] + run[2:4]
    for day, name, year in _DAY_FIRST.findall(text):
        yield f"{year}{_MONTHS.index(name.lower()) + 1:02d}{int(day):02d}"
    for name, day, year in _MONTH_FIRST.findall(text):
        yield f"{year}{_MONTHS.index(name.lower()) + 1:02d}{int(day):02d}"


def _is_telling(word: str) -> bool:
    if word.isdigit():
        return len(word) >= _MIN_NUMBER
    return len(word) >= _MIN_WORD and not is_technical(word)


def _compact(texts: Iterable[str]) -> Iterator[str]:
    """A number without its separators: 12-34-56 may be written 123456 elsewhere."""
    for text in texts:
        joined = "".join(words(text))
        if len(joined) >= _MIN_INSIDE and any(character.isdigit() for character in joined):
            yield joined


def _foreign(texts: Iterable[str]) -> Iterator[str]:
    """Parts of names that ASCII cannot spell."""
    for text in texts:
        for part in re.split(r"[\^=\\\s,.]+", text):
            if len(part) > 1 and not part.isascii():
                yield part

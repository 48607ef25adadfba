"""Unmistakable identifiers, and what the standard asks to become of each attribute."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

Check = Literal[
    "tag_retained",
    "text_notnull",
    "text_removed",
    "text_retained",
    "date_shifted",
    "uid_changed",
    "uid_consistent",
    "patid_consistent",
    "pixels_hidden",
    "pixels_retained",
]
"""The ten checks of MIDI-B 2024 (arXiv 2507.23608, Table 2)."""

Path = tuple[str | int, ...]
"""Keywords (or tags ``GGGGxxEE CREATOR``) and item numbers from the top of a data set."""

CYRILLIC, KOREAN, KANJI, ARABIC, GREEK, LATIN = (
    "абвгдежзиклмнопрстуфхцчшщэюя",
    "가나다라마바사아자차카타파하김이박최정강조윤장임",
    "山田太郎鈴木佐藤高橋渡辺伊藤中村小林加藤吉",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "äöüéèñçåøæ",
)


@dataclass(frozen=True)
class Expectation:
    """One check of one attribute of one file.

    Args:
        check: Which.
        path: Where.
        value: What must stay, go or be shifted.
    """

    check: Check
    path: Path
    value: str = ""


@dataclass
class Patient:
    """Who the files of a patient belong to; `month` bounds all dates, so that no date of a patient
    that was shifted can be another one of them."""

    number: int
    family: str
    given: str
    patient_id: str
    year: int
    month: int
    script: str


@dataclass
class Planter:
    """Makes identifiers and remembers each one that it hands out for the file at work."""

    seed: int
    tokens: list[str] = field(default_factory=list)
    expected: list[Expectation] = field(default_factory=list)
    patient: Patient | None = None

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._patients = 0

    def begin_file(self) -> None:
        self.tokens, self.expected = [], []
        if self.patient:
            self.tokens += [self.patient.family, self.patient.given, self.patient.patient_id]

    def new_patient(self) -> Patient:
        self._patients += 1
        scripts = ("ascii", "latin", "cyrillic", "korean", "japanese", "arabic", "greek")
        self.patient = Patient(
            number=self._patients,
            family=self._letters("Q"),
            given=self._letters("X"),
            patient_id="".join(self.random.choices("3456789", k=9)),
            year=self.random.randint(1998, 2020),
            month=self.random.randint(1, 12),
            script=scripts[self._patients % len(scripts)],
        )
        return self.patient

    def word(self, length: int = 9) -> str:
        return self._note(self._letters("Z", length))

    def shout(self) -> str:
        return self._note(self._letters("Z").upper())

    def digits(self, length: int = 9) -> str:
        return self._note("".join(self.random.choices("3456789", k=length)))

    def name(self) -> str:
        """A person's name in one to five components, sometimes with a prefix and suffix."""
        parts = [self.word() for _ in range(self.random.randint(1, 3))]
        return "^".join([*parts, *self.random.choice(([], ["", "Dr."], ["", "", "MD"]))][:5])

    def foreign(self) -> str:
        """A name in the script of the patient, two to four characters."""
        assert self.patient is not None
        letters = {
            "latin": LATIN, "cyrillic": CYRILLIC, "korean": KOREAN, "japanese": KANJI,
            "arabic": ARABIC, "greek": GREEK,
        }.get(self.patient.script)  # fmt: skip
        if letters is None:
            return self.word()
        length = 3 if self.patient.script in ("korean", "japanese") else 7
        return self._note("".join(self.random.choices(letters, k=length)))

    def date(self, form: str = "{:04d}{:02d}{:02d}") -> str:
        assert self.patient is not None
        day = self.random.randint(1, 28)
        return self._note(form.format(self.patient.year, self.patient.month, day))

    def time(self) -> str:
        clock = [self.random.randint(*r) for r in ((5, 20), (10, 59), (10, 59), (100000, 999999))]
        return self._note("{:02d}{:02d}{:02d}.{:06d}".format(*clock))

    def uid(self) -> str:
        numbers = [str(self.random.randint(10**6, 10**7)) for _ in "abc"]
        return self._note("1.3.12.2.1107.5." + ".".join(numbers))

    def email(self) -> str:
        return f"{self.word()}@{self.word()}.example"

    def expect(self, check: Check, path: Path, value: str = "") -> None:
        self.expected.append(Expectation(check, path, value))

    def _letters(self, start: str, length: int = 9) -> str:
        return start + "q" + "".join(self.random.choices("bcdfghjkvwxyz", k=length))

    def _note(self, token: str) -> str:
        self.tokens.append(token)
        return token

"""How many planted identifiers are in any byte of an output, and how many checks it passes."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from tests.data_registry.deid_corpus.objects import Planted
from tests.data_registry.deid_corpus.planter import Expectation

_NEW_UID = re.compile(rb"2\.25\.\d{30,39}")
_ENCODINGS = (
    "utf-8",
    "latin-1",
    "utf-16-le",
    "iso8859_5",
    "iso8859_6",
    "iso8859_7",
    "euc_kr",
    "iso2022_jp",
)


@dataclass
class Score:
    """Counts over a corpus.

    Args:
        tokens: Planted identifiers looked for.
        leaks: Kind of object -> identifiers found.
        passed, failed: By check.
        missed: First failures, with their place, for the reader.
        without_output: Files that should have had one, by kind.
    """

    tokens: int = 0
    leaks: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    without_output: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Share of the checks that passed."""
        return self.passed.total() / max(self.passed.total() + self.failed.total(), 1)


def found(tokens: Iterable[str], content: bytes) -> list[str]:
    """The tokens that occur in `content`, in any usual encoding, or as base64."""
    content = _NEW_UID.sub(b"", content)  # 39 digits hold some eight of a date by chance
    lower = content.lower()
    hits = []
    for token in tokens:
        for encoding in _ENCODINGS if not token.isascii() else ("ascii", "utf-16-le"):
            try:
                raw = token.encode(encoding)
            except UnicodeEncodeError:
                continue
            if raw.lower() in lower:
                hits.append(token)
                break
        else:
            if token.isascii() and any(form in content for form in _base64(token)):
                hits.append(token)
    return hits


def _base64(token: str) -> list[bytes]:
    """What a token looks like inside base64 at each of three places, without its uncertain ends."""
    raw = token.encode()
    forms = []
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + raw).rstrip(b"=")
        forms.append(text[(0, 2, 3)[shift] : len(text) - 1])
    return [form for form in forms if len(form) >= 8]


def score(files: list[Planted], outputs: dict[Path, bytes]) -> Score:
    """Compare a corpus with what a tool made of it.

    Args:
        files: The corpus.
        outputs: Path below the output folder -> bytes, of every file there.
    """
    result = Score()
    by_number: dict[int, tuple[Dataset, bytes]] = {}
    for path, content in outputs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dataset = pydicom.dcmread(io.BytesIO(content), force=content[128:132] == b"DICM")
                number = int(dataset.get("InstanceNumber", 0) or 0)
            except Exception:  # no DICOM: an audit, searched below
                number = 0
        if number:
            by_number[number] = dataset, str(path).encode() + b"\n" + content
    loose = b"\n".join(
        str(path).encode() + (b"" if content[128:132] == b"DICM" else b"\n" + content)
        for path, content in outputs.items()
    )
    maps: dict[str, dict[str, str]] = defaultdict(dict)
    shifts: dict[str, Counter[int]] = defaultdict(Counter)
    pending: list[tuple[str, Expectation, int]] = []
    for file in files:
        dataset, content = by_number.get(file.number, (None, b""))
        tokens = set(file.tokens)
        result.tokens += len(tokens)
        leaked = found(tokens, content) + found(tokens, loose)
        result.leaks[file.kind] += len(set(leaked))
        if dataset is None:
            if file.output:
                result.without_output[file.kind] += 1
                for expected in file.expected:
                    result.failed[expected.check] += 1
            else:
                result.passed.update(expected.check for expected in file.expected)
            continue
        patient = file.name.rsplit("_", 1)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for expected in file.expected:
                _check(result, file, dataset, expected, maps, shifts, pending, patient)
    for patient, expected, shift in pending:
        common = shifts[patient].most_common(1)[0][0]
        _count(result, expected, shift == common and shift != 0)
    return result


def _check(
    result: Score,
    file: Planted,
    dataset: Dataset,
    expected: Expectation,
    maps: dict[str, dict[str, str]],
    shifts: dict[str, Counter[int]],
    pending: list[tuple[str, Expectation, int]],
    patient: str,
) -> None:
    if expected.check == "pixels_retained":
        _count(result, expected, bytes(dataset.get("PixelData", b"")) == file.pixels)
        return
    if expected.check == "pixels_hidden":
        _count(result, expected, False)
        return
    found_there, value = _value(dataset, expected.path)
    if expected.check == "date_shifted":
        shift = _days(expected.value, value)
        if shift is None:
            _count(result, expected, False)
        else:
            shifts[patient][shift] += 1
            pending.append((patient, expected, shift))
        return
    if expected.check in ("uid_consistent", "patid_consistent"):
        known = maps[expected.check].setdefault(expected.value, value)
        distinct = Counter(maps[expected.check].values())[value] == 1
        _count(result, expected, bool(value) and known == value and distinct)
        return
    passed: Callable[[], bool] = {
        "tag_retained": lambda: found_there,
        "text_notnull": lambda: bool(value.strip()),
        "text_removed": lambda: not found([expected.value], value.encode("utf-8", "replace")),
        "text_retained": lambda: _same(expected.value, value),
        "uid_changed": lambda: bool(value) and value != expected.value,
    }[expected.check]
    _count(result, expected, passed())


def _count(result: Score, expected: Expectation, passed: bool) -> None:
    (result.passed if passed else result.failed)[expected.check] += 1
    if not passed and len(result.missed) < 50:
        result.missed.append(f"{expected.check} {'/'.join(map(str, expected.path))}")


def _same(wanted: str, got: str) -> bool:
    """Equal as numbers or as text, or a word that is still there."""
    try:
        numbers = [[float(part) for part in text.split("\\")] for text in (wanted, got)]
        return numbers[0] == numbers[1]
    except ValueError:
        return wanted.lower() in got.lower().replace("_", "_") or _words(wanted) <= _words(got)


def _words(text: str) -> set[str]:
    return set(text.lower().replace("_", " ").replace("\\", " ").split())


def _value(dataset: Dataset, path: tuple[str | int, ...]) -> tuple[bool, str]:
    """Whether the attribute is there, and its value as text."""
    here: Any = dataset
    for step in path:
        if isinstance(step, int):
            if step >= len(here):
                return False, ""
            here = here[step]
        elif "xx" in step:
            place, creator = step.split(" ", 1)
            try:
                block = here.private_block(int(place[:4], 16), creator)
                here = block[int(place[6:], 16)].value
            except KeyError:
                return False, ""
        else:
            if step not in here:
                return False, ""
            here = here[step].value
    if here is None:
        return True, ""
    if isinstance(here, (list, pydicom.multival.MultiValue)):
        return True, "\\".join(map(str, here))
    return True, str(here)


def _days(old: str, new: str) -> int | None:
    try:
        days = [date(int(t[:4]), int(t[4:6]), int(t[6:8])) for t in (old, new)]
    except ValueError:
        return None
    return (days[1] - days[0]).days

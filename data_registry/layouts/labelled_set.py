"""A labelled data set as its own list tells it, and what no list may contradict."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from core_mri.errors import DataError

Part = Literal["training", "validation", "test"]

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".tif", ".tiff", ".npy")
"""Ends of image files, the longest first where one holds another."""
_MAX_JSON = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+()/,'-]{0,63}")
_MANY = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """Images of one grid, and their label map."""

    name: str
    """Unique in the data set."""
    images: tuple[str, ...]
    """Paths below the root: one for each channel, or one 4D file of all channels."""
    label: str = ""
    """Path below the root; empty for an unlabelled case."""
    part: Part = "training"
    fold: int | None = None
    """Fold of a cross-validation, where the list tells."""


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """What a data set says of itself; paths exist, and lie below the root."""

    layout: str
    root: Path
    listing: Path
    """The file that says so."""
    cases: tuple[Case, ...]
    channels: tuple[str, ...] = ()
    """Names of the channels of every case; empty when one image a case has no name."""
    label_names: Mapping[int, str] = field(default_factory=dict)
    """Structure of each value; empty when nobody tells."""
    label_regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Structures of several values."""
    patient_patterns: tuple[str, ...] = ()
    """Rules of the layout: regular expressions with a group ``subject``; the first that matches
    from the start of the name of a case decides, without a match it is a patient of its own."""
    licence: str = ""
    """In the words of the data set; empty when it states none."""

    def __post_init__(self) -> None:
        if not self.cases:
            raise broken(self.listing, "lists no case", "Check the folder.")
        _no_duplicates(self)


def broken(where: Path, what: str, fix: str = "") -> DataError:
    """The error of a list that contradicts itself or its folder."""
    return DataError("DATA-27", f"{where}: {what}.", fix=fix)


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        DataError: DATA-27 when it is none, or larger than 64 MiB.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise broken(path, f"larger than {_MAX_JSON >> 20} MiB, which is no list of cases")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise broken(
            path, f"is no JSON ({error})", "Download it again, or give --layout none."
        ) from None
    if not isinstance(content, dict):
        raise broken(path, f"holds a {type(content).__name__}, expected an object with keys")
    return content


def below(root: Path, listing: Path, path: object) -> str:
    """A path of a list, as a path below the root.

    Raises:
        DataError: DATA-27 when it is no text, leads out of the root, or names no file.
    """
    if not isinstance(path, str) or not path.strip():
        raise broken(listing, f"expected the path of a file, got {path!r}")
    plain = posixpath.normpath(path.strip().replace("\\", "/"))
    if PurePosixPath(plain).is_absolute() or plain == ".." or plain.startswith("../"):
        raise broken(
            listing,
            f"{path!r} leads out of {root}",
            "Paths are relative to the folder of the list; move the files or correct the list.",
        )
    if not (root / plain).is_file():
        raise broken(
            listing,
            f"names {path!r}, and there is no such file in {root}",
            "Unpack the data set again, remove the entry, or give --layout none if it is no list.",
        )
    return plain


def stem(path: str) -> str:
    """File name without its ending: ``imagesTr/heart_1.nii.gz`` -> ``heart_1``."""
    name = PurePosixPath(path).name
    ending = next((end for end in ENDINGS if name.lower().endswith(end)), None)
    return name[: -len(ending)] if ending else PurePosixPath(name).stem


def unique_names(paths: Sequence[str]) -> list[str]:
    """Names of cases: the stems, or the whole paths without ending where stems repeat."""
    stems = [stem(path) for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [str(PurePosixPath(path).parent / stem(path)) for path in paths]


def plain_name(listing: Path, name: object) -> str:
    """A name of a channel or structure, of letters, digits and a few signs.

    Raises:
        DataError: DATA-27 when it is something else.
    """
    text = str(name).strip()
    if not _NAME.fullmatch(text):
        raise broken(
            listing,
            f"{text!r} is no name of a sequence or structure",
            "Use letters, digits, blanks and _.+()/,'- and at most 64 signs.",
        )
    return text


def names_by_number(listing: Path, content: object, what: str) -> tuple[str, ...]:
    """``{"0": "T1", "1": "T2"}`` as ``("T1", "T2")``.

    Raises:
        DataError: DATA-27 when the numbers are not 0, 1, 2, ..., or a name stands twice.
    """
    if not isinstance(content, Mapping) or not content:
        raise broken(listing, f'{what} must be an object like {{"0": "T1"}}, got {content!r}')
    numbers = sorted(content, key=lambda key: int(key) if str(key).isdigit() else -1)
    if [str(number) for number in numbers] != [str(i) for i in range(len(numbers))]:
        raise broken(listing, f"{what} must be numbered 0, 1, 2, ..., got {list(content)}")
    names = tuple(plain_name(listing, content[number]) for number in numbers)
    if len({name.lower() for name in names}) < len(names):
        raise broken(listing, f"{what} has a name twice: {', '.join(names)}")
    return names


def _no_duplicates(data: LabelledSet) -> None:
    images = [path for case in data.cases for path in case.images]
    labels = {case.label for case in data.cases if case.label}
    if twice := sorted(path for path, count in Counter(images).items() if count > 1):
        raise broken(
            data.listing,
            f"image {twice[0]!r} is listed more than once ({len(twice)} such)",
            "Remove all but one of its entries.",
        )
    if both := sorted(labels.intersection(images)):
        raise broken(
            data.listing,
            f"{both[0]} is listed as an image and as a label map",
            "Name the label map, or put both into folders of their own.",
        )


def some(names: Iterable[str]) -> str:
    """The first few of many, and how many there are."""
    listed = sorted(names)
    more = f" and {len(listed) - _MANY} more" if len(listed) > _MANY else ""
    return ", ".join(listed[:_MANY]) + more

"""One DICOM data set to a new one that holds what is on an allow-list, at every depth.

This is a first level, not the Basic Application Level Confidentiality Profile of PS3.15 Annex E,
and the output says so: no code 113100 is written. Not in the output are:

1. private attributes, attributes that the DICOM dictionary does not know or gives another VR,
   overlays (60xx), curves (50xx) and every attribute that `tables/attributes.yaml` does not list;
2. of what is listed, what its VR forbids (`ACTIONS`): numbers and codes stay, UIDs are keyed, dates
   move by a keyed number of days, descriptions lose every word that is not in the vocabularies; all
   other text, names, times of day, AE titles and unknown bytes go.

Pixel data stay as they are, bit for bit.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from core_mri.errors import DataError
from core_mri.version import __version__
from data_registry.deidentify.descriptors import clean_text, name_words
from data_registry.deidentify.facts import cap_age
from data_registry.deidentify.identifiers import date_shift_days, keyed_uid, patient_pseudonym
from data_registry.vocabulary import TABLES, is_technical, words

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

METHOD = [
    f"core-mri {__version__}: header allow-list, first level",
    "Not a PS3.15 profile; pixel data not inspected",
]
"""Value of De-identification Method (0012,0063)."""

MAX_LENGTH = {"CS": 16, "SH": 16, "LO": 64}
"""Characters that PS3.5 allows in one value of the VRs of `TEXTS`."""

_FRAMES = "PerFrameFunctionalGroupsSequence"
_ID_KEYWORDS = ("PatientID", "OtherPatientIDs", "AccessionNumber")
_DATE = re.compile(r"(\d{4})([.\-/]?)(\d{2})\2(\d{2})")
_CODE_STRING = re.compile(r"[A-Z0-9_ \\]*")
_CODE_VALUE = re.compile(r"[A-Za-z0-9.\-/\[\]{}^*]{1,16}")


@dataclass(frozen=True)
class Rules:
    """The lists of ``tables/attributes.yaml``, explained there."""

    groups: frozenset[int]
    tags: frozenset[int]
    keywords: frozenset[str]
    denied: frozenset[str]
    emptied: frozenset[str]
    texts: frozenset[str]
    bulk: frozenset[str]
    coding_schemes: frozenset[str]


@dataclass(frozen=True)
class Subject:
    """What cleaning one file needs to know of its patient."""

    key: bytes
    name: str
    shift: timedelta
    forbidden: frozenset[str]


class Field(NamedTuple):
    """One element, the data set or item it stands in, and whose it is."""

    element: DataElement
    dataset: Dataset
    subject: Subject


Action = Callable[[Field], object]
"""The new value of an element; the very same object when it stays, None when it goes."""


@cache
def rules() -> Rules:
    """What is let through."""
    import yaml

    lists = yaml.safe_load((TABLES / "attributes.yaml").read_text(encoding="utf-8"))
    return Rules(**{name: frozenset(values) for name, values in lists.items()})


def deidentify_dataset(
    dataset: Dataset, key: bytes, *, counts: Counter[str] | None = None
) -> Dataset:
    """A new data set for `dataset`, which is left as it is.

    Args:
        dataset: As `pydicom.dcmread` returns it.
        key: Project key.
        counts: Receives the numbers of ``kept``, ``replaced``, ``removed`` attributes, all depths.

    Returns:
        The data set with its own file meta group and an empty preamble, in the transfer syntax of
        `dataset`, ready for `pydicom.dcmwrite`.

    Raises:
        DataError: DATA-02 when the UID of object, series or study is missing.
    """
    from pydicom.uid import UID

    missing = [
        keyword
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
        if not dataset.get(keyword)
    ]
    if missing:
        raise DataError("DATA-02", f"the header lacks {', '.join(missing)}.")
    with warnings.catch_warnings():
        # pydicom's warnings quote values of the header.
        warnings.simplefilter("ignore")
        subject = _subject(dataset, key)
        clean = _clean(dataset, subject, Counter() if counts is None else counts)
    clean.PatientName = clean.PatientID = subject.name
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = METHOD
    clean.LongitudinalTemporalInformationModified = "MODIFIED"
    clean.preamble = bytes(128)
    clean.file_meta = _file_meta(clean, UID(transfer_syntax(dataset)))
    return clean


def transfer_syntax(dataset: Dataset) -> str:
    """The transfer syntax of `dataset`, told from its encoding when the file has no meta group."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    stated = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if stated:
        return str(stated)
    implicit, little = dataset.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _file_meta(clean: Dataset, syntax: str) -> Dataset:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import PYDICOM_IMPLEMENTATION_UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = clean.SOPClassUID
    meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = "CORE-MRI"
    return meta


def _subject(dataset: Dataset, key: bytes) -> Subject:
    issuer = str(dataset.get("IssuerOfPatientID") or "")
    study = str(dataset.StudyInstanceUID)
    name = patient_pseudonym(key, str(dataset.get("PatientID") or ""), issuer, study_uid=study)
    return Subject(
        key=key,
        name=name,
        shift=timedelta(days=date_shift_days(key, name)),
        forbidden=name_words(_names(dataset)),
    )


def _names(dataset: Dataset) -> Iterator[str]:
    """Every person's name and patient number of the file; per-frame groups hold none."""
    for tag in dataset.keys():  # noqa: SIM118 - iterating a Dataset decodes every element
        if tag.group in (0x5200, 0x7FE0):
            continue
        element = _decoded(dataset, tag)
        if element is None:
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _names(item)
        elif element.VR == "PN" or element.keyword in _ID_KEYWORDS:
            yield str(element.value)


def _clean(dataset: Dataset, subject: Subject, counts: Counter[str], depth: int = 0) -> Dataset:
    from pydicom import DataElement, Dataset, config
    from pydicom import Sequence as Items

    clean = Dataset()
    for tag in dataset.keys():  # noqa: SIM118
        element = _decoded(dataset, tag) if _allowed(tag) else None
        if element is None or not _known_vr(tag, element.VR):
            counts["removed"] += 1
            continue
        if element.VR == "SQ":
            items = [_clean(item, subject, counts, depth + 1) for item in element.value]
            if any(len(item) for item in items) or element.keyword == _FRAMES:
                clean[tag] = DataElement(tag, "SQ", Items(items))
            continue
        value = _treated(Field(element, dataset, subject), depth)
        if value is None and not element.is_empty:
            counts["removed"] += 1
        elif value is element.value:
            counts["kept"] += 1
            clean[tag] = element
        else:
            counts["replaced"] += 1
            clean[tag] = DataElement(tag, element.VR, value, validation_mode=config.IGNORE)
    return clean


def _treated(field: Field, depth: int) -> object:
    """The new value of an element that is let through, or None."""
    element = field.element
    if element.is_empty:
        return element.value
    if element.keyword in rules().emptied:
        return ""
    if depth and element.tag.group == 0x7FE0:  # the pixels of an icon
        return None
    action = ACTIONS.get(element.VR)
    return action(field) if action else None


@cache
def _allowed(tag: int) -> bool:
    from pydicom.datadict import dictionary_has_tag, keyword_for_tag
    from pydicom.tag import Tag

    parsed = Tag(tag)
    if parsed.is_private or parsed.element == 0 or not dictionary_has_tag(parsed):
        return False
    keyword = keyword_for_tag(parsed)
    if keyword in rules().denied:
        return False
    listed = rules()
    return parsed.group in listed.groups or parsed in listed.tags or keyword in listed.keywords


@cache
def _known_vr(tag: int, vr: str) -> bool:
    """Whether the dictionary allows the file's VR ("US or SS"): the rules go by VR."""
    from pydicom.datadict import dictionary_VR

    return set(vr.split(" or ")) <= set(dictionary_VR(tag).split(" or "))


def _decoded(dataset: Dataset, tag: int) -> DataElement | None:
    """The element; None when its bytes do not fit its VR: what cannot be read cannot be judged."""
    try:
        return dataset[tag]
    except Exception:  # whatever pydicom's many converters raise
        return None


def _number(field: Field) -> object:
    """A decimal string that is no number comes out of pydicom as text, and goes."""
    old = field.element.value
    values = old if field.element.VM > 1 else [old]
    return old if all(isinstance(value, (int, float)) for value in values) else None


def _uid(field: Field) -> object:
    old = field.element.value
    if field.element.VM > 1:
        return [keyed_uid(field.subject.key, str(uid)) for uid in old]
    new = keyed_uid(field.subject.key, str(old))
    return old if new == old else new


def _date(field: Field) -> object:
    """Date or date-time as a shifted date without time of day; what is no full date goes."""
    element = field.element
    shifted = []
    for value in element.value if element.VM > 1 else [element.value]:
        match = _DATE.match(str(value).strip())
        if match is None:
            return None
        try:
            moved = datetime(int(match[1]), int(match[3]), int(match[4])) + field.subject.shift
        except (ValueError, OverflowError):
            return None
        shifted.append(moved.date().isoformat().replace("-", ""))
    return _values(shifted)


def _age(field: Field) -> object:
    old = field.element.value
    new = cap_age(str(old))
    return old if new == old else new


def _code(field: Field) -> object:
    """A code string stays unless it holds a word of the patient's name that is no technical one."""
    element = field.element
    if element.keyword in rules().texts:
        return _text(field)
    if element.keyword == "PatientSex":
        return element.value if element.value in ("M", "F", "O") else ""
    text = _joined(element)
    own = {word for word in words(text) if not is_technical(word)} & field.subject.forbidden
    return None if own or not _CODE_STRING.fullmatch(text) else element.value


def _text(field: Field) -> object:
    element = field.element
    if element.keyword in ("CodeValue", "CodeMeaning", "CodingSchemeDesignator"):
        return _coded(field)
    if element.keyword not in rules().texts:
        return None
    text = _joined(element)
    cleaned = clean_text(text, field.subject.forbidden)
    if cleaned == text:
        return element.value
    cleaned = cleaned.upper() if element.VR == "CS" else cleaned
    return _values([value[: MAX_LENGTH[element.VR]] for value in cleaned.split("\\")])


def _coded(field: Field) -> object:
    element = field.element
    if str(field.dataset.get("CodingSchemeDesignator", "")) not in rules().coding_schemes:
        return None
    text = str(element.value)
    if element.keyword == "CodeMeaning":
        return clean_text(text, field.subject.forbidden)
    own = set(words(text)) & field.subject.forbidden
    return element.value if _CODE_VALUE.fullmatch(text) and not own else None


def _bulk(field: Field) -> object:
    return field.element.value if field.element.keyword in rules().bulk else None


def _values(values: list[str]) -> list[str] | str:
    return values if len(values) > 1 else values[0]


def _joined(element: DataElement) -> str:
    return "\\".join(map(str, element.value)) if element.VM > 1 else str(element.value or "")


ACTIONS: dict[str, Action] = {
    **dict.fromkeys(("DS", "IS", "FL", "FD", "SS", "US", "SL", "UL", "SV", "UV", "AT"), _number),
    **dict.fromkeys(("US or SS", "US or OW", "US or SS or OW"), _number),
    **dict.fromkeys(("LO", "SH", "LT", "ST", "UT", "UC"), _text),
    **dict.fromkeys(("OB", "OW", "OF", "OD", "OL", "OV", "OB or OW"), _bulk),
    "AS": _age,
    "CS": _code,
    "DA": _date,
    "DT": _date,
    "UI": _uid,
}
"""What happens to an attribute that is let through; with any other VR it goes (PN, TM, AE, UN)."""

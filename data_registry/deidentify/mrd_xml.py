"""The XML header of ISMRMRD, rebuilt from an allow-list; fastMRI keeps one too.

Nothing is taken over but listed elements: numbers as numbers, coded values against their lists,
descriptions word by word, UIDs keyed, dates moved. Institution, station, device, birth date,
operators, strings and Base64 of user parameters, waveforms and everything unknown are not written.

Source: ISMRMRD, schema/ismrmrd.xsd, version 2 (ismrmrd/ismrmrd).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from xml.etree import ElementTree

from core_mri.errors import DataError
from data_registry.deidentify import treatments
from data_registry.deidentify.charsets import ASCII
from data_registry.deidentify.dictionary import TABLES
from data_registry.deidentify.subject import Kind, Subject, make_subject
from data_registry.deidentify.treatments import Place, Treatment
from data_registry.vocabulary import is_technical, words

_NAMESPACE = "http://www.ismrm.org/ISMRMRD"
_MAX_BYTES = 1 << 24
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_PARAMETERS = ("userParameterLong", "userParameterDouble")


@dataclass(frozen=True)
class Lists:
    """The lists of ``tables/mrd.yaml``, explained there."""

    groups: frozenset[str]
    numbers: frozenset[str]
    texts: frozenset[str]
    technical: frozenset[str]
    uids: frozenset[str]
    dates: frozenset[str]
    codes: dict[str, list[str]]
    identifying: dict[str, Kind]
    parameter_words: frozenset[str]


@cache
def lists() -> Lists:
    """What is taken over."""
    import yaml

    read = yaml.safe_load((TABLES / "mrd.yaml").read_text(encoding="utf-8"))
    return Lists(**{k: frozenset(v) if isinstance(v, list) else v for k, v in read.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class CleanXml:
    """A rebuilt header.

    Args:
        xml: The document.
        subject: Whose it is.
        patient_id: As it was.
        identifying: Every text of the original that must not be found again.
        kept, dropped: Elements.
        removed: Words taken out of descriptions.
    """

    xml: bytes
    subject: Subject
    patient_id: str
    identifying: list[str] = field(repr=False)
    kept: int
    dropped: int
    removed: list[str] = field(repr=False)


def rebuild_xml(xml: bytes, key: bytes, patient_id: str = "", fallback: str = "") -> CleanXml:
    """A header of listed elements only.

    Args:
        xml: The document as stored.
        key: Project key.
        patient_id: Of the file's own attributes, when the document states none.
        fallback: Tells whose the file is when nothing else does.

    Raises:
        DataError: DATA-02 when it is no XML, DATA-13 with entities or of absurd length.
    """
    if len(xml) > _MAX_BYTES or b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise DataError("DATA-13", "an XML header with entities or of absurd length.")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        raise DataError("DATA-02", "its header is no XML.") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    patient = (root.findtext("subjectInformation/patientID") or patient_id).strip()
    seeds: list[tuple[Kind, str]] = [("patient", patient_id)]
    identifying = [patient_id]
    for element in root.iter():
        kind = lists().identifying.get(element.tag)
        if kind and element.text:
            seeds.append((kind, element.text.strip()))
            identifying.append(element.text.strip())
        elif element.tag in lists().uids | lists().dates | {"patientBirthdate", "measurementID"}:
            identifying.append((element.text or "").strip())
    subject = make_subject(key, patient, "", fallback, seeds)
    builder = _Builder(Place(subject, ASCII))
    clean = builder.rebuilt(root)
    clean.set("xmlns", _NAMESPACE)
    information = clean.find("subjectInformation")
    if information is None:
        information = ElementTree.Element("subjectInformation")
        clean.insert(int(clean.find("version") is not None), information)
    for index, tag in enumerate(("patientName", "patientID")):
        own = ElementTree.Element(tag)
        own.text = subject.name
        information.insert(_place_of(information, index), own)
    content = ElementTree.tostring(clean, encoding="utf-8", xml_declaration=True)
    found = [text for text in identifying if len(text) > 3]
    return CleanXml(
        content, subject, patient, found, builder.kept, builder.dropped, builder.place.removed
    )


def _place_of(information: ElementTree.Element, index: int) -> int:
    """The schema is a sequence: patientName, patientWeight_kg, patientHeight_m, patientID, ..."""
    if index == 0:
        return 0
    before = ("patientName", "patientWeight_kg", "patientHeight_m")
    return sum(child.tag in before for child in information)


class _Builder:
    """Takes over what is listed."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kept = self.dropped = 0

    def rebuilt(self, old: ElementTree.Element) -> ElementTree.Element:
        new = ElementTree.Element(old.tag)
        for child in old:
            clean = self._child(child)
            if clean is None:
                self.dropped += 1
            else:
                self.kept += 1
                new.append(clean)
        return new

    def _child(self, old: ElementTree.Element) -> ElementTree.Element | None:
        text = (old.text or "").strip()
        if old.tag in _PARAMETERS:
            return self._parameter(old)
        if old.tag in lists().groups and (len(old) or not text):
            new = self.rebuilt(old)
            return new if len(new) else None
        clean = self._text(old.tag, text)
        if clean is None or (text and not clean):
            return None
        new = ElementTree.Element(old.tag)
        new.text = clean
        return new

    def _text(self, tag: str, text: str) -> str | None:
        if tag in lists().numbers or tag in lists().groups:
            return text if _NUMBER.fullmatch(text) else None
        if tag in lists().codes:
            return text if text in lists().codes[tag] else None
        treat = _treatments().get(tag)
        if treat is None:
            return None
        new = treat(self.place, text.encode("utf-8"))
        return None if new is None else new.decode("utf-8", "replace")

    def _parameter(self, old: ElementTree.Element) -> ElementTree.Element | None:
        name, value = (old.findtext("name") or "").strip(), (old.findtext("value") or "").strip()
        parts = words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")))
        listed = all(
            is_technical(part)
            or part in lists().parameter_words
            or (part.isdigit() and len(part) < 3)
            for part in parts
        )
        if not parts or not listed or not _NUMBER.fullmatch(value):
            return None
        new = ElementTree.Element(old.tag)
        for tag, text in (("name", name), ("value", value)):
            ElementTree.SubElement(new, tag).text = text
        return new


def _iso_date(place: Place, value: bytes) -> bytes:
    moved = treatments.move_date(value.decode("ascii", "replace"), place.subject.days)
    return f"{moved[:4]}-{moved[4:6]}-{moved[6:]}".encode() if moved else b""


@cache
def _treatments() -> dict[str, Treatment]:
    return {
        **dict.fromkeys(lists().texts, treatments.cleaned(b"LO")),
        **dict.fromkeys(lists().technical, treatments.scrubbed(b"LO")),
        **dict.fromkeys(lists().uids, treatments.new_uid),
        **dict.fromkeys(lists().dates, _iso_date),
    }

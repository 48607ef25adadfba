"""BIDS sidecars: the JSON beside an image, under the rules of its DICOM attributes.

Keys that are DICOM keywords, as most keys of BIDS and dcm2niix are, take the rule of their
attribute. Of the others, numbers, switches and directions stay, text keeps the words of the
vocabularies, and keys that speak of people, places, devices or ids go.

Source: BIDS 1.10, Magnetic Resonance Imaging; dcm2niix, `nii_dicom_batch.cpp`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from core_mri.errors import DataError
from data_registry.deidentify import treatments
from data_registry.deidentify.charsets import ASCII
from data_registry.deidentify.descriptors import split_text
from data_registry.deidentify.dictionary import dictionary_vr, tag_of
from data_registry.deidentify.outcome import Result
from data_registry.deidentify.profile import Profile
from data_registry.deidentify.rules import find_rule
from data_registry.deidentify.subject import Kind, Subject, make_subject
from data_registry.deidentify.treatments import Place
from data_registry.deidentify.verify import find_text

MAX_BYTES = 1 << 24
_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
_DENIED = re.compile(
    r"patient|subject|birth|operator|physician|institution|serial|station|accession|address|person"
    r"|contact|author|email|phone|url|uid|path|file|comment|intendedfor|source",
    re.IGNORECASE,
)
_DIRECTION = re.compile(r"[ijkxyz]-?|[ijk]{3}")
_ISO_DATE_TIME = re.compile(r"(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2}):(\d{2})(\.\d{1,6})?")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2}):(\d{2}(?:\.\d{1,6})?)\d*")
_NAMES = ("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "AccessionNumber")
_PLACES = ("InstitutionName", "InstitutionAddress", "StationName", "DeviceSerialNumber")


def deidentify_sidecar(
    path: Path, out: Path | None, key: bytes, patient: str, profile: Profile
) -> Result:
    """Write the clean form of a sidecar.

    Args:
        path: A JSON file that holds one object.
        out: Where to; None to write nothing.
        key: Project key.
        patient: Pseudonym, as for the image beside it.
        profile: What to do.

    Raises:
        DataError: DATA-02 when it is no JSON object or larger than 16 MiB, DATA-07 when `out`
            cannot be written.
    """
    raw = path.read_bytes()
    try:
        old = json.loads(raw) if len(raw) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        old = None
    if not isinstance(old, dict):
        raise DataError("DATA-02", "a sidecar that is no JSON object.")
    subject = _subject(old, key, patient)
    place = Place(subject, ASCII)
    counts = {"K": 0, "C": 0, "X": 0}
    new = {}
    for name, value in old.items():
        clean = _clean(name, value, place, profile)
        counts["X" if clean is None else "K" if clean == value else "C"] += 1
        if clean is not None:
            new[name] = clean
    content = (json.dumps(new, indent=2, ensure_ascii=True) + "\n").encode()
    if out is not None:
        try:
            out.write_bytes(content)
        except OSError as error:
            out.unlink(missing_ok=True)
            raise DataError(
                "DATA-07", f"cannot write to the output folder: {error.strerror}."
            ) from None
    names = [str(old[name]) for name in _NAMES if old.get(name)]
    places = [str(old[name]) for name in _PLACES if old.get(name)]
    return Result(
        find_text(content, "sidecar", names=names, texts=places),
        counts,
        tuple(place.removed),
    )


def _subject(old: dict[str, Any], key: bytes, patient: str) -> Subject:
    seeds: list[tuple[Kind, str]] = [("patient", str(old.get(n) or "")) for n in _NAMES]
    seeds += [("place", str(old.get(n) or "")) for n in _PLACES]
    seeds += [("name", str(value)) for name, value in old.items() if name.endswith("PhysicianName")]
    made = make_subject(key, str(old.get("PatientID") or ""), "", patient, seeds)
    if old.get("PatientID"):
        return made
    return make_subject(key, patient, "", patient, seeds)


def _clean(name: str, value: Any, place: Place, profile: Profile) -> Any:
    """The new value of a key; None when it goes."""
    tag = tag_of(name)
    if tag is not None:
        return _by_rule(tag, value, place, profile)
    if _DENIED.search(name) or not name.isascii():
        return None
    return _without_rule(value, place)


def _by_rule(tag: int, value: Any, place: Place, profile: Profile) -> Any:
    vr = dictionary_vr(tag)
    rule = find_rule(profile, _MR_IMAGE, 0, "clean", tag, vr)
    if vr == b"SQ" or isinstance(value, dict):
        return None
    parts = value if isinstance(value, list) else [value]
    if all(isinstance(part, (int, float)) for part in parts):  # also numbers of text attributes
        return None if rule.treat is treatments.remove or rule.action in "XZDU" else value
    text = "\\".join(map(str, parts))
    moved = _moved_clock(text, place) if vr in (b"TM", b"DT") and rule.action == "C" else None
    if moved is not None:
        return moved
    new = rule.treat(place, text.encode("utf-8"))
    if not new:
        return None
    clean = new.decode("utf-8").split("\\")
    return clean if isinstance(value, list) else clean[0]


def _moved_clock(text: str, place: Place) -> str | None:
    """Times as BIDS writes them, ``12:34:56.789`` and ISO 8601, moved and written alike."""
    subject = place.subject
    clock = _CLOCK.fullmatch(text)
    if clock:
        digits = f"{int(clock[1]):02d}{clock[2]}{clock[3]}"
        return _with_colons(treatments.move_time(digits, subject.time))
    match = _ISO_DATE_TIME.fullmatch(text)
    if match is None:
        return None
    day = treatments.move_date("".join(match.groups()[:3]), subject.days)
    time = treatments.move_time("".join(match.groups("")[3:]), subject.time)
    return f"{day[:4]}-{day[4:6]}-{day[6:]}T{_with_colons(time)}" if day and time else None


def _with_colons(time: str) -> str:
    return f"{time[:2]}:{time[2:4]}:{time[4:]}"


def _without_rule(value: Any, place: Place) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, list):
        kept = [_without_rule(part, place) for part in value]
        return None if any(part is None for part in kept) else kept
    if isinstance(value, str):
        if _DIRECTION.fullmatch(value):
            return value
        clean, gone = split_text(value, place.subject.forbidden)
        place.removed.extend(gone)
        return clean or None
    return None

"""De-identify the header facts of a volume: what is on the allow-list stays, the rest goes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from core_mri.volume import FactValue
from data_registry.deidentify.descriptors import clean_text, name_words
from data_registry.deidentify.identifiers import keyed_uid, patient_pseudonym

NUMBERS = frozenset(
    {
        "EchoTime",
        "RepetitionTime",
        "InversionTime",
        "FlipAngle",
        "EchoTrainLength",
        "MagneticFieldStrength",
    }
)
CODES: dict[str, frozenset[str]] = {
    "Modality": frozenset({"MR", "SEG", "RTSTRUCT", "PT", "CT", "OT"}),
    "MRAcquisitionType": frozenset({"1D", "2D", "3D"}),
    "ScanningSequence": frozenset({"SE", "IR", "GR", "EP", "RM"}),
    "SequenceVariant": frozenset({"SK", "MTC", "SS", "TRSS", "SP", "MP", "OSP", "TOF", "NONE"}),
    "PatientSex": frozenset({"M", "F", "O"}),
    "PatientPosition": frozenset(
        {
            side + lying
            for side in ("HF", "FF", "LF", "RF", "AF", "PF")
            for lying in ("P", "S", "DR", "DL")
        }
    ),
}
"""Facts with a closed list of values (PS3.3); several values are joined by backslashes."""

TEXTS = frozenset(
    {
        "Manufacturer",
        "ManufacturerModelName",
        "BodyPartExamined",
        "SeriesDescription",
        "ProtocolName",
        "StudyDescription",
        "SequenceName",
        "ContrastBolusAgent",
        "ImageType",
    }
)
UIDS = frozenset({"StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID"})
MAX_AGE_YEARS = 90
_NAMES = ("PatientName", "PatientID", "OtherPatientIDs", "AccessionNumber")


def deidentify_facts(facts: Mapping[str, FactValue], key: bytes) -> dict[str, FactValue]:
    """Facts that may be stored: technical values, keyed ids, descriptions cleaned word by word.

    Args:
        facts: Header facts by DICOM keyword, as read.
        key: Project key.

    Returns:
        A new dictionary. Dropped are all keywords that are not listed in this module, numbers that
        are none, codes outside their list, and descriptions of which no word may stay.
    """
    text = {keyword: str(value) for keyword, value in facts.items()}
    forbidden = name_words(text[name] for name in _NAMES if name in text)
    kept: dict[str, FactValue] = {}
    for keyword, value in facts.items():
        if keyword in NUMBERS and (number := _number(value)) is not None:
            kept[keyword] = number
        elif keyword in CODES:
            kept[keyword] = "\\".join(c for c in text[keyword].split("\\") if c in CODES[keyword])
        elif keyword in TEXTS:
            kept[keyword] = clean_text(text[keyword], forbidden)
        elif keyword in UIDS and text[keyword]:
            kept[keyword] = keyed_uid(key, text[keyword])
        elif keyword == "PatientAge":
            kept[keyword] = cap_age(text[keyword])
    kept["PatientID"] = patient_pseudonym(
        key,
        text.get("PatientID", ""),
        text.get("IssuerOfPatientID", ""),
        study_uid=text.get("StudyInstanceUID", ""),
    )
    return {keyword: value for keyword, value in kept.items() if value != ""}


def cap_age(age: str) -> str:
    """A DICOM age string with every age over 89 years as ``090Y`` (45 CFR 164.514(b)(2)(i)(C))."""
    match = re.fullmatch(r"\s*(\d{1,3})([DWMY])\s*", age)
    if match is None:
        return ""
    years = int(match[1]) / {"D": 365, "W": 52, "M": 12, "Y": 1}[match[2]]
    return f"{int(match[1]):03d}{match[2]}" if years < MAX_AGE_YEARS else f"{MAX_AGE_YEARS:03d}Y"


def _number(value: FactValue) -> FactValue | None:
    """The value when it is a finite number or a tuple of them, a number in text as float."""
    if isinstance(value, tuple):
        return value if all(math.isfinite(v) for v in value) else None
    try:
        number = float(value)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return number if isinstance(value, str) else value

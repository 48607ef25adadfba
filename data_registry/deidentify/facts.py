"""De-identify the header facts of a volume: what is on the allow-list stays, the rest goes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from core_mri.volume import FactValue
from data_registry.deidentify import treatments
from data_registry.deidentify.subject import Kind, make_subject
from data_registry.deidentify.treatments import Place

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
_NAMES: dict[str, Kind] = {
    "PatientName": "patient",
    "PatientID": "patient",
    "OtherPatientIDs": "patient",
    "AccessionNumber": "name",
}
_UTF_8 = ("ISO_IR 192",)
_clean = treatments.cleaned(b"LO")


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
    subject = make_subject(
        key,
        text.get("PatientID", ""),
        text.get("IssuerOfPatientID", ""),
        text.get("StudyInstanceUID", ""),
        [(kind, text[name]) for name, kind in _NAMES.items() if name in text],
    )
    place = Place(subject, _UTF_8)
    kept: dict[str, FactValue] = {}
    for keyword, value in facts.items():
        if keyword in NUMBERS and (number := _number(value)) is not None:
            kept[keyword] = number
        elif keyword in CODES:
            kept[keyword] = "\\".join(c for c in text[keyword].split("\\") if c in CODES[keyword])
        elif keyword in _TREATMENTS and text[keyword]:
            new = _TREATMENTS[keyword](place, text[keyword].encode("utf-8", "surrogatepass"))
            kept[keyword] = (new or b"").decode("ascii")
    kept["PatientID"] = subject.name
    return {keyword: value for keyword, value in kept.items() if value != ""}


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


_TREATMENTS = {
    **dict.fromkeys(TEXTS, _clean),
    **dict.fromkeys(UIDS, treatments.new_uid),
    "PatientAge": treatments.age,
}
"""The engine's own treatments, so that a registry and a DICOM output agree."""

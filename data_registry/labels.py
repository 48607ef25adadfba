"""What a volume shows: region, sequence, plane, vendor, field strength; with source, confidence.

Sources are asked in this order, and the first that knows decides; those that agree with it raise
the confidence, those that contradict it lower it:

========== ====================================================================== ======
source     what it reads                                                          weight
========== ====================================================================== ======
list       the source list that was given with the data                           1.0
header     BodyPartExamined; ImageType, SequenceName (without bare T1, T2, PD)    0.8
description series, protocol and study description (region only)                  0.7
path       names of file and folders inside the source                            0.5
timing     EchoTime, RepetitionTime, InversionTime, ScanningSequence              0.4
flavor     third value of ImageType, which says T2 for many a BOLD series         0.3
========== ====================================================================== ======

The weights are judgement, not calibrated probabilities: headers are wrong in about 15 % of cases
(Gueld et al., Proc. SPIE 4685, 2002: BodyPartExamined), descriptions are typed by hand. Without any
source the label is ``unknown`` with confidence 0.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core_mri.errors import ConfigError
from core_mri.volume import FactValue, Volume
from data_registry.vocabulary import Entry, table, words

UNKNOWN = "unknown"
WEIGHTS = {
    "list": 1.0,
    "header": 0.8,
    "description": 0.7,
    "path": 0.5,
    "timing": 0.4,
    "flavor": 0.3,
}
VENDORS = {
    "siemens": "siemens",
    "philips": "philips",
    "ge": "ge",
    "toshiba": "canon",
    "canon": "canon",
    "hitachi": "fujifilm",
    "fujifilm": "fujifilm",
    "hyperfine": "hyperfine",
    "bruker": "bruker",
    "agilent": "agilent",
    "varian": "agilent",
    "uih": "united imaging",
    "united": "united imaging",
    "esaote": "esaote",
    "neusoft": "neusoft",
    "mindray": "mindray",
}
"""First word known of Manufacturer -> vendor; firms that were bought count as their owner."""

NOMINAL_FIELDS_T = (
    0.064,
    0.2,
    0.3,
    0.35,
    0.5,
    0.55,
    0.6,
    1.0,
    1.2,
    1.5,
    3.0,
    4.7,
    5.0,
    7.0,
    9.4,
    11.7,
)

_WEIGHTINGS = frozenset({"T1", "T1 contrast", "T2", "T2*", "PD", "FLAIR", "STIR"})
_PART_OF = {"T1 contrast": "T1", "DCE": "T1", "TOF": "MRA", "ADC": "DWI"}
_NOT_SEQUENCES = ("contrast", "no contrast", "inversion recovery")


@dataclass(frozen=True)
class Labels:
    """The labels of one volume: confidence in [0, 1], field strength in tesla (0 when unknown)."""

    region: str
    region_by: str
    region_confidence: float
    sequence: str
    sequence_by: str
    sequence_confidence: float
    plane: str
    vendor: str
    field_strength_t: float


def regions() -> tuple[str, ...]:
    """Every region a label can have, `unknown` last."""
    return (*(entry.name for entry in table("regions")), UNKNOWN)


def sequences() -> tuple[str, ...]:
    """Every sequence a label can have, `unknown` last."""
    names = [e.name for e in table("sequences") if e.name not in _NOT_SEQUENCES]
    names.insert(names.index("T1") + 1, "T1 contrast")
    return (*names, UNKNOWN)


def label_volume(
    facts: Mapping[str, FactValue], volume: Volume, hints: Mapping[str, str]
) -> Labels:
    """Label one volume from what is known about it; pure, nothing is remembered.

    Args:
        facts: Header facts by DICOM keyword, raw or de-identified.
        volume: Gives the plane: slices lie across its axis of largest spacing.
        hints: From the source list: `region`, `sequence` (any spelling of the vocabularies), and
            `path` (of the file inside its source, from which only known words are used). Other keys
            are ignored.

    Raises:
        ConfigError: CONFIG-01 when a region or sequence of `hints` is in no vocabulary.
    """
    region = _vote(_region_votes(facts, hints), _containers())
    sequence = _vote(_sequence_votes(facts, hints), _PART_OF)
    return Labels(
        *region,
        *sequence,
        plane=volume.plane,
        vendor=_vendor(facts),
        field_strength_t=_field_strength_t(facts),
    )


def _region_votes(facts: Mapping[str, FactValue], hints: Mapping[str, str]) -> dict[str, str]:
    description = [_text(facts, "SeriesDescription"), _text(facts, "ProtocolName")]
    return {
        "list": _hinted("region", hints),
        "header": find_region([_text(facts, "BodyPartExamined")]),
        "description": find_region([*description, _text(facts, "StudyDescription")]),
        "path": find_region(_path_parts(hints)),
    }


def _sequence_votes(facts: Mapping[str, FactValue], hints: Mapping[str, str]) -> dict[str, str]:
    """Study descriptions are left out: they name the visit ("Brain-MRA"), not the series."""
    inversion_ms = _number(facts, "InversionTime")
    agent = _text(facts, "ContrastBolusAgent")
    injected = bool(set(words(agent)) - {"none", "no", "n", "0", "off"})
    image_type = words(_text(facts, "ImageType"))
    flavors = {"t1", "t2", "proton", "density"}
    header = [word for word in image_type if word not in flavors]
    sources = {
        "header": [f"{' '.join(header)} {_text(facts, 'SequenceName')}"],
        "description": [_text(facts, "SeriesDescription"), _text(facts, "ProtocolName")],
        "path": _path_parts(hints),
    }
    votes = {"list": _hinted("sequence", hints)}
    for source, texts in sources.items():
        votes[source] = find_sequence(texts, inversion_ms=inversion_ms)
    known = {vote for vote in votes.values() if vote != UNKNOWN}
    if not known or known & _WEIGHTINGS:  # timing gives the weighting, not the kind: cine, DWI...
        votes["timing"] = _from_timing(facts)
        votes["flavor"] = find_sequence([" ".join(w for w in image_type if w in flavors)])
    spoken = " ".join(words(" ".join(sources["description"])))
    if injected and not _entry("sequences", "no contrast").pattern.search(spoken):
        votes = {s: "T1 contrast" if v == "T1" and s != "list" else v for s, v in votes.items()}
    return votes


def find_region(texts: Sequence[str]) -> str:
    """The region named by the first of `texts` that names one, the innermost; else ``unknown``."""
    containers = _containers()
    for text in texts:
        normal = " ".join(words(text))
        found = {
            entry.name: (match.start(), -match.end())  # the earliest, then the longest
            for entry in table("regions")
            if (match := entry.pattern.search(normal))
        }
        outer = {container for name in found for container in _around(name, containers)}
        inner = [name for name in found if name not in outer]
        bodies = [name for name in inner if name != "phantom"]
        if inner:
            return min(bodies or inner, key=lambda name: found[name])
    return UNKNOWN


def find_sequence(texts: Sequence[str], *, inversion_ms: float | None = None) -> str:
    """The sequence named by the first of `texts` that names one; else ``unknown``.

    "tirm" and "tir" name a readout whose contrast is FLAIR or STIR by its inversion time.
    """
    for text in texts:
        normal = " ".join(words(text))
        for entry in table("sequences"):
            if not entry.pattern.search(normal) or entry.name in ("contrast", "no contrast"):
                continue
            if entry.unless and entry.unless.search(normal):
                continue
            if entry.name == "inversion recovery":
                return _by_inversion_time(inversion_ms)
            return _with_contrast(entry.name, normal)
    return UNKNOWN


def _with_contrast(name: str, normal: str) -> str:
    if name != "T1" or _entry("sequences", "no contrast").pattern.search(normal):
        return name
    return "T1 contrast" if _entry("sequences", "contrast").pattern.search(normal) else name


def _by_inversion_time(inversion_ms: float | None) -> str:
    """Short times null fat, long ones fluid; the limits are our judgement, with a gap between."""
    if inversion_ms is not None and 80 <= inversion_ms <= 300:
        return "STIR"
    if inversion_ms is not None and 1200 <= inversion_ms <= 3000:
        return "FLAIR"
    return UNKNOWN


def _from_timing(facts: Mapping[str, FactValue]) -> str:
    """Weighting from echo, repetition and inversion time (ms) in the clear cases, else unknown.

    Spin echo with short TR and short TE is T1, long TR and short TE is PD, long TR and long TE is
    T2. The limits are our judgement, chosen with gaps: between them, and for steady-state
    sequences, nothing is said.
    """
    echo, repeat = _number(facts, "EchoTime"), _number(facts, "RepetitionTime")
    inversion = _number(facts, "InversionTime")
    kinds = set(words(_text(facts, "ScanningSequence")))
    variants = set(words(_text(facts, "SequenceVariant")))
    if echo is None or repeat is None or "ep" in kinds:
        return UNKNOWN
    if inversion and kinds & {"ir", "se"}:
        nulled = _by_inversion_time(inversion)
        if nulled == "STIR" or (nulled == "FLAIR" and echo >= 60 and repeat >= 3000):
            return nulled
    if "gr" in kinds:
        if echo >= 14 and repeat >= 100:
            return "T2*"
        return "T1" if "sp" in variants and echo <= 6 and repeat <= 40 else UNKNOWN
    if "se" in kinds and not inversion:
        if repeat <= 1000 and echo <= 35:
            return "T1"
        if repeat >= 1800:
            return "T2" if echo >= 60 else "PD" if echo <= 40 else UNKNOWN
    return UNKNOWN


def _vote(votes: Mapping[str, str], containers: Mapping[str, str]) -> tuple[str, str, float]:
    """Label, its sources joined by ``+``, and confidence.

    The first source that knows decides; a source that names a part of its answer makes it finer.
    With agreeing weights a and contradicting weights d:
    ``confidence = (1 - prod(1 - a)) * (1 - max(d) / 2)``.
    """
    known = {source: label for source, label in votes.items() if label != UNKNOWN}
    if not known:
        return UNKNOWN, "none", 0.0
    label = next(iter(known.values()))
    if next(iter(known)) != "list":
        for other in known.values():
            if label in _around(other, containers):
                label = other
    compatible = {label, *_around(label, containers)}
    agree = [s for s, v in known.items() if v in compatible or label in _around(v, containers)]
    against = max((WEIGHTS[s] for s in known if s not in agree), default=0.0)
    certainty = 1.0 - math.prod(1.0 - WEIGHTS[s] for s in agree)
    return label, "+".join(agree), round(certainty * (1.0 - against / 2), 4)


def _containers() -> dict[str, str]:
    return {entry.name: entry.within for entry in table("regions")}


def _around(name: str, containers: Mapping[str, str]) -> list[str]:
    around = []
    while name := containers.get(name, ""):
        around.append(name)
    return around


def _hinted(kind: str, hints: Mapping[str, str]) -> str:
    """The vocabulary's name for an explicit hint; unknown when there is none."""
    value = hints.get(kind, "").strip().lower()
    names = {name.lower(): name for name in (regions() if kind == "region" else sequences())}
    if not value or value in names:
        return names.get(value, UNKNOWN)
    found = find_region([value]) if kind == "region" else find_sequence([value])
    if found == UNKNOWN:
        close = difflib.get_close_matches(value, names, n=1)
        raise ConfigError(
            "CONFIG-01",
            f"{kind} {hints[kind]!r} of the source list is none of {', '.join(names.values())}.",
            fix=f"Perhaps you meant {names[close[0]]!r}." if close else "",
        )
    return found


def _path_parts(hints: Mapping[str, str]) -> list[str]:
    """File name first, then folders from the innermost: the closest name says most."""
    parts = hints.get("path", "").replace("\\", "/").split("/")
    return [part for part in reversed(parts) if part]


def _vendor(facts: Mapping[str, FactValue]) -> str:
    found = words(_text(facts, "Manufacturer"))
    known = (VENDORS[word] for word in found if word in VENDORS)
    return next(known, "other" if found else UNKNOWN)


def _field_strength_t(facts: Mapping[str, FactValue]) -> float:
    """Nominal field strength in tesla, 0 when unknown; some files hold gauss (1 T is 10,000)."""
    value = _number(facts, "MagneticFieldStrength")
    if value is None or value <= 0:
        return 0.0
    tesla = value / 10_000 if value > 100 else value
    nearest = min(NOMINAL_FIELDS_T, key=lambda nominal: abs(nominal - tesla))
    return nearest if abs(nearest - tesla) <= 0.03 * nearest else round(tesla, 3)


def _entry(name: str, label: str) -> Entry:
    return next(entry for entry in table(name) if entry.name == label)


def _text(facts: Mapping[str, FactValue], keyword: str) -> str:
    return str(facts.get(keyword, ""))


def _number(facts: Mapping[str, FactValue], keyword: str) -> float | None:
    """A number, also from text; the first of several."""
    value = facts.get(keyword)
    if isinstance(value, tuple):
        value = value[0] if value else None
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None

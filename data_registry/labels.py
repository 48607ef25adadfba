"""What a volume shows: region, sequence, plane, contrast, vendor, field strength.

Every source that can know is asked (`data_registry.voting` lists them and weighs what they say):
the header, the descriptions of series and study, names of files, timing, geometry, and an image
classifier where one is given. What each said is kept beside the label, so that a disagreement stays
visible. Without any source a label is ``unknown`` with confidence 0.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core_mri.errors import ConfigError
from core_mri.volume import FactValue, Volume
from data_registry.label_words import (
    UNKNOWN,
    around,
    by_inversion_time,
    find_contrast,
    find_plane,
    find_region,
    find_sequence,
    regions,
    sequences,
)
from data_registry.vocabulary import words
from data_registry.voting import RELIABILITY, Verdict, vote

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

LABELS = ("region", "sequence", "plane", "contrast")
"""What is voted on."""

_WEIGHTINGS = frozenset({"T1", "T1 contrast", "T2", "T2*", "PD", "FLAIR", "STIR"})
_PART_OF = {"T1 contrast": "T1", "DCE": "T1", "TOF": "MRA", "ADC": "DWI"}
_IMPLY_AN_AGENT = frozenset({"DCE", "DSC", "LGE"})
_NO_AGENT = frozenset({"none", "no", "n", "off", "without"})

Votes = dict[str, dict[str, str]]
"""Name of a label (`LABELS`) to source to what it said."""

Classifier = Callable[[Volume], Mapping[str, tuple[str, float]]]
"""An image classifier: a volume to the labels it knows, such as ``{"region": ("knee", 0.93)}``,
each with its probability. None comes with core-mri; `data_registry.relabel` takes one."""


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
    plane_by: str
    plane_confidence: float
    contrast: str
    contrast_by: str
    contrast_confidence: float
    vendor: str
    field_strength_t: float
    votes: str
    """What each source said, as the JSON of `Votes`."""


def label_volume(
    facts: Mapping[str, FactValue],
    volume: Volume,
    hints: Mapping[str, str],
    classifier: Classifier | None = None,
) -> Labels:
    """Label one volume from what is known about it; pure, nothing is remembered.

    Args:
        facts: Header facts by DICOM keyword, raw or de-identified.
        volume: Gives the plane: slices lie across its axis of largest spacing. Its voxels are for
            the classifier only.
        hints: From the source list: `region`, `sequence` (any spelling of the vocabularies), and
            `path` (of the file inside its source, from which only known words are used). Other keys
            are ignored.
        classifier: Looks at the image as a further source.

    Raises:
        ConfigError: CONFIG-01 when a region or sequence of `hints` is in no vocabulary.
    """
    votes = cast_votes(facts, volume.plane, hints)
    seen = classifier(volume) if classifier else {}
    for kind, (label, _) in seen.items():
        votes[kind]["image"] = label
    return count_votes(facts, volume.plane, votes, {kind: sure for kind, (_, sure) in seen.items()})


def cast_votes(facts: Mapping[str, FactValue], plane: str, hints: Mapping[str, str]) -> Votes:
    """What each source says; sources that say nothing are left out.

    Args:
        facts: As `label_volume`.
        plane: From the geometry; empty when there is none.
        hints: As `label_volume`.

    Raises:
        ConfigError: As `label_volume`.
    """
    series = [_text(facts, "SeriesDescription"), _text(facts, "ProtocolName")]
    path = _path_parts(hints)
    assumed = bool(facts.get("assumed_geometry") or facts.get("AssumedGeometry"))
    votes = {
        "region": {
            "list": _hinted("region", hints),
            "header": find_region([_text(facts, "BodyPartExamined")]),
            "description": find_region(series),
            "study": find_region([_text(facts, "StudyDescription")]),
            "path": find_region(path),
        },
        "sequence": _sequence_votes(facts, hints, series, path),
        "plane": {
            "geometry": UNKNOWN if assumed or not plane else plane,
            "description": find_plane(series),
            "path": find_plane(path),
        },
        "contrast": {
            "header": _agent(words(_text(facts, "ContrastBolusAgent"))),
            "description": find_contrast(series),
            "path": find_contrast(path),
        },
    }
    return {kind: {s: v for s, v in of.items() if v != UNKNOWN} for kind, of in votes.items()}


def count_votes(
    facts: Mapping[str, FactValue],
    plane: str,
    votes: Votes,
    image_probability: Mapping[str, float] | None = None,
) -> Labels:
    """Weigh the votes on every label.

    The plane is how the voxels are stored and so is never outvoted: words that name another one
    lower its confidence. T1 with an agent is ``T1 contrast``, unless a source list says T1.

    Args:
        facts: As `label_volume`; only maker and field strength are read.
        plane: From the geometry; empty asks the words alone.
        votes: From `cast_votes`.
        image_probability: Of the image classifier, by label.
    """
    sure = image_probability or {}

    def weighed(kind: str, part_of: Callable[[str], tuple[str, ...]], label: str = "") -> Verdict:
        reliability = {**RELIABILITY, "image": sure.get(kind, 0.0)}
        return vote(votes[kind], part_of, reliability, label=label)

    region = weighed("region", around)
    sequence = weighed("sequence", _sequence_around)
    if sequence.label in _IMPLY_AN_AGENT or votes["sequence"].get("list") == "T1 contrast":
        votes = {**votes, "contrast": {**votes["contrast"], "sequence": "yes"}}
    contrast = weighed("contrast", lambda _: ())
    if sequence.label in ("T1", "T1 contrast") and "list" not in votes["sequence"]:
        with_agent = contrast.label == "yes"
        sequence = Verdict("T1 contrast" if with_agent else "T1", sequence.by, sequence.confidence)
    named = weighed("plane", lambda _: (), plane)
    return Labels(
        **_fields("region", region),
        **_fields("sequence", sequence),
        **_fields("plane", Verdict(plane or named.label, named.by, named.confidence)),
        **_fields("contrast", contrast),
        vendor=_vendor(facts),
        field_strength_t=_field_strength_t(facts),
        votes=json.dumps(votes, sort_keys=True),
    )


def _fields(kind: str, verdict: Verdict) -> dict[str, Any]:
    return {
        kind: verdict.label, f"{kind}_by": verdict.by, f"{kind}_confidence": verdict.confidence
    }  # fmt: skip


def _agent(said: Sequence[str]) -> str:
    """What ContrastBolusAgent says: "none" and "0" are no agent, "0.1 mmol" is one."""
    if not said:
        return UNKNOWN
    return "no" if said[0] in _NO_AGENT or set(said) == {"0"} else "yes"


def _sequence_around(name: str) -> tuple[str, ...]:
    return (_PART_OF[name],) if name in _PART_OF else ()


def _sequence_votes(
    facts: Mapping[str, FactValue], hints: Mapping[str, str], series: list[str], path: list[str]
) -> dict[str, str]:
    """Study descriptions are left out: they name the visit ("Brain-MRA"), not the series."""
    inversion_ms = _number(facts, "InversionTime")
    image_type = words(_text(facts, "ImageType"))
    flavors = {"t1", "t2", "proton", "density"}
    header = [word for word in image_type if word not in flavors]
    sources = {
        "header": [f"{' '.join(header)} {_text(facts, 'SequenceName')}"],
        "description": series,
        "path": path,
    }
    votes = {"list": _hinted("sequence", hints)}
    for source, texts in sources.items():
        votes[source] = find_sequence(texts, inversion_ms=inversion_ms)
    known = {vote for vote in votes.values() if vote != UNKNOWN}
    if not known or known & _WEIGHTINGS:  # timing gives the weighting, not the kind: cine, DWI...
        votes["timing"] = _from_timing(facts)
        votes["flavor"] = find_sequence([" ".join(w for w in image_type if w in flavors)])
    return votes


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
        nulled = by_inversion_time(inversion)
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

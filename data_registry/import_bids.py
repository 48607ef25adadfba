"""BIDS data sets as sources: subject, session, sequence, licence, and the facts of sidecars.

The other way round of `export_bids`. Sidecars follow the inheritance principle: a JSON file holds
for all images below its folder that have its suffix and all its entities; the deeper one wins.
Source: BIDS specification 1.10.0, "Common principles", "Magnetic Resonance Imaging", "Imaging data
types" of "Derivatives".
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core_mri.errors import ConfigError
from core_mri.volume import FactValue
from data_registry.export_bids import AS_THEY_ARE, MODEL, REGION, SECONDS, SEQUENCE, SUFFIXES
from data_registry.governance.licences import is_listed, parse_licence
from data_registry.label_words import regions, sequences
from data_registry.source_list import Source

DESCRIPTION = "dataset_description.json"
SEQUENCES = {suffix: sequence for sequence, suffix in reversed(SUFFIXES.items())} | {
    "T1w": "T1", "inplaneT1": "T1", "UNIT1": "T1", "inplaneT2": "T2", "PDT2": "PD",
    "bold": "EPI/BOLD", "sbref": "EPI/BOLD", "dwi": "DWI", "asl": "ASL", "swi": "SWI",
    "phasediff": "field map", "fieldmap": "field map", "magnitude1": "field map",
    "magnitude2": "field map", "magnitude": "field map",
}  # fmt: skip
"""Suffix of BIDS -> sequence of the catalogue; other suffixes name none."""

_SUBJECT = "(?:^|/)sub-(?P<subject>[A-Za-z0-9]+)"
_IMAGES = ("sub-*/**/*.nii.gz", "sub-*/**/*.nii", "derivatives/**/*_mri.nii.gz")
"""``_mri`` is no suffix of BIDS: `export_bids` names images so that have none."""
_NO_MRI = ("**/pet/**", "**/meg/**", "**/eeg/**", "**/ieeg/**", "**/micr/**", "**/nirs/**")
_LABELS = tuple(f"derivatives/**/*_{kind}.{end}" for kind in ("dseg", "mask")
                for end in ("nii.gz", "nii"))  # fmt: skip
_RENAMED = {MODEL[1]: MODEL[0], "ContrastBolusIngredient": "ContrastBolusAgent"}
_SEX = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}
_MAX_JSON = 1 << 20
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+()/-]{0,63}")
_CC_BY = re.compile(r"(?:creative commons )?cc[ -]by((?:[ -](?:nc|sa|nd))*)[ -]v?([1-4]\.0)")
_CC0 = re.compile(r"(?:public domain,? )?\(?cc[ -]?0(?:[ -]?1\.0)?\)?(?: universal)?")
_PDDL = re.compile(r"pddl(?:[ -]?(?:v ?)?1\.0)?")
logger = logging.getLogger(__name__)


def is_bids(root: Path) -> bool:
    """Whether a folder is the root of a BIDS data set."""
    return (root / DESCRIPTION).is_file()


def bids_sources(
    root: Path, *, name: str = "", licence: str = "", subject: str = ""
) -> tuple[Source, ...]:
    """A BIDS data set as a source of images, and one of the label maps of its derivatives.

    Derived images are left out: they show what the raw ones show.

    Args:
        root: Its folder.
        name: Of the source; the data set's own when empty.
        licence: When the data set states none, or in words that are no known licence.
        subject: As `Source.subject`; the subject entity when empty.

    Raises:
        ConfigError: CONFIG-01 when its description cannot be read, or nobody states a name or a
            licence; CONFIG-05 when the given licence is another than it states.
    """
    path = root / DESCRIPTION
    described = _json(path)
    if described is None:
        raise ConfigError("CONFIG-01", f"{path} is no JSON object.")
    name = name or str(described.get("Name", "")).strip()
    stated = licence_of(str(described.get("License", "")))
    if not name or not (licence or stated):
        missing = "licence" if name else "name"
        raise ConfigError(
            "CONFIG-01",
            f"{path} states no {missing}.",
            fix=f"Give --{'licence SPDX, or unknown' if name else 'source NAME'}.",
        )
    if licence and stated and not stated.startswith("sha256:") and licence != stated:
        raise ConfigError(
            "CONFIG-05",
            f"{path} states licence {stated}, and {licence} was given.",
            fix="Leave --licence out, or correct the one that is wrong.",
        )
    images = Source(
        name=name,
        licence=licence or stated,
        root=str(root),
        bids=True,
        subject=subject or _SUBJECT,
        include=_IMAGES,
        exclude=(*_NO_MRI, *_LABELS),
    )
    labels = dataclasses.replace(images, include=_LABELS, exclude=_NO_MRI, role="label")
    return images, labels


def licence_of(text: str) -> str:
    """The SPDX expression that a data set's ``License`` means; ``sha256:`` of other words.

    A licence without its version is not guessed.
    """
    plain = " ".join(text.lower().replace("_", " ").split()).rstrip(".")
    if not plain:
        return ""
    if _CC0.fullmatch(plain):
        return "CC0-1.0"
    if _PDDL.fullmatch(plain):
        return "PDDL-1.0"
    if found := _CC_BY.fullmatch(plain):
        return f"CC-BY{found[1].replace(' ', '-').upper()}-{found[2]}"
    try:
        tree = parse_licence(text)
        ids = [tree] if isinstance(tree, str) else list(tree.ids())
    except ConfigError:
        ids = []
    if ids and all(is_listed(one) or one.startswith("LicenseRef-") for one in ids):
        return text
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def bids_hints(name: str, facts: Mapping[str, FactValue]) -> dict[str, str]:
    """Region and sequence, where an export of ours states them; else the sequence of the suffix.

    Args:
        name: Name or path of the file.
        facts: From `bids_facts`.
    """
    entities, suffix = _entities(Path(name).name)
    sequence = SEQUENCES.get(suffix, "")
    with_agent = "ce" in entities or bool(facts.get("ContrastBolusAgent"))
    hints = {"sequence": "T1 contrast" if sequence == "T1" and with_agent else sequence}
    for kind, key, known in (("region", REGION, regions()), ("sequence", SEQUENCE, sequences())):
        if facts.get(key) in known[:-1]:
            hints[kind] = str(facts[key])
    return hints


def bids_facts(root: Path, path: Path) -> dict[str, FactValue]:
    """What a data set says of one image or label map, by DICOM keyword.

    Args:
        root: Of the data set.
        path: The file.

    Returns:
        Sidecar facts in the units of DICOM, sex and age of `participants.tsv`, an id of the session
        as StudyInstanceUID, and the names of label values. Nothing of it is de-identified.
    """
    entities, suffix = _entities(path.name)
    found: dict[str, Any] = {}
    below = path.parent.relative_to(root).parts
    for depth in range(len(below) + 1):
        for fits, own, content in _sidecars(root.joinpath(*below[:depth])):
            if own == suffix and fits.items() <= entities.items():
                found |= content
    facts: dict[str, FactValue] = {}
    for key, value in found.items():
        keyword = _RENAMED.get(key, key)
        if key in SECONDS and isinstance(value, (int, float)) and not isinstance(value, bool):
            facts[keyword] = round(value * 1000, 6)
        elif key in (*AS_THEY_ARE, *_RENAMED, REGION, SEQUENCE):
            facts[keyword] = _fact(value)
    facts |= _participants(root / "participants.tsv").get(entities.get("sub", ""), {})
    session = f"{root.name}/{entities.get('sub', '')}/{entities.get('ses', '')}"
    number = int.from_bytes(hashlib.sha256(session.encode()).digest()[:16], "big")
    facts["StudyInstanceUID"] = f"2.25.{number}"
    if suffix == "dseg" and (names := _label_names(path)):
        facts["LabelNames"] = names
    return facts


def _entities(name: str) -> tuple[dict[str, str], str]:
    """``sub-01_ses-2_T1w.nii.gz`` -> {"sub": "01", "ses": "2"}, "T1w"."""
    *pairs, suffix = name.partition(".")[0].split("_")
    split = [pair.partition("-") for pair in pairs]
    return {key: value for key, dash, value in split if dash}, suffix


@functools.lru_cache(maxsize=4096)
def _sidecars(folder: Path) -> Sequence[tuple[dict[str, str], str, dict[str, Any]]]:
    """JSON files of a folder: entities, suffix, content; those with fewer entities come first."""
    found = []
    for path in sorted(folder.glob("*.json")):
        entities, suffix = _entities(path.name)
        content = _json(path) if suffix != "description" else None
        if content is not None:
            found.append((entities, suffix, content))
    return sorted(found, key=lambda sidecar: len(sidecar[0]))


@functools.lru_cache(maxsize=16)
def _participants(path: Path) -> dict[str, dict[str, FactValue]]:
    """Sex and age, by subject without ``sub-``; empty where there is no such table."""
    facts: dict[str, dict[str, FactValue]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return facts
    for row in csv.DictReader(lines, delimiter="\t"):
        own: dict[str, FactValue] = {}
        if sex := _SEX.get((row.get("sex") or row.get("gender") or "").strip().lower()):
            own["PatientSex"] = sex
        age = re.fullmatch(r"(\d{1,3})(?:\.\d+)?", (row.get("age") or "").strip())
        if age and int(age[1]) <= 130:
            own["PatientAge"] = f"{int(age[1]):03d}Y"
        facts[(row.get("participant_id") or "").strip().removeprefix("sub-")] = own
    return facts


def _label_names(path: Path) -> str:
    """``1=liver;2=spleen`` from the table beside a label map, or one that names no image."""
    name = path.name.partition(".")[0]
    tables = (path.with_name(f"{name}.tsv"), path.with_name("dseg.tsv"))
    table = next((table for table in tables if table.is_file()), None)
    if table is None:
        return ""
    lines = table.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    rows = csv.DictReader(lines, delimiter="\t")
    pairs = [((row.get("index") or "").strip(), (row.get("name") or "").strip()) for row in rows]
    return ";".join(f"{i}={n}" for i, n in pairs if i.isdigit() and _LABEL.fullmatch(n))


def _fact(value: object) -> FactValue:
    if isinstance(value, list):
        return "\\".join(str(one) for one in value)
    return value if isinstance(value, (int, float, str)) else str(value)


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None, and a warning, when there is none."""
    try:
        if path.stat().st_size <= _MAX_JSON:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            if isinstance(content, dict):
                return content
    except (OSError, ValueError, RecursionError):
        pass
    logger.warning("a JSON file of a BIDS data set holds no object, and is not used")
    return None

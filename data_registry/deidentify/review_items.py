"""What a person looks at: what was held back, what was flagged, and a sample of the rest."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_registry.deidentify.audit import read_audit
from data_registry.deidentify.ledger import Draw, Ledger
from data_registry.deidentify.outcome import Outcome, Passed

Why = Literal["text", "face", "flagged", "sample"]
HELD: dict[str, Why] = {"DATA-16": "text", "DATA-17": "face"}
"""Codes of files that a person may pass: the next run of the same command lets them out."""


@dataclass(frozen=True)
class Item:
    """A volume to look at.

    Args:
        name: Path of its series or file below the folder, or the keyed id of what was held back.
        files: Its files, in order of names.
        seen: Hash of what is seen; the verdict is on it.
        why: ``text`` or ``face`` for what was held back (the originals are shown), ``flagged`` for
            text that was found and blanked, ``sample`` for chance.
    """

    name: str
    files: tuple[Path, ...]
    seen: str
    why: Why


def items_of(folder: Path, draw: Draw) -> list[Item]:
    """Every volume of an output in whose pixels text was found, and a sample of the others.

    Args:
        folder: Output of ``core-mri data deidentify``.
        draw: Of the sample: the same folder and draw give the same items.

    Raises:
        ConfigError: CONFIG-03 when the folder holds no audit.
    """
    volumes: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in read_audit(folder)[1].values():
        if outcome.status == "done" and outcome.kind in ("dicom", "nifti"):
            place = Path(outcome.output)
            volumes[(place.parent if outcome.kind == "dicom" else place).as_posix()].append(outcome)
    flagged = sorted(name for name, own in volumes.items() if any(o.texts for o in own))
    others = sorted(set(volumes) - set(flagged), key=lambda name: _rank(draw.seed, name))
    whys: dict[str, Why] = dict.fromkeys(flagged, "flagged")
    whys.update(dict.fromkeys(others[: draw.sample], "sample"))
    items = []
    for name, why in whys.items():
        own = sorted(volumes[name], key=lambda outcome: outcome.output)
        files = tuple(folder / outcome.output for outcome in own)
        items.append(Item(name, files, _hash(outcome.result for outcome in own), why))
    return items


def held_items(folder: Path, originals: Mapping[str, Path]) -> list[Item]:
    """What was held back for text or a face, series by series.

    Args:
        folder: Output of ``core-mri data deidentify``.
        originals: Keyed id of each file of its input -> the file.

    Raises:
        ConfigError: CONFIG-03 when the folder holds no audit.
    """
    items = []
    for group, own in _held(read_audit(folder)[1]).items():
        files = [originals[outcome.file] for outcome in own if outcome.file in originals]
        if len(files) == len(own):
            code = own[0].code
            items.append(Item(_name(code, group), tuple(files), _stamps(own), HELD[code]))
    return items


def passed_by_a_person(folder: Path, outcomes: Mapping[str, Outcome]) -> Passed:
    """Keyed ids of files that were held back -> the codes for which a person has passed them.

    Args:
        folder: With the ledger.
        outcomes: Of its audit.

    Raises:
        DataError: DATA-08 when the ledger is damaged.
    """
    ledger = Ledger.open(folder)
    passed: Passed = {}
    for group, own in _held(outcomes).items():
        said = {code: ledger.verdict_on(_name(code, group), _stamps(own)) for code in HELD}
        codes = frozenset(code for code, line in said.items() if line and line.verdict == "pass")
        passed.update(dict.fromkeys((outcome.file for outcome in own), codes) if codes else {})
    return passed


def _held(outcomes: Mapping[str, Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes.values():
        if outcome.status == "quarantined" and outcome.code in HELD:
            groups[outcome.group or outcome.file].append(outcome)
    return {group: sorted(own, key=lambda o: o.file) for group, own in sorted(groups.items())}


def _name(code: str, group: str) -> str:
    return f"held for {HELD[code]}: {group}"


def _stamps(outcomes: Iterable[Outcome]) -> str:
    """Of inputs, whose content the audit has no keyed hash of: by size and time of change."""
    return _hash(f"{outcome.file} {outcome.stamp}" for outcome in outcomes)


def _rank(seed: int, name: str) -> str:
    """A random order that stays when volumes are added."""
    return _hash((str(seed), name))


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

"""Who was withdrawn: a ledger that refuses, and a note of what was begun.

``withdrawals.jsonl`` is only appended to. A line holds the `mark` of a patient, which is a hash of
the keyed pseudonym: enough to refuse the patient's scans, too little to find the patient.
``withdrawing.json`` holds the pseudonyms while a withdrawal is under way, and is deleted then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from core_mri.errors import DataError
from data_registry.governance.uses import mark
from data_registry.shards import PARTIAL, cannot_write, fsync

LEDGER, PENDING = "withdrawals.jsonl", "withdrawing.json"
WITHDRAWN = "DATA-22"
"""Code of files whose patient was withdrawn; see `core_mri.errors`."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A withdrawal that was begun."""

    name: str
    """Random, so that the audit log has it once."""
    when: str
    """UTC, ISO 8601."""
    who: str
    reason: str
    subjects: Sequence[str]
    """Pseudonyms."""
    volumes: Sequence[str]
    """Ids of their volumes."""
    words: Sequence[str]
    """All ids of theirs."""
    slices: int
    commit: int
    """The newest one when it was begun."""


def withdrawn(registry: Path) -> frozenset[str]:
    """Marks of all patients who were withdrawn."""
    try:
        lines = (registry / LEDGER).read_bytes().split(b"\n")
    except FileNotFoundError:
        return frozenset()
    return frozenset(json.loads(line)["subject"] for line in lines[:-1] if line)


def refuse(subject_id: str, marks: Collection[str]) -> None:
    """See that a patient was not withdrawn.

    Args:
        subject_id: Pseudonym.
        marks: From `withdrawn`.

    Raises:
        DataError: DATA-22 when so.
    """
    if marks and mark(subject_id) in marks:
        raise DataError(
            WITHDRAWN,
            "the patient of this scan was withdrawn from the registry, so nothing of it is stored.",
            fix="Delete the scan where it lies, or leave it out with `exclude` of its source.",
        )


def add_to_ledger(registry: Path, pending: Pending) -> None:
    """Append what is not there yet; what a killed writer left of a line is cut off.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    path = registry / LEDGER
    try:
        if path.is_file():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)
        known = withdrawn(registry)
        new = [m for m in map(mark, pending.subjects) if m not in known]
        with path.open("a", encoding="ascii") as ledger:
            for number in new:
                line = {"subject": number, "when": pending.when, "withdrawal": pending.name}
                ledger.write(json.dumps(line) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
    except OSError as error:
        raise cannot_write(error, f"registry {registry}") from error


def pending(registry: Path) -> Pending | None:
    """The withdrawal that was begun and not completed, if any."""
    try:
        return Pending(**json.loads((registry / PENDING).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def begin(registry: Path, new: Pending) -> None:
    """Note a withdrawal before anything is changed.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    aside = registry / f"{PARTIAL}{PENDING}"
    try:
        aside.write_text(json.dumps(asdict(new)), encoding="utf-8")
        fsync(aside)
        aside.replace(registry / PENDING)
        fsync(registry)
    except OSError as error:
        raise cannot_write(error, f"registry {registry}") from error


def end(registry: Path) -> None:
    """Forget what was begun: it is done."""
    (registry / PENDING).unlink()
    fsync(registry)

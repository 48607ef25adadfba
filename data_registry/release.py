"""What of a registry may be made public: what was de-identified for it, and looked at by a person.

A volume is linked to the review through the ledger of files: every file that it was read from must
be an output of `core-mri data deidentify` with text and faces looked for, unchanged since (its
keyed hash is that of the audit), and every item of that folder's review must have passed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError, DataError
from data_registry.deidentify.audit import read_audit
from data_registry.deidentify.encoding import PIXEL_TAGS, parse
from data_registry.deidentify.identifiers import file_id, pseudonym
from data_registry.deidentify.ledger import Draw, Ledger
from data_registry.deidentify.mapped import map_file, pieces
from data_registry.deidentify.outcome import Outcome, content_id, whole_id
from data_registry.deidentify.review_items import items_of

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

MIN_SAMPLE = 30
"""Volumes taken by chance that a person must have looked at, beside the flagged ones."""


def check_release(
    registry: Registry, rows: Sequence[VolumeRow], reviewed: Sequence[Path], key: bytes
) -> None:
    """See that volumes may be made public.

    Args:
        registry: Theirs.
        rows: The volumes.
        reviewed: Output folders of ``core-mri data deidentify`` that they were read from.
        key: Project key, of the registry and of those folders.

    Raises:
        ConfigError: CONFIG-03 for a folder without audit, CONFIG-05 for one that was made with
            another key, or with text or faces left in.
        DataError: DATA-08 for a damaged ledger, DATA-19 when the review of a folder is not complete
            or did not pass, or when a volume does not come from one of them.
    """
    released = {name: stamp for folder in reviewed for name, stamp in _files(folder, key).items()}
    units: dict[str, bool] = {}
    for file, unit, size, mtime_ns in registry.rows(
        "SELECT file_id, unit_id, size, mtime_ns FROM files WHERE code = ''"
    ):
        units[unit] = units.get(unit, True) and released.get(file) == (size, mtime_ns)
    others = [row for row in rows if not units.get(row.series_id, False)]
    if others:
        sources = ", ".join(sorted({row.source for row in others}))
        raise DataError(
            "DATA-19",
            f"{len(others)} of {len(rows)} volumes (source {sources}) were not read from a "
            "reviewed folder, or changed since.",
            fix="Ingest the output of `core-mri data deidentify --release public`, give that "
            "folder with --reviewed, or choose with --where.",
        )


def _files(folder: Path, key: bytes) -> dict[str, tuple[int, int]]:
    """Files of a folder that may go out: keyed id, as a registry names them -> size and time."""
    head, outcomes = read_audit(folder)
    if head.get("key") != pseudonym(key, "audit"):
        raise ConfigError(
            "CONFIG-05",
            f"{folder} was made with another key than the registry.",
            fix="Use one project key for both.",
        )
    if head.get("pixels") == "skip" or head.get("faces") == "keep" or "documents" in head["extras"]:
        raise ConfigError(
            "CONFIG-05",
            f"{folder} was not made for a public release: pixels {head.get('pixels')}, faces "
            f"{head.get('faces')}.",
            fix="De-identify with --release public.",
        )
    _check_review(folder)
    root = folder.resolve()
    files = {}
    for outcome in outcomes.values():
        path = root / outcome.output
        if (
            outcome.status == "done"
            and path.is_file()
            and _hash(key, path, outcome) == outcome.result
        ):
            status = path.stat()
            files[file_id(key, path)] = status.st_size, status.st_mtime_ns
    return files


def _check_review(folder: Path) -> None:
    """See that every item was looked at and passed.

    Raises:
        DataError: DATA-19 when not.
    """
    ledger = Ledger.open(folder)
    fix = f"Look at it with `core-mri data review {folder}`."
    if not ledger.lines:
        raise DataError("DATA-19", f"nobody has looked at {folder}.", fix=fix)
    last = ledger.lines[-1]
    draw = Draw(max(last.sample, MIN_SAMPLE), last.seed)
    items = items_of(folder, draw)
    lines = [ledger.verdict_on(item.name, item.seen) for item in items]
    passed = sum(line is not None and line.verdict == "pass" for line in lines)
    if passed < len(items):
        raise DataError(
            "DATA-19",
            f"of {len(items)} volumes of {folder} to look at (sample {draw.sample}, seed "
            f"{draw.seed}) {passed} passed, {lines.count(None)} were not looked at.",
            fix=fix,
        )


def _hash(key: bytes, path: Path, outcome: Outcome) -> str:
    """The keyed hash of an output as it is now, as the audit has it."""
    if outcome.kind != "dicom":
        return whole_id(key, str(path))
    file = map_file(path)
    parsed = parse(file)
    first = next((e.value for e in parsed.elements if e.tag in PIXEL_TAGS), len(file))
    header = file[: first if parsed.content is file else len(file)]
    digest = hashlib.sha256()
    for (piece,) in pieces(file[len(header) :]):
        digest.update(piece)
    return content_id(key, header, digest.digest())

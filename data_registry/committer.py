"""From results of workers to commits: what is new, in which split, and what it replaces."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.config import to_mapping
from core_mri.errors import ConfigError, DataError
from data_registry.catalogue import Registry, reason_of
from data_registry.commits import commit
from data_registry.compaction import merge_commits
from data_registry.governance.licences import UNKNOWN
from data_registry.schema import TABLES, RetiredRow, ShardRow, SourceRow, SplitRow, VolumeRow
from data_registry.shards import cannot_write

if TYPE_CHECKING:
    from data_registry.batches import BatchResult, UnitResult
    from data_registry.ingest import IngestReport
    from data_registry.source_list import Source

logger = logging.getLogger(__name__)


class Committer:
    """Turns results of workers into commits; lives in the one writing process.

    Args:
        registry: The registry, whose lock is held.
        report: Counts what is committed.
        log: Private log, or None.
    """

    def __init__(self, registry: Registry, report: IngestReport, log: Path | None) -> None:
        self._registry = registry
        self._report = report
        self._log = log
        self._sources = {row[0] for row in registry.rows("SELECT source FROM sources")}
        self._splits = dict(registry.rows("SELECT subject_id, split FROM splits"))
        self._ids: set[str] = set()
        self._subject_of: dict[str, str] = {}
        for volume_id, pixels, subject in registry.rows(
            "SELECT volume_id, if(role = 'image', pixel_hash, NULL), subject_id FROM volumes"
        ):
            self._ids.add(volume_id)
            if pixels is not None:  # an empty label map is that of many patients
                self._subject_of.setdefault(pixels, subject)

    def add(self, result: BatchResult) -> None:
        """Commit one batch, and drop its shard when nothing in it is new."""
        tables: dict[str, list[object]] = {name: [] for name in TABLES}
        for unit in result.units:
            source = unit.unit.source
            if source.name not in self._sources:
                self._sources.add(source.name)
                tables["sources"].append(promise(source))
            tables["retired"] += self._outdated(unit)  # asked before its new volumes are known
            tables["volumes"] += (fresh := self._fresh(unit, tables["splits"]))
            kept = {row.volume_id for row in fresh}
            slices = [row for row in unit.slices if row.volume_id in kept]
            tables["slices"] += slices
            tables["files"] += unit.files()
            self._report.slices_added += len(slices)
            self._report.volumes_known += len(unit.known)
            for code in sorted({failure.code for failure in unit.failures}):
                self._report.note(reason_of(code), unit.unit.unit_id)
                logger.info("%s quarantined: %s", unit.unit.unit_id, reason_of(code))
        needed = result.shard is not None and bool(tables["volumes"])
        if needed:
            tables["shards"].append(result.shard)
        try:
            commit(self._registry, tables)
        except BaseException:
            self._drop(result.shard)
            raise
        if not needed:
            self._drop(result.shard)
        merge_commits(self._registry)
        self._report.volumes_added += len(tables["volumes"])
        self._report.volumes_retired += len(tables["retired"])
        if self._log is not None:
            write_private_log(self._log, result.units)

    def _drop(self, shard: ShardRow | None) -> None:
        if shard is not None:
            (self._registry.path / "shards" / shard.shard).unlink(missing_ok=True)

    def _fresh(self, unit: UnitResult, new_splits: list[object]) -> list[VolumeRow]:
        """The unit's volumes that no other batch has stored meanwhile, in their final splits.

        A new subject whose voxels another one has is the same person, and goes into that split.
        """
        fresh = []
        images = [row for row in unit.volumes if row.role == "image"]
        twins = (self._subject_of.get(row.pixel_hash) for row in images)
        twin_split = next((self._splits[twin] for twin in twins if twin), None)
        if unit.unit.source.generated and twin_split not in (None, "train"):
            raise DataError(
                "SYNTH-08",
                f"source {unit.unit.source.name}: a generated image has the voxels of a "
                f"{twin_split} patient.",
                fix="Leave it out: it is no synthetic image.",
            )
        for row in unit.volumes:
            if row.volume_id in self._ids:
                unit.known.append(row.volume_id)
                continue
            self._ids.add(row.volume_id)
            if row.subject_id not in self._splits:
                split = self._splits[row.subject_id] = twin_split or row.split
                new_splits.append(SplitRow(subject_id=row.subject_id, split=split))
            row = dataclasses.replace(row, split=self._splits[row.subject_id])
            if unit.unit.source.generated and row.split != "train":
                raise DataError(
                    "SYNTH-07",
                    f"source {row.source}: generated volumes of subject {row.subject_id} of the "
                    f"{row.split} split.",
                    fix="Give generated scans a source and a namespace of their own.",
                )
            if row.role == "image":
                other = self._subject_of.setdefault(row.pixel_hash, row.subject_id)
                self._report.possible_duplicates += other != row.subject_id
            fresh.append(row)
        return fresh

    def _outdated(self, unit: UnitResult) -> list[object]:
        """Earlier volumes of a changed file or series that were not found in it again."""
        if not unit.unit.replaces or unit.failures:
            return []
        found = {row.volume_id for row in unit.volumes} | set(unit.known)
        rows = self._registry.volumes(
            "source = ? AND series_id = ?", [unit.unit.source.name, unit.unit.unit_id]
        )
        gone = [row.volume_id for row in rows if row.volume_id not in found]
        self._ids.difference_update(gone)
        return [RetiredRow(volume_id=volume_id) for volume_id in gone]


def promise(source: Source) -> SourceRow:
    """What a source says about itself."""
    return SourceRow(
        source=source.name,
        licence=source.licence,
        subject_namespace=source.namespace,
        card=json.dumps(to_mapping(source.card), sort_keys=True) if source.card else "{}",
    )


def check_promises(registry: Registry, sources: Iterable[Source]) -> None:
    """See that a name means the same source as ever; only an unknown licence may become known.

    Raises:
        ConfigError: CONFIG-05 when a source has another licence or namespace than the registry, or
            another entry of the list, gives for its name; or two entries give it two cards.
    """
    listed: dict[str, SourceRow] = {}
    for source in sources:
        new = promise(source)
        _agree(listed.setdefault(source.name, new), new, "licence", "subject_namespace", "card")
    known = _promised(registry)
    for name, new in listed.items():
        if name in known:
            old = known[name]
            found_out = old.licence == UNKNOWN
            _agree(old, new, *([] if found_out else ["licence"]), "subject_namespace")


def _agree(old: SourceRow, new: SourceRow, *names: str) -> None:
    for what in names:
        was, now = getattr(old, what), getattr(new, what)
        if was and was != now:  # a migrated registry does not know its namespaces
            raise ConfigError(
                "CONFIG-05",
                f"source {new.source!r} has {what} {was!r} so far, and {now!r} now.",
                fix="Give another source another name, and the same one what it had.",
            )


def complete_sources(registry: Registry, sources: Iterable[Source]) -> None:
    """Write down what is now told of known sources: a card, or a licence that was unknown.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    known = _promised(registry)
    rows = []
    for new in {source.name: promise(source) for source in sources}.values():
        if new.source in known:
            old = known[new.source]
            new = dataclasses.replace(new, card=old.card) if new.card == "{}" else new
            rows += [new] if new != old else []
    if rows:
        commit(registry, {"sources": rows})


def _promised(registry: Registry) -> dict[str, SourceRow]:
    rows = registry.rows("SELECT source, licence, subject_namespace, card FROM sources")
    names = ("source", "licence", "subject_namespace", "card")
    return {row[0]: SourceRow(**dict(zip(names, row, strict=True))) for row in rows}


def write_private_log(path: Path, units: Sequence[UnitResult]) -> None:
    """Append which path each keyed id stands for, to a file that only its owner can read.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    lines = []
    for unit in units:
        why = {p: failure for failure in unit.failures for p in failure.paths}
        for file in unit.unit.files:
            lines.append(
                {
                    "id": file.row.file_id,
                    "unit": unit.unit.unit_id,
                    "path": str(file.path),
                    "code": why[file.path].code if file.path in why else "",
                    "message": why[file.path].message if file.path in why else "",
                }
            )
    _append(path, lines)


def log_left_out(path: Path, files: Iterable[tuple[str, Path]]) -> None:
    """Append the files that no source takes: keyed id and path.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    message = "left out: no entry of the source list takes it"
    _append(
        path,
        ({"id": i, "unit": "", "path": str(p), "code": "", "message": message} for i, p in files),
    )


def _append(path: Path, lines: Iterable[Mapping[str, str]]) -> None:
    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    try:
        with open(path, "a", encoding="utf-8", errors="surrogateescape", opener=private) as log:
            for line in lines:
                log.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise cannot_write(error, "the private log") from error

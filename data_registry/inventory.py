"""What an ingest has to read: every file found, minus what the ledger knows, grouped into units.

A unit is one DICOM series, one image or raw data file with what belongs to it, or one folder of
pictures. Files of a series may lie anywhere in a source, so the grouping is done in a private
temporary database on disk: memory stays flat for millions of files.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core_mri.errors import DataError
from data_registry.catalogue import Registry
from data_registry.deidentify.identifiers import file_id, pseudonym
from data_registry.first_look import Header, UnitKind, is_scan, kind_of, walk
from data_registry.schema import FileRow
from data_registry.source_list import Source

_CHUNK = 512
_KNOWN_SUFFIXES = (
    ".txt", ".md", ".json", ".tsv", ".csv", ".xml", ".html", ".pdf", ".yaml", ".yml", ".py", ".m",
    ".mat", ".log", ".bval", ".bvec", ".zip", ".tar", ".gz", ".nii", ".nrrd", ".mha", ".mhd",
    ".raw", ".png", ".jpg", ".jpeg", ".dcm", ".ima", ".h5", ".npy", ".npz", ".dat",
)  # fmt: skip
_LEFT_OUT = "(SELECT * FROM others WHERE file_id NOT IN (SELECT file_id FROM files))"
logger = logging.getLogger(__name__)
_SCHEMA = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32768;
CREATE TABLE ledger (file_id TEXT, source TEXT, size INT, mtime_ns INT, unit_id TEXT,
    instance TEXT, code TEXT, PRIMARY KEY (file_id, source)) WITHOUT ROWID;
CREATE TABLE files (number INTEGER PRIMARY KEY, entry INT, source TEXT, path BLOB, relative TEXT,
    file_id TEXT, size INT, mtime_ns INT, state TEXT, unit_id TEXT, instance TEXT,
    code TEXT, series TEXT, UNIQUE (file_id, source));
CREATE INDEX units ON files (source, unit_id);
CREATE TABLE others (file_id TEXT PRIMARY KEY, path BLOB, kind TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class UnitFile:
    """One file of a unit."""

    path: Path
    relative: str
    """Path below the root of its source, led by the root's own name."""
    row: FileRow
    """Its ledger row, without a code yet."""


@dataclass(frozen=True)
class Unit:
    """One DICOM series, image, folder of pictures or raw data file that has to be read."""

    unit_id: str
    source: Source
    kind: UnitKind
    files: tuple[UnitFile, ...]
    """The file that leads comes first, such as the header before its voxels."""
    replaces: bool
    """Some of its files were read before and then changed, or got company."""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.row.size for file in self.files)


class Inventory:
    """The files of one ingest, on disk.

    Args:
        registry: Its ledger tells which files are known.
        key: Project key.
        retry: Look again at files that are in quarantine.
    """

    def __init__(self, registry: Registry, key: bytes, *, retry: bool = False) -> None:
        self._key = key
        self._database = sqlite3.connect("")  # a file without a name, gone when it is closed
        self._database.executescript(_SCHEMA)
        columns = "file_id, source, size, mtime_ns, unit_id, instance, code"
        where = " WHERE code = ''" if retry else ""
        self._database.executemany(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?)",
            registry.rows(f"SELECT {columns} FROM files{where}"),
        )

    def add(self, entry: int, source: Source, skip: Iterable[Path]) -> None:
        """Walk one source.

        Args:
            entry: Its position in the list of sources.
            source: The source.
            skip: Files and folders that are no data, such as the registry itself.

        Raises:
            DataError: DATA-01 when its root does not exist.
        """
        root = source.folder()
        if not root.exists():
            raise DataError(
                "DATA-01",
                f"no such file or folder: {source.root or source.package}.",
                fix="Check the path.",
            )
        for path in walk(root, {os.fspath(p.resolve()) for p in skip}, self._unlisted):
            below = path.relative_to(root).as_posix() if path != root else path.name
            if is_scan(path) and source.takes(below):
                self._add_file(entry, source, path, f"{root.name}/{below}")
            else:
                self._database.execute(
                    "INSERT OR IGNORE INTO others VALUES (?, ?, ?)",
                    (file_id(self._key, path), os.fsencode(path), _kind_left_out(path)),
                )

    def left_out(self) -> Iterator[tuple[str, Path]]:
        """Files below the roots that no source takes: keyed id and path."""
        rows = self._database.execute(f"SELECT file_id, path FROM {_LEFT_OUT} ORDER BY path")
        yield from ((own, Path(os.fsdecode(path))) for own, path in rows)

    def count_left_out(self) -> dict[str, int]:
        """How many there are, by kind of name."""
        query = f"SELECT kind, count(*) FROM {_LEFT_OUT} GROUP BY kind ORDER BY count(*) DESC, kind"
        return dict(self._database.execute(query))

    def num_shared_series(self) -> int:
        """Series UIDs under which files of more than one patient were found."""
        query = (
            "SELECT 1 FROM files WHERE series <> '' GROUP BY source, series "
            "HAVING count(DISTINCT unit_id) > 1"
        )
        return int(self._database.execute(f"SELECT count(*) FROM ({query})").fetchone()[0])

    def unknown(self) -> Iterator[list[tuple[int, Path]]]:
        """New or changed files that may be DICOM, in chunks of (number, path)."""
        last = -1
        while True:
            rows = self._database.execute(
                "SELECT number, path FROM files WHERE state <> 'known' AND unit_id IS NULL "
                "AND number > ? ORDER BY number LIMIT ?",
                (last, _CHUNK),
            ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [(number, Path(os.fsdecode(path))) for number, path in rows]

    def describe(self, headers: list[tuple[int, Header]], sources: Sequence[Source]) -> None:
        """Note what belongs together; a file of which nothing is known is a unit of its own."""
        for number, header in headers:
            entry, own, path = self._database.execute(
                "SELECT entry, file_id, path FROM files WHERE number = ?", (number,)
            ).fetchone()
            source = sources[entry]
            namespace = source.namespace
            unit, series = own, ""
            if header.series:
                unit = pseudonym(self._key, "series", namespace, header.patient, header.series)
                series = pseudonym(self._key, "series", namespace, header.series)
            elif header.leader is not None:
                unit = file_id(self._key, header.leader)
            elif source.stack:
                unit = pseudonym(
                    self._key, "stack", file_id(self._key, Path(os.fsdecode(path)).parent)
                )
            instance = pseudonym(self._key, "instance", header.instance) if header.instance else ""
            self._database.execute(
                "UPDATE files SET unit_id = ?, instance = ?, series = ? WHERE number = ?",
                (unit, instance, series, number),
            )

    def num_files(self) -> int:
        """Files found."""
        return int(self._database.execute("SELECT count(*) FROM files").fetchone()[0])

    def known(self) -> tuple[int, dict[str, list[str]]]:
        """Files that need no reading: how many were stored, and units in quarantine by code."""
        rows = self._database.execute(
            "SELECT code, unit_id, count(*) FROM files WHERE state = 'known' "
            "GROUP BY code, unit_id ORDER BY code, unit_id"
        )
        num_stored, quarantined = 0, dict[str, list[str]]()
        for code, unit_id, count in rows:
            if code:
                quarantined.setdefault(code, []).append(unit_id)
            else:
                num_stored += count
        return num_stored, quarantined

    def num_units(self) -> int:
        """Units to read, counted before copies are told apart."""
        query = "SELECT 1 FROM files WHERE state <> 'known' GROUP BY source, unit_id"
        return int(self._database.execute(f"SELECT count(*) FROM ({query})").fetchone()[0])

    def units(self, sources: Sequence[Source]) -> Iterator[Unit]:
        """Units to read, in the order in which their first files were found.

        A series whose folder was copied holds each instance twice; the copies become units of their
        own, so that neither mixes with the other.
        """
        found = self._database.execute(
            "SELECT source, unit_id, entry FROM files WHERE state <> 'known' "
            "GROUP BY source, unit_id ORDER BY min(number)"
        )
        for name, unit_id, entry in found:
            copies: list[list[tuple[UnitFile, str]]] = []
            seen: dict[str, int] = {}
            for row in self._database.execute(
                "SELECT path, relative, file_id, size, mtime_ns, instance, state FROM files "
                "WHERE source = ? AND unit_id = ? ORDER BY number",
                (name, unit_id),
            ):
                path, relative, own, size, mtime_ns, instance, state = row
                ledger = FileRow(
                    file_id=own,
                    size=size,
                    mtime_ns=mtime_ns,
                    source=name,
                    unit_id=unit_id,
                    instance=instance,
                    code="",
                )
                copy = seen.get(instance, 0) if instance else 0
                seen[instance] = copy + 1
                copies += [[]] if copy == len(copies) else []
                copies[copy].append((UnitFile(Path(os.fsdecode(path)), relative, ledger), state))
            for files in copies:
                states = {state for _, state in files}
                if states == {"known"}:
                    continue
                members = sorted(
                    (file for file, _ in files), key=lambda f: f.row.file_id != unit_id
                )
                yield Unit(
                    unit_id=unit_id,
                    source=sources[entry],
                    kind=_unit_kind(members, sources[entry]),
                    files=tuple(members),
                    replaces=len(copies) == 1 and states != {"new"},
                )

    def close(self) -> None:
        """Drop the database."""
        self._database.close()

    def _unlisted(self, error: OSError) -> None:
        name = file_id(self._key, str(error.filename))
        logger.warning("%s: this folder cannot be listed: %s", name, error.strerror)

    def _add_file(self, entry: int, source: Source, path: Path, relative: str) -> None:
        try:
            status = path.stat()
        except OSError:
            return  # gone since it was listed, or a dangling link
        if not stat.S_ISREG(status.st_mode):
            return
        own = file_id(self._key, path)
        known = self._database.execute(
            "SELECT size, mtime_ns, unit_id, instance, code FROM ledger "
            "WHERE file_id = ? AND source = ?",
            (own, source.name),
        ).fetchone()
        state, unit_id, instance, code = "new", None, "", ""
        if known is not None:
            same = known[:2] == (status.st_size, status.st_mtime_ns)
            state = "known" if same else "changed"
            if same:
                _, _, unit_id, instance, code = known
        self._database.execute(
            "INSERT OR IGNORE INTO files (entry, source, path, relative, file_id, size, mtime_ns, "
            "state, unit_id, instance, code) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry,
                source.name,
                os.fsencode(path),
                relative.encode("utf-8", "replace").decode("utf-8"),
                own,
                status.st_size,
                status.st_mtime_ns,
                state,
                unit_id,
                instance,
                code,
            ),
        )


def _unit_kind(members: Sequence[UnitFile], source: Source) -> UnitKind:
    try:
        kind = kind_of(members[0].path)
    except OSError:
        return "dicom"  # gone or not readable: reading it tells which
    if kind == "image" and source.stack and len(members) > 1:
        return "stack"
    if kind == "image" and source.role == "kspace":
        return "kspace"
    return kind


def _kind_left_out(path: Path) -> str:
    """A name for reports that can hold nobody's: a well-known ending, or "other"."""
    if path.name.startswith("."):
        return "hidden"
    if path.name == "DICOMDIR":
        return "DICOMDIR"
    return path.suffix.lower() if path.suffix.lower() in _KNOWN_SUFFIXES else "other"

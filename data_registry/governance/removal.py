"""Taking patients out of shards and catalogue: written anew without them, swapped by one rename.

New shards hold the other volumes of the old ones, copied as they are stored. Then one merged commit
folder, whose span covers all others, holds every row but those of the patients; the moment it gets
its name, readers see it alone. What it replaces is deleted. Killed before that moment nothing has
changed, killed after it only old files are left; the same again completes it.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import DataError
from data_registry.commits import new_folder
from data_registry.compaction import blocks
from data_registry.governance import audit_log, downloads, uses, withdrawals
from data_registry.schema import (
    TABLES,
    ShardRow,
    VolumeRow,
    arrow_schema,
    from_table,
    to_table,
)
from data_registry.shards import ShardWriter
from data_registry.similarity.store import FOLDER as SIMILARITY
from data_registry.views import commit_folders, commit_span

if TYPE_CHECKING:
    import h5py
    import pyarrow

    from data_registry.catalogue import Registry

_TARGET = "-target"
_OWN = (
    "registry.json", ".lock", "commits", "cohorts", "shards", uses.FOLDER, "agreements",
    SIMILARITY,
    "sharing.jsonl", audit_log.LOG, audit_log.HEAD, audit_log.HEAD_ASIDE, withdrawals.LEDGER,
    withdrawals.PENDING, *downloads.FILES,
)  # fmt: skip
"""What a registry folder is made of; everything else somebody put there."""


@dataclass(kw_only=True)
class Owned:
    """What the catalogue holds of some patients, in all its commits."""

    subjects: frozenset[str]
    volumes: dict[str, dict[str, object]]
    """Volume id to its row."""
    shards: frozenset[str]
    words: frozenset[str]
    """Every id that names them or their scans."""


@dataclass(kw_only=True)
class _Moves:
    """Where volumes of others lie now: by ``VOLUME COMMIT``, as one may be stored twice."""

    shard: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """With the index of the slice: first byte and length."""
    dropped: set[str] = field(default_factory=set)
    """Volumes of others that were replaced or lost before, and lay in a shard that goes."""
    rows: list[tuple[ShardRow, int]] = field(default_factory=list)
    """New shards, with the commit of their volumes."""
    old: set[str] = field(default_factory=set)


def owned(registry: Registry, subjects: Collection[str]) -> Owned:
    """Look up all that is stored of patients, replaced volumes too."""
    rows = registry.sql(
        "SELECT a.volume_id, a.series_id, a.study_id, a.shard, a.pixel_hash, a.dataset, a.role, "
        "a.num_slices, a.source, a.subject_id FROM all_volumes AS a "
        "WHERE list_contains(?, a.subject_id)",
        [sorted(subjects)],
    ).to_pylist()
    names = ("volume_id", "series_id", "study_id", "pixel_hash", "dataset", "subject_id")
    return Owned(
        subjects=frozenset(subjects),
        volumes={row["volume_id"]: row for row in rows},
        shards=frozenset(row["shard"] for row in rows),
        words=frozenset(subjects) | {row[name] for row in rows for name in names if row[name]},
    )


def rewrite(registry: Registry, own: Owned) -> None:
    """Shards and catalogue without the patients; the caller holds the lock.

    Raises:
        DataError: DATA-07 when the disk is full, DATA-08 when a volume of another patient cannot be
            copied, because its shard is damaged.
    """
    import pyarrow.parquet

    folders = commit_folders(registry.path)
    if not folders or not _mentioned(registry, own):
        return
    moves = _Moves()
    for shard in sorted(own.shards):
        _rewrite_shard(registry, shard, own, moves)
    units = _units_of_others(registry, own)
    first, last = commit_span(folders[0])[0], commit_span(folders[-1])[1]
    with new_folder(registry, f"{first:08d}-{last + 1:08d}") as aside:
        for name, row in TABLES.items():
            parts = [p for folder in folders if (p := folder / f"{name}.parquet").is_file()]
            if not parts:
                continue
            with pyarrow.parquet.ParquetWriter(
                aside / f"{name}.parquet", arrow_schema(row), compression="zstd"
            ) as writer:
                for block in blocks(parts, arrow_schema(row)):
                    writer.write_table(_without(name, block, own, moves, units))
                if name == "shards":
                    for new, number in moves.rows:
                        writer.write_table(to_table(ShardRow, [new], number))


def _mentioned(registry: Registry, own: Owned) -> bool:
    splits = "SELECT count(*) AS n FROM all_splits WHERE list_contains(?, subject_id)"
    return bool(own.volumes) or registry.sql(splits, [sorted(own.subjects)])["n"][0].as_py() > 0


def _rewrite_shard(registry: Registry, shard: str, own: Owned, moves: _Moves) -> None:
    """Copy what other patients have in a shard to a new one."""
    import h5py
    import hdf5plugin  # noqa: F401  registers the decoder

    path = registry.path / "shards" / shard
    if not path.is_file():
        return  # the others' volumes are lost with it; `repair` says so
    table = registry.sql(
        "SELECT * FROM volumes WHERE shard = ? AND NOT list_contains(?, subject_id) "
        "ORDER BY dataset",
        [shard, sorted(own.subjects)],
    )
    rows = from_table(VolumeRow, table)
    commits = dict(zip(table["volume_id"].to_pylist(), table["commit"].to_pylist(), strict=True))
    moves.old.add(shard)
    everything = registry.sql(
        "SELECT concat(volume_id, ' ', commit) AS key FROM all_volumes WHERE shard = ?", [shard]
    )
    keys = {row.volume_id: f"{row.volume_id} {commits[row.volume_id]}" for row in rows}
    moves.dropped |= set(everything["key"].to_pylist()) - set(keys.values())
    name = f"{uuid.uuid4().hex[:16]}.h5"
    with ShardWriter(path.parent, name) as writer:
        with _damage(shard), h5py.File(path, "r") as source:
            for row in rows:
                for dataset in _datasets(source, row.dataset):
                    writer.copy(source, dataset)
        finished = writer.finish()
    if finished is None:
        return
    new = ShardRow(shard=name, size=finished.size, sha256=finished.sha256)
    moves.rows.append((new, max(commits.values())))
    for row in rows:
        known = registry.sql(
            'SELECT "index", checksum FROM slices WHERE volume_id = ?', [row.volume_id]
        )
        for index, checksum in zip(*(c.to_pylist() for c in known.columns), strict=True):
            place = finished.places[row.dataset][index]
            if place.checksum != checksum:
                raise _damaged(shard)
            moves.shard[keys[row.volume_id]] = name
            moves.places[f"{keys[row.volume_id]} {index}"] = place.byte_start, place.num_bytes


def _datasets(source: h5py.File, dataset: str) -> Iterator[str]:
    yield dataset
    if f"{dataset}{_TARGET}" in source:  # the reference image of raw data
        yield f"{dataset}{_TARGET}"


@contextlib.contextmanager
def _damage(shard: str) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise _damaged(shard) from error


def _damaged(shard: str) -> DataError:
    return DataError(
        "DATA-08",
        f"shard {shard} is damaged where it holds volumes of other patients.",
        fix="Run `core-mri data repair`, then the same command again.",
    )


def _units_of_others(registry: Registry, own: Owned) -> pyarrow.Array:
    """``SOURCE 0 UNIT`` of the files whose patient is known, from a volume, to be another one."""
    rows = registry.sql(
        "SELECT DISTINCT concat(source, chr(0), series_id) AS unit FROM volumes "
        "WHERE NOT list_contains(?, subject_id)",
        [sorted(own.subjects)],
    )
    return rows["unit"].combine_chunks()


def _without(
    name: str, table: pyarrow.Table, own: Owned, moves: _Moves, units: pyarrow.Array
) -> pyarrow.Table:
    """A block of a table without the patients, and with the new places of others' volumes."""
    import pyarrow
    import pyarrow.compute as pc

    def among(column: str, values: Collection[str]) -> pyarrow.Array:
        return pc.is_in(table[column], pyarrow.array(sorted(values), pyarrow.string()))

    gone = {"subject_id": own.subjects, "volume_id": own.volumes, "other_id": own.volumes}
    for column, values in gone.items():
        if column in table.column_names:
            table = table.filter(pc.invert(among(column, values)))
    if name == "files":
        # Whose the others are is not known: quarantined ones, copies. They are read again.
        unit = pc.binary_join_element_wise(table["source"], table["unit_id"], "\0")
        return table.filter(pc.is_in(unit, units))
    if name == "shards":
        return table.filter(pc.invert(among("shard", moves.old)))
    if name not in ("volumes", "slices"):
        return table
    commits = table["commit"].cast(pyarrow.string())
    table = table.append_column(
        "key", pc.binary_join_element_wise(table["volume_id"], commits, " ")
    )
    table = table.filter(pc.invert(among("key", moves.dropped)))
    if not pc.any(among("key", moves.shard)).as_py():
        return table.drop_columns("key")
    keys = table["key"].to_pylist()
    if name == "volumes":
        new = [moves.shard.get(k, s) for k, s in zip(keys, table["shard"].to_pylist(), strict=True)]
        return _replace(table.drop_columns("key"), "shard", new)
    old = zip(*(table[c].to_pylist() for c in ("index", "byte_start", "num_bytes")), strict=True)
    places = [
        moves.places.get(f"{key} {index}", (start, length))
        for key, (index, start, length) in zip(keys, old, strict=True)
    ]
    table = _replace(table.drop_columns("key"), "byte_start", [start for start, _ in places])
    return _replace(table, "num_bytes", [length for _, length in places])


def _replace(table: pyarrow.Table, column: str, values: Sequence[object]) -> pyarrow.Table:
    import pyarrow

    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    return table.set_column(place, field, pyarrow.array(values, field.type))


def strangers(registry: Registry, own: Owned) -> list[Path]:
    """Files that somebody put into the registry folder and that show the patients, or may.

    Names and text are searched for their ids. What cannot be searched, such as pictures, pages with
    pictures and archives, may show them. Tensors of weights do not count: `withdraw` refuses to
    touch weights that lie there and name the patients.
    """
    words = [word.encode() for word in own.words]
    found = []
    for path in sorted(registry.path.rglob("*")):
        relative = path.relative_to(registry.path)
        if path.is_dir() or _is_part(relative) or path.suffix == ".safetensors":
            continue
        content = path.read_bytes()
        texts = (str(relative).encode("utf-8", "surrogateescape"), content)
        if _is_unreadable(content) or any(word in text for word in words for text in texts):
            found.append(path)
    return found


def delete(registry: Registry, files: Sequence[Path]) -> None:
    """Delete files of the registry folder, and the folders that are empty then."""
    for path in files:
        path.unlink()
        for folder in path.relative_to(registry.path).parents[:-1]:
            if any((registry.path / folder).iterdir()):
                break
            (registry.path / folder).rmdir()


def _is_part(relative: Path) -> bool:
    """Whether a file is one of the registry's own."""
    top, *below = relative.parts
    if not below:
        return top in _OWN
    name = below[-1]
    endings = {
        "cohorts": ".parquet", uses.FOLDER: ".json", "agreements": ".txt", SIMILARITY: ".parquet",
    }  # fmt: skip
    if top in endings:
        return name.endswith(endings[top]) and not name.startswith(".")
    return top == "shards" or (top == "commits" and below[0][0].isdigit())


def _is_unreadable(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return b"\0" in content or b"base64," in content

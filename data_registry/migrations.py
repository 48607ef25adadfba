"""From older schemas to this one: a merged commit with the new columns, then the new version.

A registry is migrated as a whole or, whatever happens, not at all: the steps below only add.
"""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import DataError
from data_registry.commits import new_folder, sole_writer
from data_registry.governance.audit_log import append
from data_registry.schema import (
    TABLES,
    FileRow,
    RetiredRow,
    ShardRow,
    SliceRow,
    SourceRow,
    SplitRow,
    VolumeRow,
    to_table,
)
from data_registry.shards import ShardReader, file_hash
from data_registry.views import commit_folders, commit_span

if TYPE_CHECKING:
    from data_registry.catalogue import Registry

logger = logging.getLogger(__name__)


def migrate(registry: Registry, schema: int) -> None:
    """Bring a registry of an older schema to this one.

    Args:
        registry: The registry, whose `registry.json` says `schema`.
        schema: From 1.

    Raises:
        DataError: DATA-07 when it cannot be written, DATA-08 when a shard is missing or damaged, or
            another process is writing; it is left as it was.
    """
    if schema == 1:
        logger.warning("%s is of schema 1: every shard is read once, for new columns", registry)
    with sole_writer(registry):
        for version in range(schema, max(_STEPS) + 1):
            _STEPS[version](registry)
        registry.save_info()
        append(registry.path, "migrate", {"from_schema": schema})


def _from_1(registry: Registry) -> None:
    """Codec, payload, percentiles, checksums, shards and sources: all follow from the shards."""
    import pyarrow.parquet

    folders = commit_folders(registry.path)
    if not folders or folders[-1].name.count("-"):  # merged commits came with schema 2
        return
    last = commit_span(folders[-1])[1]
    tables: dict[type, list[dict[str, Any]]] = {
        kind: _old_rows(folders, name) for name, kind in TABLES.items()
    }
    retired = {row["volume_id"]: row["commit"] for row in tables[RetiredRow]}
    live = [r for r in tables[VolumeRow] if retired.get(r["volume_id"], 0) <= r["commit"]]
    commit_of = {row["volume_id"]: row["commit"] for row in live}
    foreground: dict[str, dict[int, dict[str, Any]]] = {}
    for row in tables[SliceRow]:
        if commit_of.get(row["volume_id"]) == row["commit"]:
            foreground.setdefault(row["volume_id"], {})[row["index"]] = row
    reader = ShardReader(registry.path / "shards")
    rows: dict[str, list[tuple[object, int]]] = {name: [] for name in TABLES}  # with their commits
    for name, shard in _by_shard(live).items():
        path = registry.path / "shards" / name
        number = shard[0]["commit"]  # a shard is of one commit
        for old in shard:
            rows["volumes"].append((_volume(old, reader), number))
            rows["slices"] += [(s, number) for s in _slices(foreground[old["volume_id"]], path)]
        size = path.stat().st_size
        rows["shards"].append((ShardRow(shard=name, size=size, sha256=file_hash(path)), number))
        logger.warning("%s: shard %s is read", registry, name)
    promised = {row["source"]: row["licence"] for row in live}
    rows["sources"] = [
        (SourceRow(source=source, licence=licence, subject_namespace=""), last)
        for source, licence in promised.items()
    ]
    for kind, name in ((FileRow, "files"), (SplitRow, "splits")):
        rows[name] = [(_plain(kind, row), row["commit"]) for row in tables[kind]]
    with new_folder(registry, f"{1:08d}-{last:08d}") as aside:
        for name, table in rows.items():
            by_commit: dict[int, list[object]] = {}
            for one, number in table:
                by_commit.setdefault(number, []).append(one)
            parts = [to_table(TABLES[name], own, n) for n, own in sorted(by_commit.items())]
            if parts:
                pyarrow.parquet.write_table(
                    pyarrow.concat_tables(parts), aside / f"{name}.parquet", compression="zstd"
                )


def _from_2(_: Registry) -> None:
    """Sources have a card; where a part of the catalogue has none, the views say so."""


_STEPS: dict[int, Callable[[Registry], None]] = {1: _from_1, 2: _from_2}
"""Schema -> what brings a registry from it to the next one."""


def _old_rows(folders: list[Path], table: str) -> list[dict[str, Any]]:
    import pyarrow.parquet

    parts = [path for folder in folders if (path := folder / f"{table}.parquet").is_file()]
    return [row for path in parts for row in pyarrow.parquet.read_table(path).to_pylist()]


def _by_shard(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["shard"], []).append(row)
    return found


def _plain(kind: type, row: dict[str, Any]) -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: row[name] for name in names if name in row})


def _volume(old: dict[str, Any], reader: ShardReader) -> VolumeRow:
    """The row with what its stored voxels say."""
    from data_registry.storing import measure

    shape, codec = (
        reader.shape(old["shard"], old["dataset"]),
        reader.codec(old["shard"], old["dataset"]),
    )
    row: VolumeRow = _plain(
        VolumeRow,
        {
            **old,
            "coils": shape[1] if len(shape) == 4 else 1,
            "payload": old["dtype"],
            "scale": 1.0,
            "codec": codec,
            "percentiles": (),
            "affine": tuple(old["affine"]),
            "spacing_mm": tuple(old["spacing_mm"]),
        },
    )
    return row if row.role == "kspace" else measure(row, reader.read(row.shard, row.dataset))[0]


def _slices(old: dict[int, dict[str, Any]], path: Path) -> Iterator[SliceRow]:
    """The rows with the checksums of what stands in the shard now."""
    with path.open("rb") as shard:
        for _, row in sorted(old.items()):
            shard.seek(row["byte_start"])
            stored = shard.read(row["num_bytes"])
            if len(stored) != row["num_bytes"]:
                raise DataError("DATA-08", f"shard {path.name} of the registry is cut off.")
            yield _plain(SliceRow, {**row, "checksum": zlib.crc32(stored)})

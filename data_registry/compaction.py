"""Merging many small commits into one folder, so that a catalogue of thousands stays fast.

A commit is never changed: a merged copy ``00000001-00000064`` appears by one rename, and from that
moment readers take it for the commits it holds. Those are deleted by the next writer's `sweep`, so
that a reader which listed them before finds them still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_registry.commits import new_folder
from data_registry.schema import TABLES, arrow_schema
from data_registry.views import commit_folders, commit_span

if TYPE_CHECKING:
    import pyarrow

    from data_registry.catalogue import Registry

MAX_FOLDERS = 64
"""Commit folders beyond which the newest are merged: each costs a query about a millisecond."""
_BLOCK = 1 << 20


def merge_commits(registry: Registry, max_folders: int = MAX_FOLDERS) -> bool:
    """Merge the newest commits when there are too many.

    Of the folders, the newest are merged with all before them that are smaller than what is merged
    so far: each row is written again about log2(rows) times in the life of a registry.

    Args:
        registry: The registry, whose lock is held.
        max_folders: Folders that may stay.

    Returns:
        Whether anything was merged.

    Raises:
        DataError: DATA-07 when the disk is full.
    """
    folders = commit_folders(registry.path)
    if len(folders) <= max_folders:
        return False
    merged = [folders.pop()]
    size = _size(merged[0])
    while folders and (len(folders) >= max_folders or _size(folders[-1]) <= size):
        merged.insert(0, folders.pop())
        size += _size(merged[0])
    first, last = commit_span(merged[0])[0], commit_span(merged[-1])[1]
    with new_folder(registry, f"{first:08d}-{last:08d}") as aside:
        for name, row in TABLES.items():
            parts = [p for folder in merged if (p := folder / f"{name}.parquet").is_file()]
            if parts:
                _concatenate(parts, aside / f"{name}.parquet", arrow_schema(row))
    return True


def _concatenate(parts: Sequence[Path], path: Path, schema: pyarrow.Schema) -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for block in blocks(parts, schema):
            writer.write_table(block)


def blocks(parts: Sequence[Path], schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    """The rows of all parts in order, in pieces of even size; absent columns are null."""
    import pyarrow.parquet

    waiting: list[pyarrow.Table] = []
    for path in parts:
        waiting.append(pyarrow.parquet.read_table(path, schema=schema))
        if sum(len(table) for table in waiting) >= _BLOCK:
            yield pyarrow.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pyarrow.concat_tables(waiting)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())

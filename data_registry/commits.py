"""Writing a registry: one writer at a time, and every change by one rename."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from core_mri.errors import DataError
from data_registry.catalogue import Registry
from data_registry.schema import TABLES, to_table
from data_registry.shards import PARTIAL, cannot_write, fsync
from data_registry.views import commit_folders, commit_span

_LOCK = ".lock"


@contextlib.contextmanager
def sole_writer(registry: Registry) -> Iterator[None]:
    """Hold the registry's lock; a dead process holds none, whatever its lock file says.

    Raises:
        DataError: DATA-08 with the id of the process that is writing; DATA-07 when the registry
            cannot be written.
    """
    import fcntl

    path = registry.path / _LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(error, f"registry {registry.path}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise DataError(
                "DATA-08",
                f"registry {registry.path} is being written by process {pid}.",
                fix="Wait until it ends, or stop it, then run the same command again.",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def sweep(registry: Registry) -> int:
    """Delete what a killed ingest left behind, shards of no commit, and commits that were merged.

    Returns:
        The number of files and folders deleted.
    """
    used = set(registry.sql("SELECT DISTINCT shard FROM all_volumes").column("shard").to_pylist())
    orphans = [p for p in _listed(registry.path / "shards") if p.name not in used]
    live = commit_folders(registry.path)
    commits = registry.path / "commits"
    orphans += [p for p in _listed(commits) if p.name[0].isdigit() and p not in live]
    for folder in (registry.path, commits):
        orphans += [p for p in _listed(folder) if p.name.startswith(PARTIAL)]
    for path in orphans:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return len(orphans)


def commit(registry: Registry, tables: Mapping[str, Sequence[object]]) -> int:
    """Add rows to the catalogue: all of them or, whatever happens, none.

    Args:
        registry: The registry, whose lock is held.
        tables: Rows by table name of `schema.TABLES`; empty tables may be left out.

    Returns:
        The number of the commit.

    Raises:
        DataError: DATA-07 when the disk is full.
    """
    folders = commit_folders(registry.path)
    number = commit_span(folders[-1])[1] + 1 if folders else 1
    with new_folder(registry, f"{number:08d}") as aside:
        write_rows(aside, tables, number)
    return number


@contextlib.contextmanager
def new_folder(registry: Registry, name: str) -> Iterator[Path]:
    """A commit folder under construction, which gets its name when all went well.

    Raises:
        DataError: DATA-07 when the disk is full.
    """
    folder = registry.path / "commits"
    aside = folder / f"{PARTIAL}{name}"
    shutil.rmtree(aside, ignore_errors=True)  # of a killed writer; ours is the lock
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in aside.iterdir():
            fsync(path)
        fsync(aside)
        aside.rename(folder / name)
        fsync(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise cannot_write(error, "the catalogue") from error


def write_rows(folder: Path, tables: Mapping[str, Sequence[object]], number: int) -> None:
    """Write the Parquet files of a commit folder; empty tables are left out."""
    import pyarrow.parquet

    for name, rows in tables.items():
        if rows:
            table = to_table(TABLES[name], rows, number)
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet", compression="zstd")


def bind_key(registry: Registry, key_check: str) -> None:
    """Note which key made the ids of a registry, at its first ingest."""
    registry.info = dataclasses.replace(registry.info, key_check=key_check)
    registry.save_info()


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []

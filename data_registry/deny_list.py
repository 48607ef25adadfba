"""Test patients that no model may be pretrained on: of a registry, or as a file without scans.

A deny list holds pseudonyms and hashes, no voxels, so that a hospital can give it to whoever
pretrains. It is one Parquet table, a row for each image volume of a test patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core_mri.errors import DataError
from data_registry.catalogue import REGISTRY_FILE, Registry
from data_registry.fingerprints import Fingerprints, load_fingerprints
from data_registry.shards import PARTIAL, cannot_write

_COLUMNS = ("volume_id", "subject_id", "pixel_hash", "index", "phash", "detail")


@dataclass(frozen=True)
class DenyList:
    """The image volumes of test patients."""

    name: str
    """Path of the registry or the file."""
    subjects: dict[str, str]
    """Volume id to pseudonym."""
    pixels: dict[str, str]
    """Volume id to `VolumeRow.pixel_hash`."""
    prints: Fingerprints
    """Hashes of their slices."""
    registry: Registry | None
    """Where their voxels are, None for a file."""


def open_deny_list(path: Path) -> DenyList:
    """The test patients of a registry, or a file of `write_deny_list`.

    Raises:
        DataError: DATA-01 when there is nothing at the path, DATA-03 when it is something else,
            DATA-08 when the registry is damaged.
    """
    if path.is_dir() and (path / REGISTRY_FILE).exists():
        return deny_list_of(Registry.open(path))
    if not path.exists():
        raise DataError("DATA-01", f"no registry and no deny list at {path}.")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path).select(list(_COLUMNS))
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        first = str(error).partition("\n")[0]
        raise DataError(
            "DATA-03",
            f"{path} is no deny list: {first}.",
            fix="Write one with `core-mri data dedupe --registry DIR --deny-list FILE`.",
        ) from error
    rows: list[dict[str, Any]] = table.to_pylist()
    lengths = [len(row["index"]) for row in rows]

    def column(name: str, dtype: type[np.generic]) -> np.ndarray:
        return np.array([value for row in rows for value in row[name]], dtype=dtype)

    prints = Fingerprints(
        tuple(row["volume_id"] for row in rows),
        np.repeat(np.arange(len(rows), dtype=np.int32), lengths),
        column("index", np.int32),
        column("phash", np.int64).view(np.uint64),
        column("detail", np.float32),
    )
    return DenyList(
        str(path),
        {row["volume_id"]: row["subject_id"] for row in rows},
        {row["volume_id"]: row["pixel_hash"] for row in rows},
        prints,
        None,
    )


def deny_list_of(registry: Registry) -> DenyList:
    """The image volumes of a registry's test patients.

    Raises:
        DataError: DATA-08 when a shard is missing or damaged.
    """
    rows = registry.volumes("role = 'image' AND split = 'test'")
    return DenyList(
        str(registry.path),
        {row.volume_id: row.subject_id for row in rows},
        {row.volume_id: row.pixel_hash for row in rows},
        load_fingerprints(registry, [row.volume_id for row in rows]),
        registry,
    )


def write_deny_list(deny: DenyList, path: Path) -> None:
    """Write a deny list aside and rename it.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    prints = deny.prints
    order = np.argsort(prints.volume, kind="stable")
    numbers = np.arange(1, len(prints.volumes))
    parts = np.split(order, np.searchsorted(prints.volume[order], numbers))
    rows = []
    for volume_id, own in zip(prints.volumes, parts, strict=False):
        rows.append(
            {
                "volume_id": volume_id,
                "subject_id": deny.subjects[volume_id],
                "pixel_hash": deny.pixels[volume_id],
                "index": prints.index[own].tolist(),
                "phash": prints.hashes[own].view(np.int64).tolist(),
                "detail": prints.detail[own].tolist(),
            }
        )
    schema = pyarrow.schema(
        [(name, pyarrow.string()) for name in _COLUMNS[:3]]
        + [("index", pyarrow.list_(pyarrow.int32())), ("phash", pyarrow.list_(pyarrow.int64()))]
        + [("detail", pyarrow.list_(pyarrow.float32()))]
    )
    aside = path.with_name(f"{PARTIAL}{path.name}")
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), aside)
        aside.rename(path)
    except OSError as error:
        raise cannot_write(error, f"deny list {path}") from error

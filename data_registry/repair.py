"""Finding what disks and people did to shards, and giving up exactly what is lost.

A shard whose SHA-256 is that of the catalogue is intact. In any other one each volume is judged
alone: it stays when every slice has its CRC-32 and the voxels have their hash. Raw data is lost
with its shard's hash, as its header stands in the shard alone. Nothing is guessed or patched: lost
volumes are retired and their files marked, so that the next ingest reads them again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from core_mri.errors import DataError
from data_registry.commits import commit, sole_writer
from data_registry.governance.audit_log import recorded
from data_registry.schema import FileRow, RetiredRow, VolumeRow, from_table
from data_registry.shards import file_hash
from data_registry.slice_reader import SlicePlace, SliceReader

if TYPE_CHECKING:
    from data_registry.catalogue import Registry

LOST = "DATA-20"
"""Code of files whose volume was lost; see `core_mri.errors`."""
logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RepairReport:
    """What was found; volumes are lost already, whether they were retired or not."""

    shards: int = 0
    """Shards that hold volumes."""
    intact: int = 0
    """Shards with the hash that they were written with."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Shard -> missing, or altered."""
    lost: dict[str, str] = field(default_factory=dict)
    """Volume id -> its shard."""
    kept: int = 0
    """Volumes of altered shards that are whole."""
    files_to_read: int = 0
    """Files that the next ingest reads again."""

    def to_mapping(self) -> dict[str, object]:
        """For JSON."""
        return dataclasses.asdict(self)


def repair(
    registry: Registry,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Read all shards, and retire the volumes that are lost.

    Args:
        registry: The registry.
        dry_run: Only tell.
        on_progress: Called with shards read and shards in all.

    Raises:
        DataError: DATA-07 when the catalogue cannot be written, DATA-08 when it is damaged itself
            or another process is writing.
    """
    if dry_run:
        return _check(registry, on_progress)
    with sole_writer(registry), recorded(registry.path, "repair") as what:
        report = _check(registry, on_progress)
        what |= {"shards_damaged": len(report.damaged), "volumes_lost": len(report.lost)}
        if report.lost:
            files = _files_of(registry, report.lost)
            report.files_to_read = len(files)
            retired = [RetiredRow(volume_id=volume_id) for volume_id in report.lost]
            commit(registry, {"retired": retired, "files": files})
    return report


def _check(registry: Registry, on_progress: Callable[[int, int], None] | None) -> RepairReport:
    shards = list(
        registry.rows(
            "SELECT DISTINCT shard, size, sha256 FROM shards "
            "WHERE shard IN (SELECT shard FROM volumes) ORDER BY shard"
        )
    )
    report = RepairReport(shards=len(shards))
    for number, (shard, size, sha256) in enumerate(shards, start=1):
        path = registry.path / "shards" / shard
        if path.is_file() and path.stat().st_size == size and file_hash(path) == sha256:
            report.intact += 1
        else:
            _judge(registry, shard, report, missing=not path.is_file())
        if on_progress is not None:
            on_progress(number, len(shards))
    return report


def _judge(registry: Registry, shard: str, report: RepairReport, *, missing: bool) -> None:
    report.damaged[shard] = "missing" if missing else "altered"
    logger.warning("shard %s is %s", shard, report.damaged[shard])
    for row in registry.volumes("shard = ?", [shard]):
        if missing or row.role == "kspace" or not _is_whole(registry, row):
            report.lost[row.volume_id] = shard
        else:
            report.kept += 1


def _is_whole(registry: Registry, row: VolumeRow) -> bool:
    """Whether all slices have their checksums, and the voxels their hash."""
    from data_registry.storing import PixelHash

    reader = SliceReader(registry.path / "shards")
    slices = registry.sql(
        "SELECT byte_start, num_bytes, checksum FROM slices WHERE volume_id = ?", [row.volume_id]
    )
    shape, dtype = (row.rows, row.columns), np.dtype(row.payload)
    for stored in slices.to_pylist():
        place = SlicePlace(row.shard, **stored, codec=row.codec, shape=shape, dtype=dtype)
        if reader.checksum(place) != stored["checksum"]:
            return False
    try:
        voxels = registry.read(row).array
    except DataError:
        return False
    digest = PixelHash(voxels.dtype, voxels.shape)
    digest.add(voxels)
    return digest.text() == row.pixel_hash


def _files_of(registry: Registry, lost: dict[str, str]) -> list[FileRow]:
    """The files of lost volumes as if they had changed, in quarantine until they are read."""
    units = {
        (row.source, row.series_id)
        for row in registry.volumes("list_contains(?, volume_id)", [list(lost)])
    }
    rows: list[FileRow] = []
    for source, unit in sorted(units):
        table = registry.sql("SELECT * FROM files WHERE source = ? AND unit_id = ?", [source, unit])
        rows += from_table(FileRow, table)
    return [dataclasses.replace(row, mtime_ns=-1, code=LOST) for row in rows]

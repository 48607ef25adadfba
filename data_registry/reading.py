"""One batch of units, from files to a shard: read, check, label, de-identify, store.

Runs in worker processes. Nothing leaves a worker that names a patient, except the messages of
failures, which the caller writes to the private log only.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from core_mri.errors import CoreMRIError
from core_mri.volume import Volume
from data_registry.batches import Batch, BatchResult, Failure, UnitResult
from data_registry.catalogue import Registry
from data_registry.import_bids import bids_facts
from data_registry.inventory import Unit
from data_registry.raw_data import store_kspace
from data_registry.schema import ShardRow
from data_registry.shards import ShardWriter, StoredSlice
from data_registry.storing import store_volume
from data_registry.worker_pool import stopping

if TYPE_CHECKING:
    from core_mri.files.dicom import SeriesFiles

T = TypeVar("T")
logger = logging.getLogger(__name__)


def read_batch(batch: Batch) -> BatchResult:
    """Read all units of a batch and store what is new in one shard.

    Raises:
        DataError: DATA-07 when the disk is full; then no shard is left behind.
        KeyboardInterrupt: When the ingest was interrupted meanwhile.
    """
    registry = Registry.open(batch.registry)
    ids = set(registry.sql("SELECT volume_id FROM volumes").column("volume_id").to_pylist())
    shard = f"{uuid.uuid4().hex[:16]}.h5"
    folder = batch.registry / "shards"
    results: list[UnitResult] = []
    with ShardWriter(folder, shard, batch.codec) as writer:
        for unit in batch.units:
            if stopping():
                raise KeyboardInterrupt
            result = UnitResult(unit)
            results.append(result)
            for store, files in _scans(result, batch, ids, writer):
                failure = _attempt(store, files, unit)
                if failure is not None:
                    result.failures.append(failure)
        finished = writer.finish()
    if finished is None:
        return BatchResult(None, results)
    for result in results:
        _place(result, finished.places)
    return BatchResult(ShardRow(shard=shard, size=finished.size, sha256=finished.sha256), results)


def _scans(
    result: UnitResult, batch: Batch, ids: set[str], writer: ShardWriter
) -> Iterator[tuple[Callable[[], None], list[Path]]]:
    """What reads and stores each scan of a unit, with its files; the rest is noted as failed."""
    unit = result.unit
    paths = [file.path for file in unit.files]
    lead, source = unit.files[0], unit.source

    def store(read: Callable[[], Volume]) -> Callable[[], None]:
        return lambda: store_volume(read(), result, batch, ids, writer)

    if unit.kind == "kspace":
        yield lambda: store_kspace(lead.path, result, batch, ids, writer), paths
        return
    if unit.kind != "dicom":
        from core_mri.files.scans import read_volume

        def read_image() -> Volume:
            volume = read_volume(
                paths if unit.kind == "stack" else lead.path,
                kind=source.voxels_of(lead.relative),
                spacing_mm=source.declared_spacing_mm,
            )
            if not source.bids:
                return volume
            said = bids_facts(source.folder(), lead.path)
            return dataclasses.replace(volume, facts={**volume.facts, **said})

        yield store(read_image), paths
        return
    from core_mri.files.dicom import group_series, read_series
    from core_mri.files.segmentation import is_segmentation, read_segmentation

    scan = group_series(paths)
    for path, error in scan.rejected:
        if is_segmentation(path):
            yield store(functools.partial(read_segmentation, path)), [path]
        else:
            result.failures.append(Failure(error.code, str(error), (path,)))
    role: Literal["image", "label"] = "label" if source.role == "label" else "image"
    for series in scan.series:

        def read(series: SeriesFiles = series) -> Volume:
            return dataclasses.replace(read_series(series), kind=role)

        yield store(read), list(series.files)


def _attempt(action: Callable[[], T], paths: list[Path], unit: Unit) -> T | Failure:
    """The action's answer, or why one scan failed; other scans must not suffer for it."""
    try:
        return action()
    except CoreMRIError as error:
        if error.code == "DATA-07":
            raise
        return Failure(error.code, str(error), tuple(paths))
    except Exception as error:
        name = type(error).__name__
        logger.warning("%s: unexpected %s while reading, in quarantine", unit.unit_id, name)
        return Failure("DATA-02", f"{name}: {error}", tuple(paths))


def _place(result: UnitResult, places: dict[str, list[StoredSlice]]) -> None:
    """Note where each slice lies in the finished shard."""
    dataset = {row.volume_id: row.dataset for row in result.volumes}
    result.slices = [
        dataclasses.replace(row, **vars(places[dataset[row.volume_id]][row.index]))
        for row in result.slices
    ]

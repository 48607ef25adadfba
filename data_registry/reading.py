"""One batch of units, from files to a shard: read, check, label, de-identify, store.

Runs in worker processes. Nothing leaves a worker that names a patient, except the messages of
failures, which the caller writes to the private log only.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from core_mri.errors import CoreMRIError, DataError
from core_mri.preprocess import percentile_window
from core_mri.volume import SLICE_ORIENTATION, Volume
from data_registry.catalogue import Registry
from data_registry.checks import check_volume
from data_registry.deidentify.facts import deidentify_facts
from data_registry.deidentify.identifiers import keyed_uid, pseudonym
from data_registry.inventory import Unit
from data_registry.labels import label_volume
from data_registry.schema import FileRow, SliceRow, VolumeRow
from data_registry.shards import Array, Compression, ShardWriter, StoredSlice
from data_registry.splits import Fractions, split_of
from data_registry.worker_pool import stopping

FOREGROUND_LEVEL = 0.1
"""Voxels above this part of the volume's intensity window count as foreground."""

MIN_FOREGROUND = 0.02
"""Slices with less foreground count as air in `VolumeRow.num_foreground_slices`."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Units that one worker reads into one shard."""

    registry: Path
    key: bytes
    fractions: Fractions
    compression: Compression
    max_frames: int
    units: tuple[Unit, ...]

    def single_units(self) -> list[Batch]:
        """The same work, one unit at a time."""
        return [dataclasses.replace(self, units=(unit,)) for unit in self.units]


@dataclass(frozen=True)
class Failure:
    """Why files of a unit were not stored."""

    code: str
    message: str
    """For the private log: it may name files and values."""
    paths: tuple[Path, ...]


@dataclass
class UnitResult:
    """What became of one unit."""

    unit: Unit
    volumes: list[VolumeRow] = field(default_factory=list)
    """New volumes; their split is a proposal, the ledger has the last word."""
    slices: list[SliceRow] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    """Ids of volumes that the registry has already, from these or other files."""
    failures: list[Failure] = field(default_factory=list)

    def files(self) -> list[FileRow]:
        """The ledger rows of the unit, with the codes of its failures."""
        codes = {path: failure.code for failure in self.failures for path in failure.paths}
        return [
            dataclasses.replace(file.row, code=codes.get(file.path, "")) for file in self.unit.files
        ]


@dataclass(frozen=True)
class BatchResult:
    """The units of a batch, in order, and the shard that holds their new volumes ("" for none)."""

    shard: str
    units: list[UnitResult]


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
    with ShardWriter(folder, shard, batch.compression) as writer:
        for unit in batch.units:
            if stopping():
                raise KeyboardInterrupt
            result = UnitResult(unit)
            results.append(result)
            for volume, files in _volumes(result):
                store = functools.partial(_store, volume, result, batch, ids, writer)
                failure = _attempt(store, files, unit)
                if failure is not None:
                    result.failures.append(failure)
        places = writer.finish()
    for result in results:
        _place(result, places)
    return BatchResult(shard if places else "", results)


def _volumes(result: UnitResult) -> Iterator[tuple[Volume, list[Path]]]:
    """Volumes of a unit with their files; failures are noted in the result."""
    unit = result.unit
    paths = [file.path for file in unit.files]
    if unit.kind == "nifti":
        from core_mri.files.nifti import read_nifti

        role = unit.source.role_of(unit.files[0].relative)
        volume = _attempt(lambda: read_nifti(paths[0], kind=role), paths, unit)
        if isinstance(volume, Failure):
            result.failures.append(volume)
        else:
            yield volume, paths
        return
    from core_mri.files.dicom import group_series, read_series

    scan = group_series(paths)
    for path, error in scan.rejected:
        result.failures.append(Failure(error.code, str(error), (path,)))
    role = "label" if unit.source.role == "label" else "image"
    for series in scan.series:
        files = list(series.files)
        volume = _attempt(functools.partial(read_series, series), files, unit)
        if isinstance(volume, Failure):
            result.failures.append(volume)
        else:
            yield dataclasses.replace(volume, kind=role), files


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


def _store(
    volume: Volume, result: UnitResult, batch: Batch, ids: set[str], writer: ShardWriter
) -> None:
    """Check one volume and add it, or each frame of a 4D one, to shard and result."""
    source = result.unit.source
    allowed = {0, *source.label_values} if source.label_values else None
    if volume.kind == "label":
        volume = volume.with_array(_whole_numbers(volume.array))
    check_volume(volume, allowed_labels=allowed if volume.kind == "label" else None)
    volume = volume.reorient(SLICE_ORIENTATION[volume.plane])
    common = _describe(volume, result.unit, batch)
    for frame, array in _frames(volume.array, batch.max_frames):
        stored = np.ascontiguousarray(array, dtype=_stored_dtype(array.dtype))
        row = _row(stored, volume, common, frame)
        if row.volume_id in ids:
            result.known.append(row.volume_id)
            continue
        level = 0.0
        if row.role == "image":
            low, high = percentile_window(stored, 0.5, 99.5)
            level = low + FOREGROUND_LEVEL * (high - low)
            row = dataclasses.replace(row, window_low=low, window_high=high)
        foreground = (stored > level).mean(axis=(1, 2))
        row = dataclasses.replace(
            row,
            shard=writer.path.name,
            num_foreground_slices=int((foreground >= MIN_FOREGROUND).sum()),
        )
        writer.add(row.dataset, stored, volume.affine)
        ids.add(row.volume_id)
        result.volumes.append(row)
        result.slices += [
            SliceRow(
                volume_id=row.volume_id,
                index=index,
                foreground=float(fraction),
                byte_start=0,
                num_bytes=0,
            )
            for index, fraction in enumerate(foreground)
        ]


def _describe(volume: Volume, unit: Unit, batch: Batch) -> dict[str, object]:
    """What all frames of a volume have in common, as fields of `VolumeRow`."""
    source, key = unit.source, batch.key
    relative = unit.files[0].relative
    hints = {"region": source.region, "sequence": source.sequence, "path": relative}
    labels = dataclasses.asdict(label_volume(volume.facts, volume, hints))
    subject = pseudonym(key, "subject", *source.subject_of(relative, volume.facts))
    study = str(volume.facts.get("StudyInstanceUID", ""))
    facts: dict[str, object] = dict(deidentify_facts(volume.facts, key))
    facts.pop("PatientID", None)  # `subject_id` is the one id of the patient
    if volume.kind == "label" and source.label_values:
        facts["LabelNames"] = ";".join(f"{v}={n}" for v, n in sorted(source.label_values.items()))
    return {
        **labels,
        "plane": volume.plane,
        "subject_id": subject,
        "study_id": keyed_uid(key, study) if study else "",
        "series_id": unit.unit_id,
        "source": source.name,
        "licence": source.licence,
        "role": volume.kind,
        "synthetic": source.synthetic,
        "split": split_of(key, subject, batch.fractions),
        "facts": json.dumps(facts, sort_keys=True),
    }


def _row(stored: Array, volume: Volume, common: dict[str, object], frame: int | None) -> VolumeRow:
    """The row of one stored array; shard, window and foreground follow."""
    affine = np.round(volume.affine, 6) + 0.0  # + 0.0 turns -0 into 0
    spacing = volume.spacing_mm
    shape = ",".join(map(str, stored.shape))
    pixels = _hash(stored.dtype.str.encode(), shape.encode(), stored.tobytes())
    geometry = np.round(volume.affine, 3) + 0.0
    grid = _hash(shape.encode(), geometry.tobytes())
    identity = (common["subject_id"], common["role"], pixels, grid)
    volume_id = "V" + _hash(*(str(part).encode() for part in identity))
    fields = {
        **common,
        "volume_id": volume_id,
        "shard": "",
        "dataset": volume_id if frame is None else f"{volume_id}-f{frame:04d}",
        "num_slices": stored.shape[0],
        "rows": stored.shape[1],
        "columns": stored.shape[2],
        "dtype": stored.dtype.name,
        "affine": tuple(float(x) for x in affine.ravel()),
        "spacing_mm": tuple(round(float(x), 6) for x in spacing),
        "grid": grid,
        "window_low": 0.0,
        "window_high": float(stored.max()),
        "pixel_hash": pixels,
        "num_foreground_slices": 0,
    }
    return VolumeRow(**fields)


def _frames(array: Array, max_frames: int) -> Iterator[tuple[int | None, Array]]:
    """A 3D array, or at most `max_frames` frames of a 4D one, evenly spread; constant ones not."""
    if array.ndim == 3:
        yield None, array
        return
    num_frames = array.shape[3]
    chosen = np.unique(np.linspace(0, num_frames - 1, min(num_frames, max_frames)).round())
    for frame in chosen.astype(int):
        voxels = array[..., frame]
        if num_frames == 1 or (voxels != voxels.flat[0]).any():
            yield int(frame), voxels


def _stored_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """Integers as they are, in native byte order; floating point as float32.

    Raises:
        DataError: DATA-10 for complex and color voxels.
    """
    if dtype.kind in "iu":
        return dtype.newbyteorder("=")
    if dtype.kind in "bf":
        return np.dtype(np.uint8 if dtype.kind == "b" else np.float32)
    raise DataError("DATA-10", f"voxels of type {dtype} cannot be stored; real numbers can.")


def _whole_numbers(array: Array) -> Array:
    """Label values as integers of the smallest type.

    Raises:
        DataError: DATA-06 when a value is no integer.
    """
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind != "f" or not np.array_equal(array, np.rint(array)):
        raise DataError("DATA-06", f"a label map of type {array.dtype} holds other than integers.")
    low, high = array.min(), array.max()
    dtype = np.result_type(np.min_scalar_type(int(low)), np.min_scalar_type(int(high)))
    return array.astype(dtype)


def _place(result: UnitResult, places: dict[str, list[StoredSlice]]) -> None:
    """Note where each slice lies in the finished shard."""
    dataset = {row.volume_id: row.dataset for row in result.volumes}
    result.slices = [
        dataclasses.replace(
            row,
            byte_start=places[dataset[row.volume_id]][row.index].byte_start,
            num_bytes=places[dataset[row.volume_id]][row.index].num_bytes,
        )
        for row in result.slices
    ]


def _hash(*parts: bytes) -> str:
    """26 base-32 characters (128 bits) of BLAKE2b over length-prefixed parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return base64.b32encode(digest.digest()).decode("ascii").rstrip("=")

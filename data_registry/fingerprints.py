"""Perceptual hashes of the slices of a registry, made once for each volume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

from data_registry.catalogue import Registry
from data_registry.commits import commit, sole_writer
from data_registry.perceptual_hash import Hashes, slice_hashes
from data_registry.schema import FingerprintRow, VolumeRow
from data_registry.slices import windowed

_PER_COMMIT = 2000
_UNHASHED = "role = 'image' AND volume_id NOT IN (SELECT volume_id FROM fingerprints)"


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fingerprints:
    """The hashes of many slices, as columns of one length."""

    volumes: tuple[str, ...]
    """Ids of the volumes."""
    volume: npt.NDArray[np.int32]
    """Position in `volumes`."""
    index: npt.NDArray[np.int32]
    """0-based slice in its volume."""
    hashes: Hashes
    detail: npt.NDArray[np.float32]


def fingerprint(
    registry: Registry,
    *,
    jobs: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Hash the image volumes that have none yet; interrupted, the next call goes on.

    Returns:
        The number of volumes hashed.

    Raises:
        DataError: DATA-07 when the disk is full, DATA-08 when another process is writing or a
            shard is damaged.
    """
    with sole_writer(registry):
        rows = registry.volumes(_UNHASHED)
        for start in range(0, len(rows), _PER_COMMIT):
            part = rows[start : start + _PER_COMMIT]
            commit(registry, {"fingerprints": _hash_all(registry, part, jobs)})
            if on_progress is not None:
                on_progress(start + len(part), len(rows))
    return len(rows)


def load_fingerprints(registry: Registry, volume_ids: Sequence[str]) -> Fingerprints:
    """Hashes of the slices of image volumes; those that are not kept yet are made, and not kept.

    Args:
        registry: The registry.
        volume_ids: Of image volumes in it.

    Raises:
        DataError: DATA-08 when a shard is missing or damaged.
    """
    table = registry.sql(
        'SELECT volume_id, "index" AS position, phash, detail FROM fingerprints '
        "WHERE volume_id IN (SELECT unnest(?)) ORDER BY volume_id, position",
        [list(volume_ids)],
    )
    column = table.column("volume_id").combine_chunks().dictionary_encode()
    names = column.dictionary.to_pylist()
    kept = Fingerprints(
        tuple(names),
        column.indices.to_numpy().astype(np.int32),
        table.column("position").to_numpy().astype(np.int32),
        table.column("phash").to_numpy().astype(np.int64).view(np.uint64),
        table.column("detail").to_numpy().astype(np.float32),
    )
    missing = sorted(set(volume_ids) - set(names))
    if not missing:
        return kept
    log.info("hashing %d volumes that `core-mri data dedupe` has not seen", len(missing))
    rows = registry.volumes("volume_id IN (SELECT unnest(?))", [missing])
    return joined(kept, _columns(_hash_all(registry, rows, 1)))


def joined(first: Fingerprints, second: Fingerprints) -> Fingerprints:
    """Both, one behind the other; the volumes of the second are numbered on."""
    return Fingerprints(
        first.volumes + second.volumes,
        np.concatenate([first.volume, second.volume + np.int32(len(first.volumes))]),
        np.concatenate([first.index, second.index]),
        np.concatenate([first.hashes, second.hashes]),
        np.concatenate([first.detail, second.detail]),
    )


def _columns(rows: Sequence[FingerprintRow]) -> Fingerprints:
    names = {name: i for i, name in enumerate(dict.fromkeys(row.volume_id for row in rows))}
    return Fingerprints(
        tuple(names),
        np.array([names[row.volume_id] for row in rows], dtype=np.int32),
        np.array([row.index for row in rows], dtype=np.int32),
        np.array([row.phash for row in rows], dtype=np.int64).view(np.uint64),
        np.array([row.detail for row in rows], dtype=np.float32),
    )


def _hash_all(registry: Registry, rows: Sequence[VolumeRow], jobs: int) -> list[FingerprintRow]:
    work = [(registry, row) for row in rows]
    if jobs == 1 or len(work) < 2:
        parts: Iterable[list[FingerprintRow]] = map(_hash_volume, work)
        return [row for part in parts for row in part]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [row for part in pool.map(_hash_volume, work, chunksize=16) for row in part]


def _hash_volume(work: tuple[Registry, VolumeRow]) -> list[FingerprintRow]:
    registry, row = work
    voxels = registry.read(row).array
    hashes, detail = slice_hashes(windowed(voxels, row.window_low, row.window_high))
    return [
        FingerprintRow(volume_id=row.volume_id, index=i, phash=int(h), detail=float(d))
        for i, (h, d) in enumerate(zip(hashes.view(np.int64), detail, strict=True))
    ]

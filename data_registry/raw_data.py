"""Raw data (k-space) to shards and back: streamed slice by slice, with its header and its target.

A volume of raw data is one dataset ``(slices, coils, readout, phase)`` of complex64, a chunk a
slice. Beside the voxels stand, as attributes, the technical header (`KSpaceHeader`, its facts
de-identified) and the mask of acquired lines; a reference image that came with the file (fastMRI's
``reconstruction_rss``) is a second dataset, ``NAME-target``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.volume import Volume
from data_registry.batches import Batch, UnitResult
from data_registry.schema import VolumeRow
from data_registry.shards import Array, ShardReader, ShardWriter
from data_registry.storing import PixelHash, describe, make_row, slice_rows

if TYPE_CHECKING:
    from core_mri.files.kspace import KSpace

_PENDING = "pending"
_TARGET = "-target"


def store_kspace(
    path: Path, result: UnitResult, batch: Batch, ids: set[str], writer: ShardWriter
) -> None:
    """Add the raw data of one file to shard and result; one slice is in memory at a time.

    Repetitions, contrasts and phases become volumes of their own, at most ``batch.max_frames`` of
    them, evenly spread.

    Args:
        path: The file, or the one that leads.
        result: Of its unit; rows and known ids are added.
        batch: Key and options.
        ids: Volumes that the registry and the shard have already; new ones are added.
        writer: The shard.

    Raises:
        DataError: What `core_mri.files.read_kspace` raises, DATA-04 for samples that are not
            finite, DATA-05 when all are zero, DATA-14 for other than Cartesian sampling.
    """
    from core_mri.files.kspace import image_affine, read_kspace

    if result.unit.source.role == "label":
        raise DataError("DATA-03", f"{path}: raw data, in a source of labels.")
    with read_kspace(path) as kspace:
        if kspace.header.trajectory != "cartesian":
            raise DataError(
                "DATA-14",
                f"{path}: the trajectory is {kspace.header.trajectory}, raw data is stored when "
                "it is Cartesian.",
            )
        affine, stated = image_affine(kspace.header, kspace.shape)
        facts = {
            **kspace.header.facts,
            **({} if stated else {"assumed_geometry": True}),
        }
        grid = np.broadcast_to(np.float32(0), (kspace.shape[0], *kspace.shape[2:]))
        common = describe(Volume(grid, affine, facts=facts), result.unit, batch)
        common["role"] = "kspace"
        clean = json.loads(str(common["facts"])) | {
            "NumberOfCoils": kspace.shape[1], "RawLayout": kspace.layout
        }  # fmt: skip
        common["facts"] = json.dumps(clean, sort_keys=True)
        header = dataclasses.replace(kspace.header, facts=clean)
        chosen = np.linspace(0, kspace.num_volumes - 1, min(kspace.num_volumes, batch.max_frames))
        for number in np.unique(chosen.round()).astype(int):
            frame = None if kspace.num_volumes == 1 else int(number)
            pixels, peak = _stream(path, kspace, int(number), writer)
            dtype = np.dtype(np.complex64)
            row = make_row(dtype, kspace.shape, affine, common, pixels, frame)
            if row.volume_id in ids:
                writer.discard(_PENDING)
                result.known.append(row.volume_id)
                continue
            row = dataclasses.replace(
                row,
                shard=writer.path.name,
                codec=writer.codec,
                window_high=peak,
                num_foreground_slices=row.num_slices,
            )
            mask = kspace.mask(int(number))
            writer.name(
                _PENDING,
                row.dataset,
                {"affine": affine, "header": json.dumps(header.to_mapping(), sort_keys=True)}
                | ({} if mask is None else {"mask": mask}),
            )
            target = kspace.target(0)
            if target is not None:
                writer.stream(
                    f"{row.dataset}{_TARGET}",
                    (kspace.shape[0], *target.shape),
                    np.dtype(np.float32),
                    _targets(kspace),
                )
            ids.add(row.volume_id)
            result.volumes.append(row)
            result.slices += slice_rows(row.volume_id, [1.0] * row.num_slices)


def open_kspace(shards: ShardReader, row: VolumeRow) -> KSpace:
    """Stored raw data, to be read slice by slice.

    Args:
        shards: Of the registry.
        row: A volume of role ``kspace``.

    Raises:
        DataError: DATA-08 when its shard is missing or damaged.
    """
    from core_mri.files.kspace import KSpace, KSpaceHeader

    num_coils = shards.shape(row.shard, row.dataset)[1]
    attributes = shards.attributes(row.shard, row.dataset)
    target_name = f"{row.dataset}{_TARGET}"
    has_target = shards.has(row.shard, target_name)
    mask = attributes.get("mask")

    def target(index: int) -> npt.NDArray[np.float32]:
        return shards.read_slice(row.shard, target_name, index).astype(np.float32, copy=False)

    def read_slice(index: int) -> npt.NDArray[np.complex64]:
        stored = shards.read_slice(row.shard, row.dataset, index)
        return stored.astype(np.complex64, copy=False)

    return KSpace.from_slices(
        header=KSpaceHeader.from_mapping(json.loads(str(attributes["header"]))),
        shape=(row.num_slices, num_coils, row.rows, row.columns),
        read_slice=read_slice,
        mask=None if mask is None else np.asarray(mask, dtype=bool),
        target=target if has_target else None,
    )


def _stream(path: Path, kspace: KSpace, number: int, writer: ShardWriter) -> tuple[str, float]:
    """Write one volume under a pending name; its hash and the largest magnitude.

    Raises:
        DataError: DATA-04, DATA-05; then nothing of it stays in the shard.
    """
    digest = PixelHash(np.dtype(np.complex64), kspace.shape)
    peak = 0.0

    def slices() -> Iterator[Array]:
        nonlocal peak
        for index in range(kspace.shape[0]):
            samples = kspace.read_slice(index, number)
            if not np.isfinite(samples).all():
                raise DataError(
                    "DATA-04", f"{path}: slice {index} has samples that are not finite."
                )
            peak = max(peak, float(np.abs(samples).max()))
            digest.add(samples)
            yield samples

    try:
        writer.stream(_PENDING, kspace.shape, np.dtype(np.complex64), slices())
        if peak == 0:
            raise DataError("DATA-05", f"{path}: all samples are zero.")
    except BaseException:
        writer.discard(_PENDING)
        raise
    return digest.text(), peak


def _targets(kspace: KSpace) -> Iterator[Array]:
    for index in range(kspace.shape[0]):
        image = kspace.target(index)
        if image is not None:
            yield image.astype(np.float32, copy=False)

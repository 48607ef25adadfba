"""Volumes to shards and rows: checked, described, de-identified, named by their content."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.off_distribution import FOREGROUND_LEVEL, MIN_FOREGROUND
from core_mri.preprocess import percentiles
from core_mri.volume import SLICE_ORIENTATION, Volume
from data_registry.batches import Batch, UnitResult
from data_registry.checks import check_volume
from data_registry.deidentify.facts import deidentify_facts
from data_registry.deidentify.identifiers import keyed_uid, pseudonym
from data_registry.governance.withdrawals import refuse
from data_registry.import_bids import bids_hints
from data_registry.inventory import Unit
from data_registry.label_words import UNKNOWN, find_sequence
from data_registry.labels import label_volume
from data_registry.payloads import pack, unpack
from data_registry.schema import (
    CHANNEL,
    GENERATED,
    LABEL_NAMES,
    LABEL_REGIONS,
    LABEL_VALUES,
    PAIR_NAME,
    PERCENTILES,
    UNKNOWN_SPACING,
    SliceRow,
    VolumeRow,
)
from data_registry.shards import Array, ShardWriter
from data_registry.source_list import Source
from data_registry.splits import split_of, split_outside_test


def store_volume(
    volume: Volume, result: UnitResult, batch: Batch, ids: set[str], writer: ShardWriter
) -> None:
    """Check one volume and add it, or each frame of a 4D one, to shard and result.

    Args:
        volume: As read.
        result: Of its unit; rows and known ids are added.
        batch: Key and options.
        ids: Volumes that the registry and the shard have already; new ones are added.
        writer: The shard.

    Raises:
        DataError: What `check_volume` raises, DATA-06 and DATA-10 for voxels of another type,
            DATA-22 when the patient was withdrawn, DATA-29 when the frames are not those of a list.
        GeometryError: As `check_volume`.
    """
    source = result.unit.source
    allowed = {0, *source.label_values} if source.label_values else None
    if volume.kind == "label":
        volume = volume.with_array(_whole_numbers(volume.array))
    check_volume(volume, allowed_labels=allowed if volume.kind == "label" else None)
    volume = volume.reorient(SLICE_ORIENTATION[volume.plane])
    channels = _channels(volume, result.unit)
    told = {}
    if volume.kind == "label":
        values = np.unique(volume.array).tolist()
        told[LABEL_VALUES] = ";".join(str(value) for value in values if value)
    common = describe(volume, result.unit, batch, told)
    for frame, array in _frames(volume.array, max(batch.max_frames, len(channels))):
        if channels:
            channel = channels[frame or 0]
            common = describe(volume, result.unit, batch, {CHANNEL: channel})
        stored = np.ascontiguousarray(array, dtype=_stored_dtype(array.dtype))
        pixels = PixelHash(stored.dtype, stored.shape)
        pixels.add(stored)
        row = make_row(stored.dtype, stored.shape, volume.affine, common, pixels.text(), frame)
        if row.volume_id in ids:
            result.known.append(row.volume_id)
            continue
        payload = pack(stored)
        row = dataclasses.replace(
            row,
            shard=writer.path.name,
            codec=writer.codec,
            payload=payload.array.dtype.name,
            scale=payload.scale,
        )
        row, foreground = measure(row, payload.array)
        writer.add(row.dataset, payload.array, volume.affine)
        ids.add(row.volume_id)
        result.volumes.append(row)
        result.slices += slice_rows(row.volume_id, foreground)


def measure(row: VolumeRow, payload: Array) -> tuple[VolumeRow, npt.NDArray[np.float64]]:
    """The row of an image or label map with its intensities, and the foreground of each slice."""

    def decode(values: Array) -> Array:
        return unpack(values, row.dtype, row.scale)

    low, high, *others = percentiles(payload, (0.5, 99.5, *PERCENTILES), decode)
    level = 0.0
    if row.role == "label" or low >= high:
        low, high = (0.0 if row.role == "label" else others[0]), others[-1]
    if row.role == "image":
        level = low + FOREGROUND_LEVEL * (high - low)
    foreground = np.array([np.greater(decode(part), level).mean() for part in payload])
    return dataclasses.replace(
        row,
        window_low=low,
        window_high=high,
        percentiles=tuple(others),
        num_foreground_slices=int((foreground >= MIN_FOREGROUND).sum()),
    ), foreground


def slice_rows(volume_id: str, foreground: Iterable[float]) -> list[SliceRow]:
    """The slices of a volume, before their shard is finished and tells where they lie."""
    return [
        SliceRow(
            volume_id=volume_id,
            index=index,
            foreground=float(fraction),
            byte_start=0,
            num_bytes=0,
            checksum=0,
        )
        for index, fraction in enumerate(foreground)
    ]


def describe(
    volume: Volume, unit: Unit, batch: Batch, told: Mapping[str, str] | None = None
) -> dict[str, object]:
    """What all frames of a volume have in common, as fields of `VolumeRow`.

    Args:
        volume: Facts, geometry and role; its voxels are not looked at.
        unit: Where it came from.
        batch: Key and split fractions.
        told: Further facts to store; a `CHANNEL` that names a sequence also says which it is.

    Raises:
        DataError: DATA-22 when the patient was withdrawn.
    """
    source, key = unit.source, batch.key
    relative = unit.files[0].relative
    told = told or {}
    channel = told.get(CHANNEL, "")
    named = channel if find_sequence([channel]) != UNKNOWN else ""
    hints = {"region": source.region, "sequence": source.sequence or named, "path": relative}
    if source.bids:
        stated = {kind: name for kind, name in hints.items() if name}
        hints = {**bids_hints(relative, volume.facts), **stated}
    labels = dataclasses.asdict(label_volume(volume.facts, volume, hints))
    namespace, patient = source.subject_of(relative, volume.facts)
    subject = pseudonym(key, "subject", namespace, patient)
    for name in (subject, patient):  # in an export of a registry the pseudonym is the id
        refuse(name, batch.withdrawn)
    study = str(volume.facts.get("StudyInstanceUID", ""))
    facts: dict[str, object] = dict(deidentify_facts(volume.facts, key))
    facts.pop("PatientID", None)  # `subject_id` is the one id of the patient
    if volume.facts.get("assumed_geometry"):
        facts["AssumedGeometry"] = True
    pair = source.pair_of(relative)
    if source.unknown_spacing and volume.facts.get("assumed_geometry"):
        facts[UNKNOWN_SPACING] = True
    spacing = source.declared_spacing_mm
    if not pair and unit.kind == "image" and volume.shape[:3].count(1) and spacing is not None:
        # All pictures of a source lie at one made-up place: their names tell which label is whose.
        pair = unit.files[0].path.stem
    if pair:
        facts[PAIR_NAME] = pseudonym(key, "name", source.namespace, pair)
    if volume.kind == "label":
        facts |= _label_facts(source, volume)
    facts |= told
    official = "train" if source.generated else source.split_of(relative)
    if source.generated:
        listed = source.listing_of(relative)
        facts[GENERATED] = ";".join(listed.generated_from if listed else ())
    hashed = split_outside_test if official == "not-test" else split_of
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
        "split": official
        if official in ("train", "val", "test")
        else hashed(key, subject, batch.fractions),
        "facts": json.dumps(facts, sort_keys=True),
    }


def _channels(volume: Volume, unit: Unit) -> tuple[str, ...]:
    """Name of each frame, where a list tells.

    Raises:
        DataError: DATA-29 when there are more or fewer frames.
    """
    if volume.kind == "label":
        return ()
    listed = unit.source.listing_of(unit.files[0].relative)
    channels = listed.channels if listed else unit.source.channels
    frames = volume.shape[3] if len(volume.shape) == 4 else 1
    if channels and frames != len(channels):
        raise DataError(
            "DATA-29",
            f"{unit.files[0].path}: {frames} frames, and the list names {len(channels)} "
            f"sequence(s): {', '.join(channels)}.",
        )
    return channels


def _label_facts(source: Source, volume: Volume) -> dict[str, object]:
    """What the values mean: told by the source, else by the file."""
    facts: dict[str, object] = {}
    if source.label_values:
        facts[LABEL_NAMES] = ";".join(f"{v}={n}" for v, n in sorted(source.label_values.items()))
    elif LABEL_NAMES in volume.facts:
        facts[LABEL_NAMES] = volume.facts[LABEL_NAMES]
    if source.label_regions:
        facts[LABEL_REGIONS] = ";".join(
            f"{name}={','.join(map(str, values))}" for name, values in source.label_regions.items()
        )
    return facts


def make_row(
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    affine: npt.NDArray[np.float64],
    common: Mapping[str, object],
    pixels: str,
    frame: int | None,
) -> VolumeRow:
    """The row of one stored array; shard, codec, payload and intensities follow.

    Args:
        dtype: Its type.
        shape: Slices, (coils,) rows, columns.
        affine: ``(4, 4)``, index (slice, row, column) to RAS+ mm.
        common: Fields from `describe`.
        pixels: `PixelHash` of its content.
        frame: 0-based number within a 4D file, None for the only one.
    """
    rounded = np.round(affine, 6) + 0.0  # + 0.0 turns -0 into 0
    geometry = np.round(affine, 3) + 0.0
    grid = _hash(",".join(map(str, shape)).encode(), geometry.tobytes())
    identity = [common["subject_id"], common["role"], pixels, grid]
    pair = json.loads(str(common["facts"])).get(PAIR_NAME)
    if pair and common["role"] == "label":
        identity.append(pair)  # equal (empty) masks of two slices are the masks of two images
    volume_id = "V" + _hash(*(str(part).encode() for part in identity))
    fields = {
        **common,
        "volume_id": volume_id,
        "shard": "",
        "dataset": volume_id if frame is None else f"{volume_id}-f{frame:04d}",
        "num_slices": shape[0],
        "rows": shape[-2],
        "columns": shape[-1],
        "coils": shape[1] if len(shape) == 4 else 1,
        "dtype": dtype.name,
        "payload": dtype.name,
        "scale": 1.0,
        "codec": "none",
        "affine": tuple(float(x) for x in rounded.ravel()),
        "spacing_mm": tuple(round(float(x), 6) for x in np.linalg.norm(affine[:3, :3], axis=0)),
        "grid": grid,
        "window_low": 0.0,
        "window_high": 0.0,
        "percentiles": (),
        "pixel_hash": pixels,
        "num_foreground_slices": 0,
    }
    return VolumeRow(**fields)  # type: ignore[arg-type]


class PixelHash:
    """128 bits of BLAKE2b over type, shape and voxels, slice by slice or at once: the same."""

    def __init__(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        for part in (dtype.str.encode(), ",".join(map(str, shape)).encode()):
            self._digest.update(len(part).to_bytes(8, "little"))
            self._digest.update(part)
        self._digest.update(size.to_bytes(8, "little"))

    def add(self, voxels: Array) -> None:
        """Continue with the next slices, of the type and order of the whole."""
        self._digest.update(np.ascontiguousarray(voxels).data.cast("B"))

    def text(self) -> str:
        """26 base-32 characters."""
        return base64.b32encode(self._digest.digest()).decode("ascii").rstrip("=")


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


def _hash(*parts: bytes) -> str:
    """26 base-32 characters (128 bits) of BLAKE2b over length-prefixed parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return base64.b32encode(digest.digest()).decode("ascii").rstrip("=")

"""`SliceDataset`: the slices of a registry as a map-style dataset for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from data_registry.catalogue import Registry
from data_registry.cohorts import condition
from data_registry.governance.propagation import Mixture, mixture_of, registered_sources
from data_registry.payloads import unpack
from data_registry.schema import Split, VolumeRow, from_table
from data_registry.slice_reader import SlicePlace, SliceReader

if TYPE_CHECKING:
    import pyarrow

_BLOCK = 4096
_COLUMNS = (
    "volume_id", "subject_id", "region", "sequence", "plane", "shard", "codec", "rows", "columns",
    "dtype", "payload", "scale", "window_low", "window_high", "source", "licence",
)  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class SliceSample:
    """One slice and what it is."""

    image: npt.NDArray[np.float32]
    """``[H, W]`` in [0, 1], by the intensity window of the whole volume."""
    volume_id: str
    index: int
    subject_id: str
    region: str
    sequence: str
    plane: str


@dataclass(frozen=True, eq=False, slots=True)
class StoredSlice:
    """One slice as its shard has it: the fewest bytes, to be scaled where it is needed."""

    payload: npt.NDArray[np.generic]
    """``[H, W]``; the image in [0, 1] is ``clip((payload - shift) * gain, 0, 1)``."""
    shift: float
    gain: float
    volume_id: str
    index: int
    region: str
    plane: str


@dataclass(frozen=True, eq=False)
class _Index:
    """Position i of the dataset is slice ``slice_of[i]`` of volume ``volume_of[i]``."""

    volume_of: npt.NDArray[np.int32]
    slice_of: npt.NDArray[np.int32]
    byte_start: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int32]
    checksum: npt.NDArray[np.uint32]


class VolumeTable(Sequence[VolumeRow]):
    """Rows of many volumes, a tenth of the size of as many objects: each is made when asked for.

    Args:
        table: With the columns of `VolumeRow`.
    """

    def __init__(self, table: pyarrow.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> VolumeRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[VolumeRow]: ...
    def __getitem__(self, index: int | slice) -> VolumeRow | list[VolumeRow]:
        if isinstance(index, slice):
            return from_table(VolumeRow, self.table.take(range(*index.indices(len(self)))))
        if not 0 <= index < len(self):
            raise IndexError(f"volume {index} of {len(self)}")
        return from_table(VolumeRow, self.table.slice(index, 1))[0]

    def __iter__(self) -> Iterator[VolumeRow]:
        for start in range(0, len(self), _BLOCK):
            yield from from_table(VolumeRow, self.table.slice(start, _BLOCK))


class SliceDataset:
    """Image slices of a registry; label maps never are among them.

    The order (volume id, slice) depends on the content of the registry only. Slices are read by the
    byte positions of the catalogue, without libhdf5. Instances can be pickled and used in worker
    processes and threads.

    Args:
        registry: The registry.
        split: Splits to take; pretraining takes ``("train",)``.
        where: Further SQL condition on the columns of `VolumeRow`, such as ``"not synthetic"``.
        cohort: Name of a frozen cohort of which the volumes must be; empty for all.
        min_foreground: Smallest fraction of foreground voxels, which drops slices of air.

    Raises:
        DataError: DATA-09 when no slice is left.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        split: Sequence[Split] = ("train",),
        where: str = "",
        cohort: str = "",
        min_foreground: float = 0.02,
    ) -> None:
        self.registry = registry
        self.reader = SliceReader(registry.path / "shards")
        chosen = "role = 'image' AND list_contains(?, split)"
        if more := condition(registry, cohort, where):
            chosen += f" AND {more}"
        self.volumes = VolumeTable(
            registry.sql(f"SELECT * FROM volumes WHERE {chosen} ORDER BY volume_id", [list(split)])
        )
        self._index = _load_index(registry, chosen, [list(split), min_foreground])
        if len(self) == 0:
            raise DataError(
                "DATA-09",
                f"no slice of {registry.path} is an image in split {', '.join(split)}"
                + (f" of cohort {cohort}" if cohort else "")
                + (f" with {where}" if where else "")
                + f" and at least {min_foreground:g} foreground.",
                fix=f"Look at `core-mri data stats --registry {registry.path}`.",
            )
        table = self.volumes.table
        # What every slice needs of its volume, as plain lists: equal strings are one object.
        self._columns = {
            name: table.column(name).dictionary_encode().to_pylist() for name in _COLUMNS
        }

    def mixture(self) -> Mixture:
        """The licence of all its volumes together."""
        known = registered_sources(self.registry)
        return mixture_of(known[name] for name in sorted(set(self._columns["source"])))

    def __len__(self) -> int:
        return len(self._index.volume_of)

    def __getitem__(self, position: int) -> SliceSample:
        volume, columns = self._index.volume_of[position], self._columns
        return SliceSample(
            windowed(
                self.read(position), columns["window_low"][volume], columns["window_high"][volume]
            ),
            columns["volume_id"][volume],
            int(self._index.slice_of[position]),
            columns["subject_id"][volume],
            columns["region"][volume],
            columns["sequence"][volume],
            columns["plane"][volume],
        )

    def read(self, position: int) -> npt.NDArray[np.generic]:
        """The voxels of a slice, ``[H, W]``, as the file had them."""
        volume, columns = self._index.volume_of[position], self._columns
        payload = self.reader.read(self.place(position))
        return unpack(payload, columns["dtype"][volume], columns["scale"][volume])

    def stored(self, position: int) -> StoredSlice:
        """A slice as it is stored, for training.

        Raises:
            DataError: DATA-04 when voxels are not finite, DATA-08 when the shard is damaged or
                gone; both name the volume.
        """
        volume, columns = self._index.volume_of[position], self._columns
        volume_id, index = columns["volume_id"][volume], int(self._index.slice_of[position])
        try:
            payload = self.reader.read(self.place(position))
        except DataError as error:
            message = f"volume {volume_id}, slice {index}: {error.message}"
            raise DataError(error.code, message, fix=error.fix) from error
        if payload.dtype.kind == "f" and not np.isfinite(payload).all():
            raise DataError(
                "DATA-04",
                f"volume {volume_id}, slice {index}: a voxel is not finite.",
                fix=f"Leave it out with `where: volume_id <> '{volume_id}'`.",
            )
        low, high = columns["window_low"][volume], columns["window_high"][volume]
        scale = columns["scale"][volume]
        return StoredSlice(
            payload,
            low / scale,
            scale / (high - low),
            volume_id,
            index,
            columns["region"][volume],
            columns["plane"][volume],
        )

    def place(self, position: int) -> SlicePlace:
        """Where a slice lies, for `SliceReader.read`."""
        index, columns = self._index, self._columns
        volume = index.volume_of[position]
        return SlicePlace(
            columns["shard"][volume],
            int(index.byte_start[position]),
            int(index.num_bytes[position]),
            int(index.checksum[position]),
            columns["codec"][volume],
            (columns["rows"][volume], columns["columns"][volume]),
            np.dtype(columns["payload"][volume]),
        )

    def facts_of(self, position: int) -> dict[str, str | int | float]:
        """What a slice shows, ready for JSON."""
        volume = self._index.volume_of[position]
        names = ("volume_id", "subject_id", "region", "sequence", "plane", "source", "licence",
                 "window_low", "window_high")  # fmt: skip
        return {
            **{name: self._columns[name][volume] for name in names},
            "index": int(self._index.slice_of[position]),
        }

    def shard_order(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All positions in the order in which they lie in the shards, and where shards begin."""
        shards = self._columns["shard"]
        number = {name: i for i, name in enumerate(sorted(set(shards)))}
        shard = np.array([number[name] for name in shards])[self._index.volume_of]
        order = np.lexsort((self._index.byte_start, shard))
        return order, np.flatnonzero(np.diff(shard[order], prepend=-1))

    def voxel_bytes(self) -> npt.NDArray[np.int64]:
        """[len(self)]: the size of each slice as its file had it."""
        columns = self._columns
        kinds = zip(columns["rows"], columns["columns"], columns["dtype"], strict=True)
        sizes = [rows * wide * np.dtype(dtype).itemsize for rows, wide, dtype in kinds]
        return np.array(sizes, dtype=np.int64)[self._index.volume_of]

    def volume_of(self, position: int) -> VolumeRow:
        """The volume that a position belongs to, without reading voxels."""
        return self.volumes[int(self._index.volume_of[position])]

    def volume_numbers(self) -> npt.NDArray[np.int32]:
        """[len(self)]: the position in `volumes` of the volume of each slice, ascending."""
        return self._index.volume_of

    def strata(self) -> npt.NDArray[np.int64]:
        """[len(self.volumes)]: the same number for the same region, sequence and plane."""
        names = [self._columns[name] for name in ("region", "sequence", "plane")]
        number = {name: i for i, name in enumerate(sorted(set(zip(*names, strict=True))))}
        return np.array([number[name] for name in zip(*names, strict=True)], dtype=np.int64)


def _load_index(registry: Registry, chosen: str, parameters: Sequence[object]) -> _Index:
    table = registry.sql(
        "WITH chosen AS (SELECT volume_id, (row_number() OVER (ORDER BY volume_id) - 1)::INTEGER "
        f"AS number FROM volumes WHERE {chosen}) "
        'SELECT number, s."index"::INTEGER AS position, s.byte_start, '
        "s.num_bytes::INTEGER AS num_bytes, s.checksum::UINTEGER AS checksum "
        "FROM slices AS s JOIN chosen USING (volume_id) WHERE s.foreground >= ? "
        "ORDER BY number, position",
        parameters,
    )
    columns = (column.to_numpy() for column in table.columns)
    return _Index(*columns)


def windowed(array: npt.NDArray[np.generic], low: float, high: float) -> npt.NDArray[np.float32]:
    """``(x - low) / (high - low)`` cut to [0, 1], float32."""
    image = array.astype(np.float32)
    image -= np.float32(low)
    image *= np.float32(1 / (high - low))
    np.clip(image, 0, 1, out=image)
    return image

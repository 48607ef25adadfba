"""`SliceDataset`: the slices of a registry as a map-style dataset for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from data_registry.catalogue import Registry
from data_registry.schema import Split, VolumeRow


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


@dataclass(frozen=True, eq=False)
class _Index:
    """Position i of the dataset is slice ``slice_of[i]`` of volume ``volume_of[i]``."""

    volume_of: npt.NDArray[np.int32]
    slice_of: npt.NDArray[np.int32]


class SliceDataset:
    """Image slices of a registry; label maps never are among them.

    The order (volume id, slice) depends on the content of the registry only. Instances can be
    pickled and used in worker processes: each opens the shards for itself, on first use.

    Args:
        registry: The registry.
        split: Splits to take; pretraining takes ``("train",)``.
        where: Further SQL condition on the columns of `VolumeRow`, such as ``"not synthetic"``.
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
        min_foreground: float = 0.02,
    ) -> None:
        self.registry = registry
        condition = "role = 'image' AND list_contains(?, split)" + (
            f" AND ({where})" if where else ""
        )
        self.volumes: list[VolumeRow] = registry.volumes(condition, [list(split)])
        table = registry.sql(
            'SELECT volume_id, "index" AS position FROM slices WHERE foreground >= ? '
            f"AND volume_id IN (SELECT volume_id FROM volumes WHERE {condition}) "
            "ORDER BY volume_id, position",
            [min_foreground, list(split)],
        )
        number = {row.volume_id: i for i, row in enumerate(self.volumes)}
        self._index = _Index(
            np.array([number[v] for v in table.column("volume_id").to_pylist()], dtype=np.int32),
            np.asarray(table.column("position").to_numpy(), dtype=np.int32),
        )
        if len(self) == 0:
            raise DataError(
                "DATA-09",
                f"no slice of {registry.path} is an image in split {', '.join(split)}"
                + (f" with {where}" if where else "")
                + f" and at least {min_foreground:g} foreground.",
                fix=f"Look at `core-mri data stats --registry {registry.path}`.",
            )

    def __len__(self) -> int:
        return len(self._index.volume_of)

    def __getitem__(self, position: int) -> SliceSample:
        row = self.volume_of(position)
        index = int(self._index.slice_of[position])
        stored = self.registry.shards.read_slice(row.shard, row.dataset, index)
        return SliceSample(
            windowed(stored, row.window_low, row.window_high),
            row.volume_id,
            index,
            row.subject_id,
            row.region,
            row.sequence,
            row.plane,
        )

    def volume_of(self, position: int) -> VolumeRow:
        """The volume that a position belongs to, without reading voxels."""
        row: VolumeRow = self.volumes[self._index.volume_of[position]]
        return row


def windowed(array: npt.NDArray[np.generic], low: float, high: float) -> npt.NDArray[np.float32]:
    """``(x - low) / (high - low)`` cut to [0, 1], float32."""
    image = array.astype(np.float32)
    image -= np.float32(low)
    image *= np.float32(1 / (high - low))
    np.clip(image, 0, 1, out=image)
    return image

"""Slices of a registry as batches of one worker, in the order of `pretrain.sampler`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch.utils.data import DataLoader

from core_mri.errors import DataError
from data_registry.catalogue import Registry
from data_registry.slices import SliceDataset, SliceSample
from pretrain.config import PretrainConfig
from pretrain.sampler import Indices, global_indices, rank_slice

if TYPE_CHECKING:
    from data_registry.schema import Split, VolumeRow


class Slices(Protocol):
    """What this package needs of `data_registry.slices.SliceDataset`."""

    volumes: list[VolumeRow]

    def __len__(self) -> int:
        """Number of slices."""

    def __getitem__(self, position: int) -> SliceSample:
        """One slice; those of a volume stand together."""

    def volume_of(self, position: int) -> VolumeRow:
        """The volume of a slice, without reading voxels."""


def open_slices(config: PretrainConfig, split: Split = "train") -> Slices:
    """The image slices of one split; pretraining sees ``train`` alone.

    Raises:
        DataError: DATA-08 without a registry, DATA-09 without slices.
    """
    return SliceDataset(
        Registry.open(config.registry),
        split=(split,),
        where=config.where,
        min_foreground=config.min_foreground,
    )


def open_validation(config: PretrainConfig) -> Slices | None:
    """The image slices of the validation patients, None when there are none."""
    try:
        return open_slices(config, "val")
    except DataError as error:
        if error.code != "DATA-09":
            raise
        return None


def first_slices(dataset: Slices) -> Indices:
    """[num_volumes]: where each volume begins in the data set, ascending."""
    first: list[int] = []
    last = ""
    for position in range(len(dataset)):
        volume = dataset.volume_of(position).volume_id
        if volume != last:
            first.append(position)
            last = volume
    return np.array(first, dtype=np.int64)


def batches(
    dataset: Slices, config: PretrainConfig, *, start: int, rank: int, world_size: int
) -> Iterator[list[SliceSample]]:
    """This worker's samples of step `start` and all later ones, read ahead by `loader_workers`."""
    first = first_slices(dataset)

    def positions() -> Iterator[list[int]]:
        for step in range(start, config.steps):
            indices = global_indices(
                len(dataset),
                config.seed,
                step,
                config.batch_size,
                first_slices=first,
                group=config.objective.koleo_group,
            )
            yield rank_slice(indices, rank, world_size).tolist()

    loader: DataLoader[SliceSample] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=positions(),
        num_workers=config.loader_workers,
        collate_fn=_as_list,
    )
    yield from loader


def _as_list(samples: Sequence[SliceSample]) -> list[SliceSample]:
    return list(samples)

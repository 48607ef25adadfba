"""Slices of a registry as batches of one worker, in the order of `pretrain.sampler`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset

from core_mri.errors import DataError
from core_mri.preprocess import percentile_window
from data_registry.catalogue import Registry
from data_registry.cohorts import condition
from data_registry.governance.propagation import Mixture, noncommercial_cost, only_commercial
from data_registry.slices import SliceDataset, SliceSample, StoredSlice
from pretrain.config import PretrainConfig
from pretrain.sampler import SliceOrder, adjacent_positions, rank_slice
from pretrain.stages import samples_at

if TYPE_CHECKING:
    from data_registry.schema import Split, VolumeRow


class Slices(Protocol):
    """What this package needs of `data_registry.slices.SliceDataset`."""

    @property
    def volumes(self) -> Sequence[VolumeRow]:
        """The volumes."""

    def __len__(self) -> int:
        """Number of slices."""

    def __getitem__(self, position: int) -> SliceSample:
        """One slice; those of a volume stand together."""

    def stored(self, position: int) -> StoredSlice:
        """The same slice as it is stored."""

    def volume_of(self, position: int) -> VolumeRow:
        """The volume of a slice, without reading voxels."""

    def volume_numbers(self) -> npt.NDArray[np.integer]:
        """Of each slice, the position of its volume in `volumes`; ascending."""

    def mixture(self) -> Mixture:
        """The licence of all volumes together."""

    def strata(self) -> npt.NDArray[np.integer]:
        """Of each volume, the number of its region x sequence x plane."""


class Sample(NamedTuple):
    """What a sample of a batch is made of."""

    own: StoredSlice
    """The slice of the order."""
    adjacent: StoredSlice | None
    """A slice near it, with ``views.adjacent_slices``."""


def open_slices(config: PretrainConfig, split: Split = "train") -> Slices:
    """The image slices of one split; pretraining sees ``train`` alone.

    Raises:
        DataError: DATA-08 without a registry, DATA-09 without slices.
    """
    registry = Registry.open(config.registry)
    conditions = [f"({config.where}\n)"] if config.where else []
    if config.exclude_noncommercial:
        conditions.append(only_commercial(registry))
    return SliceDataset(
        registry,
        split=(split,),
        where=" AND ".join(conditions),
        cohort=config.cohort,
        min_foreground=config.min_foreground,
    )


def left_out(config: PretrainConfig) -> dict[str, int]:
    """Training volumes by source that `exclude_noncommercial` costs."""
    registry = Registry.open(config.registry)
    chosen = "role = 'image' AND split = 'train'"
    if more := condition(registry, config.cohort, config.where):
        chosen += f" AND {more}"
    return noncommercial_cost(registry, chosen)


def open_validation(config: PretrainConfig) -> Slices | None:
    """The image slices of the validation patients, None when there are none."""
    try:
        return open_slices(config, "val")
    except DataError as error:
        if error.code != "DATA-09":
            raise
        return None


def slice_order(dataset: Slices, seed: int, *, group: int = 1, balance: float = 0.0) -> SliceOrder:
    """The order in which a data set is seen; see `SliceOrder`."""
    numbers = dataset.volume_numbers()
    first = np.flatnonzero(np.diff(numbers, prepend=-1))
    strata = dataset.strata()[numbers[first]]
    return SliceOrder(
        len(dataset), seed, first_slices=first, group=group, strata=strata, balance=balance
    )


def batches(
    dataset: Slices, config: PretrainConfig, *, start: int, rank: int, world_size: int
) -> Iterator[list[Sample]]:
    """This worker's samples of step `start` and all later ones, read ahead by `loader_workers`.

    Raises:
        DataError: DATA-04 or DATA-08 for a slice that is not finite or whose shard is damaged.
    """
    order = slice_order(
        dataset, config.seed, group=config.objective.koleo_group, balance=config.balance
    )
    group = config.objective.koleo_group
    reach, volumes = config.views.adjacent_slices, dataset.volume_numbers()

    def positions() -> Iterator[list[tuple[int, ...]]]:
        for step in range(start, config.steps):
            samples = samples_at(config, step)
            chosen = [rank_slice(order.at(samples), rank, world_size, group)]
            if reach:
                numbers = rank_slice(samples, rank, world_size, group)
                near = adjacent_positions(chosen[0], numbers, volumes, reach, seed=config.seed)
                chosen.append(near)
            yield list(zip(*(own.tolist() for own in chosen), strict=True))

    loader: DataLoader[Sample | DataError] = DataLoader(
        _Reader(dataset, own_window=config.views.window == "slice"),
        batch_sampler=positions(),
        num_workers=config.loader_workers,
        collate_fn=_whole,
    )
    for found in loader:
        if isinstance(found, DataError):
            raise found
        yield found


class _Reader(Dataset["Sample | DataError"]):
    """Reads samples. An error is handed over: `DataLoader` would raise its text as another one."""

    def __init__(self, dataset: Slices, *, own_window: bool) -> None:
        self._dataset = dataset
        self._own_window = own_window

    def __getitem__(self, positions: tuple[int, ...]) -> Sample | DataError:
        try:
            own, *adjacent = (self._read(position) for position in positions)
        except DataError as error:
            return error
        return Sample(own, adjacent[0] if adjacent else None)

    def _read(self, position: int) -> StoredSlice:
        found = self._dataset.stored(position)
        return windowed(found) if self._own_window else found


def windowed(stored: StoredSlice) -> StoredSlice:
    """The slice in the window of its own percentiles; that of its volume where it is uniform."""
    try:
        low, high = percentile_window(stored.payload)
    except DataError as error:
        if error.code != "DATA-05":
            raise
        return stored
    return replace(stored, shift=low, gain=1 / (high - low))


def _whole(samples: Sequence[Sample | DataError]) -> list[Sample] | DataError:
    """A batch, or the first error in it."""
    good = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        good.append(sample)
    return good

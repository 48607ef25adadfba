"""Image slices as WebDataset tars: sequential reading from anywhere, shuffled beforehand.

A sample is ``KEY.npy`` (the voxels, as the file had them) and ``KEY.json`` (what they show, which
volume they are of, and its intensity window). Tars hold whole samples in an order that is random
but always the same; each part of the split has its own.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from data_registry.shards import PARTIAL, cannot_write
from data_registry.slices import SliceDataset

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import Split, VolumeRow

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_OVERHEAD = 3072
"""Bytes of a sample besides its voxels: two tar headers with padding, the .npy header, the JSON."""


class Tars:
    """The tars of an export.

    Args:
        registry: The registry.
        where: SQL condition on volumes.
        max_bytes: Size that a tar passes by one sample at most.
    """

    def __init__(self, registry: Registry, where: str, max_bytes: int = 1 << 30) -> None:
        self._max_bytes = max_bytes
        self._parts: dict[Split, SliceDataset] = {}
        for split in _SPLITS:
            try:
                slices = SliceDataset(registry, split=(split,), where=where, min_foreground=0)
            except DataError as error:
                if error.code != "DATA-09":
                    raise
            else:
                self._parts[split] = slices

    def files(self) -> Iterator[tuple[Path, Callable[[Path], None]]]:
        """Each tar, and what writes it."""
        for split, slices in self._parts.items():
            order, tar_of = self._deal(slices)
            for number in range(tar_of[-1] + 1):
                chosen = order[tar_of == number]
                yield Path(f"{split}-{number:06d}.tar"), functools.partial(_write, slices, chosen)

    def places(self) -> Iterator[tuple[VolumeRow, Path]]:
        """Each volume, and the tars that hold its slices in the notation of WebDataset."""
        for split, slices in self._parts.items():
            last = self._deal(slices)[1][-1]
            for row in slices.volumes:
                yield row, Path(f"{split}-{{000000..{last:06d}}}.tar")

    def describe(self) -> Iterator[tuple[Path, str]]:
        """Nothing beside the tars."""
        yield from ()

    def _deal(self, slices: SliceDataset) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The order of all slices, and the tar of each."""
        order = np.random.default_rng(0).permutation(len(slices))
        sizes = slices.voxel_bytes()[order] + _OVERHEAD
        return order, (np.cumsum(sizes) - sizes) // self._max_bytes


def _write(slices: SliceDataset, chosen: npt.NDArray[np.int64], path: Path) -> None:
    aside = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for position in chosen.tolist():
                for suffix, content in _sample(slices, position):
                    entry = tarfile.TarInfo(f"{position:09d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        aside.rename(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise cannot_write(error, f"{path}") from error


def _sample(slices: SliceDataset, position: int) -> Iterator[tuple[str, bytes]]:
    voxels = io.BytesIO()
    np.save(voxels, slices.read(position), allow_pickle=False)
    yield "npy", voxels.getvalue()
    yield "json", json.dumps(slices.facts_of(position), sort_keys=True).encode()

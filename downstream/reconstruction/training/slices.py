"""Slices of k-space to train on and to test on, read one at a time.

`SimulatedSlices` makes k-space from the magnitude images of a registry; `MeasuredSlices` reads raw
data files. A slice is a pure function of the data, its position and a random generator.
Shape letters: ``C`` coils, ``H W`` k-space, ``h w`` image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.files.kspace import KSpace, read_kspace
from core_mri.kspace_sampling import check_finite, image_size
from core_mri.models.registry import CoilMode
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import fft2c, ifft2c
from core_mri.physics.preparation import center_crop
from core_mri.physics.simulation import birdcage_maps, resampled, simulate_kspace, smooth_phase
from data_registry.catalogue import Registry
from data_registry.schema import Split
from data_registry.slices import SliceDataset
from downstream.reconstruction.training.augment import moved
from downstream.reconstruction.training.config import Simulation

SUFFIXES = (".h5", ".hdf5", ".npy", ".dat")
MAX_OPEN = 8
"""Raw data files open at a time."""


@dataclass(frozen=True)
class Slice:
    """What was measured of a slice, and what is known of the truth."""

    kspace: Tensor
    """Complex64 ``[C, H, W]``, zero where not measured."""
    mask: Tensor | None
    """Bool ``[W]`` or ``[H, W]``; None where everything was measured."""
    reference: Tensor | None
    """Magnitude ``[h, w]`` of fully sampled data."""
    size: tuple[int, int]
    """h, w."""
    peak: float
    """Largest value of the reference of the whole volume; 0 without a reference."""


class Slices(Protocol):
    """A set of slices, in an order that depends on nothing but the data."""

    @property
    def simulated(self) -> bool:
        """Whether the k-space is made up."""

    @property
    def coils(self) -> CoilMode:
        """One coil, several, or some of either."""

    @property
    def patients(self) -> Sequence[str]:
        """Pseudonym of each slice."""

    @property
    def volumes(self) -> Sequence[str]:
        """Name of the volume of each slice; slices of a volume follow each other."""

    def __len__(self) -> int: ...

    def read(self, position: int, rng: np.random.Generator, *, augment: bool = False) -> Slice:
        """One slice; `rng` draws what is made up, and how it is moved to `augment`."""


class SimulatedSlices:
    """Slices of a registry's images as k-space of several coils; see `Simulation`.

    Args:
        registry: The registry.
        split: Of the patients.
        where: SQL condition on the volume columns.
        settings: Matrix, coils, noise.

    Raises:
        DataError: DATA-09 when there is no slice.
    """

    simulated = True
    coils: CoilMode
    patients: Sequence[str]
    volumes: Sequence[str]

    def __init__(
        self, registry: Registry, split: Split | Sequence[Split], where: str, settings: Simulation
    ) -> None:
        splits = [split] if isinstance(split, str) else list(split)
        self.dataset = SliceDataset(registry, split=splits, where=where)
        self.settings = settings
        self.coils = "single" if settings.coils == 1 else "multi"
        rows = list(self.dataset.volumes)
        self.rows = rows
        numbers = self.dataset.volume_numbers().tolist()
        self.patients = [rows[number].subject_id for number in numbers]
        self.volumes = [rows[number].volume_id for number in numbers]

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, position: int, rng: np.random.Generator, *, augment: bool = False) -> Slice:
        """One slice of noisy k-space, and its image without noise."""
        size = self.settings.size
        image = torch.from_numpy(self.dataset[position].image)
        if augment:
            image = moved(image[None], rng)[0].clamp(0, 1)
        image = resampled(image, size)
        maps = birdcage_maps(self.settings.coils, (size, size), rng)
        phase = smooth_phase((size, size), rng)
        kspace = simulate_kspace(image, maps, phase, self.settings.noise, rng)
        # Windowed images have a largest value of 1 in their volume.
        return Slice(kspace, None, image, (size, size), 1.0)


class MeasuredSlices:
    """Slices of raw data files.

    Args:
        paths: Files, or folders of them.

    Raises:
        DataError: DATA-01 when there is none; what `core_mri.files.read_kspace` raises.
    """

    simulated = False
    coils: CoilMode
    patients: Sequence[str]
    volumes: Sequence[str]

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = _files(paths)
        self._places: list[tuple[int, int]] = []
        self._peaks: dict[int, float] = {}
        names, single = [], set()
        for number, path in enumerate(self.paths):
            with read_kspace(path) as scan:
                self._places += [(number, index) for index in range(scan.shape[0])]
                single.add(scan.single_coil)
                names.append(str(scan.header.facts.get("PatientID") or path.stem))
        self.coils = "any" if len(single) > 1 else "single" if single == {True} else "multi"
        self.patients = [names[number] for number, _ in self._places]
        self.volumes = [self.paths[number].stem for number, _ in self._places]
        self._scan = functools.lru_cache(MAX_OPEN)(lambda number: read_kspace(self.paths[number]))

    def __len__(self) -> int:
        return len(self._places)

    def read(self, position: int, rng: np.random.Generator, *, augment: bool = False) -> Slice:
        """One slice; without a reference where the file has a mask and no image of its own.

        Raises:
            DataError: DATA-04 for samples that are not finite.
        """
        number, index = self._places[position]
        scan = self._scan(number)
        size = image_size(scan)
        samples = scan.read_slice(index, 0)
        check_finite(scan, index, samples)
        kspace = torch.from_numpy(samples)
        own = scan.mask(0)
        if own is not None and not own.all():
            reference = _target(scan, index)
            peak = 0.0 if reference is None else self._peak(number)
            return Slice(kspace, torch.from_numpy(own), reference, size, peak)
        if augment:
            parts = torch.view_as_real(ifft2c(kspace)).movedim(-1, 0).flatten(0, 1)
            real, imaginary = moved(parts, rng).unflatten(0, (2, -1))
            kspace = fft2c(torch.complex(real, imaginary))
        reference = None if augment else _target(scan, index)
        if reference is None:
            reference = center_crop(root_sum_of_squares(ifft2c(kspace), 0), size)
        return Slice(kspace, None, reference, size, self._peak(number))

    def _peak(self, number: int) -> float:
        """Of the reference volume; the header's, or found once by reading all slices."""
        if number not in self._peaks:
            scan = self._scan(number)
            stated = scan.header.target_max
            self._peaks[number] = float(stated) if stated else _largest(scan)
        return self._peaks[number]


def labelled_positions(slices: Slices, count: int, seed: int) -> list[int]:
    """Positions of the slices of `count` patients chosen by seed; of all patients for 0.

    A choice of 2 is part of the choice of 3.

    Raises:
        DataError: DATA-09 when there are fewer patients.
    """
    from downstream.cohort import shuffled

    names = sorted(set(slices.patients))
    if count > len(names):
        raise DataError(
            "DATA-09", f"{count} labelled patients were asked for, {len(names)} are there to train."
        )
    chosen = set(shuffled(names, names, "labelled", seed)[: count or len(names)])
    return [i for i, patient in enumerate(slices.patients) if patient in chosen]


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        found += inside if path.is_dir() else [path]
    if not found:
        raise DataError("DATA-01", f"{', '.join(map(str, paths))}: no raw data there.")
    return found


def _target(scan: KSpace, index: int) -> Tensor | None:
    target = scan.target(index)
    return None if target is None else torch.from_numpy(target)


def _largest(scan: KSpace) -> float:
    peaks = []
    for index in range(scan.shape[0]):
        target = _target(scan, index)
        if target is None:
            image = root_sum_of_squares(ifft2c(torch.from_numpy(scan.read_slice(index, 0))), 0)
            target = center_crop(image, image_size(scan))
        peaks.append(float(target.max()))
    return max(peaks)

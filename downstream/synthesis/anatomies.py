"""Where the anatomies of samples come from: labelled scans, or label maps that need no scan."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from core_mri.volume import Volume
from downstream.segmentation.data import read_mask
from downstream.segmentation.structures import named_values, stored_values
from downstream.synthesis.cases import Case, class_names, read_case, training_pairs
from downstream.synthesis.config import Anatomy, SampleConfig
from downstream.synthesis.lesions import Shape, find_lesions

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow
    from downstream.config import Task

MOST_CLASSES = 255
VALUE = "value {}"
"""Name of what a label map shows and the task does not name."""


class Anatomies(Protocol):
    """Label maps of training patients, by number from 0."""

    task: Task
    """With its structures."""
    names: dict[int, str]
    """Class of an anatomy (from 1) to its name, structures first."""
    rows: list[VolumeRow]
    """Volumes whose licence and region the samples inherit."""

    def __len__(self) -> int:
        """How many there are."""

    def case(self, number: int) -> Case:
        """One of them; the last few are kept."""

    def lesions(self, structure: str) -> list[Shape]:
        """Every lesion of these patients."""


class ScanAnatomies:
    """Labelled scans; what no structure covers is divided by intensity.

    Args:
        registry: The registry.
        config: Which scans.

    Raises:
        CoreMRIError: As `training_pairs`.
    """

    def __init__(self, registry: Registry, config: SampleConfig, anatomy: Anatomy) -> None:
        self.registry, self.anatomy, self.seed = registry, anatomy, config.seed
        self.task, self.pairs = training_pairs(
            registry, config.task, patients=config.patients, seed=config.seed
        )
        self.names = class_names(self.task, anatomy)
        self.rows = [row for pair in self.pairs for row in pair.volumes]
        self.case = functools.lru_cache(maxsize=4)(self._read)

    def __len__(self) -> int:
        return len(self.pairs)

    def _read(self, number: int) -> Case:
        return read_case(self.registry, self.pairs[number], self.task, self.anatomy, self.seed)

    def lesions(self, structure: str) -> list[Shape]:
        """As `Anatomies.lesions`."""
        value = list(self.task.labels).index(structure) + 1
        found = []
        for pair in self.pairs:
            mask = Volume(
                read_mask(self.registry, pair, self.task), _affine(pair.label), kind="label"
            )
            found += find_lesions(mask, [value], pair.image.subject_id)
        return found


class MapAnatomies:
    """Label volumes that are whole anatomies by themselves, of patients of the train split.

    Args:
        registry: The registry.
        config: With `label_maps`.

    Raises:
        DataError: DATA-09 when no label volume of the train split is meant.
        ConfigError: CONFIG-05 for more than 255 different values.
    """

    def __init__(self, registry: Registry, config: SampleConfig) -> None:
        self.registry, self.task = registry, config.task
        self.rows = label_volumes(registry, config.label_maps)
        structures = dict(config.task.labels)
        held = {value for row in self.rows for value in _values(registry, row)}
        others = sorted(held - {0, *structures.values()})
        if len(structures) + len(others) > MOST_CLASSES:
            raise ConfigError(
                "CONFIG-05",
                f"label_maps: {len(structures) + len(others)} different values, at most "
                f"{MOST_CLASSES} are possible.",
                fix="Choose label volumes of one kind.",
            )
        self._classes = {value: number for number, value in enumerate(structures.values(), 1)}
        self._classes |= {value: len(structures) + n for n, value in enumerate(others, 1)}
        names = [*structures, *(VALUE.format(value) for value in others)]
        self.names = dict(enumerate(names, 1))
        self.case = functools.lru_cache(maxsize=4)(self._read)

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, number: int) -> Case:
        row = self.rows[number]
        stored = self.registry.read(row).array.astype(np.int64)
        classes = np.zeros(int(stored.max()) + 1, np.uint8)
        for value, number_of_class in self._classes.items():
            if value < len(classes):
                classes[value] = number_of_class
        labels = Volume(classes[stored], _affine(row), kind="label")
        nothing = np.zeros((0, *labels.shape), np.float32)
        return Case(row.subject_id, row.volume_id, nothing, labels)

    def lesions(self, structure: str) -> list[Shape]:
        """As `Anatomies.lesions`."""
        return lesions_of(self.registry, self.rows, structure, self.task.labels[structure])


def lesions_of(
    registry: Registry, rows: Sequence[VolumeRow], structure: str, value: int
) -> list[Shape]:
    """Lesions in label volumes, by the name that these store, or by value where they store none."""
    found = []
    for row in rows:
        named = named_values(row)
        mask = Volume(registry.read(row).array, _affine(row), kind="label")
        values = named.get(structure, ()) if named else (value,)
        found += find_lesions(mask, values, row.subject_id)
    return found


def label_volumes(registry: Registry, where: str) -> list[VolumeRow]:
    """Label volumes of patients of the train split, none of them synthetic.

    Args:
        registry: The registry.
        where: SQL condition.

    Raises:
        ConfigError: CONFIG-01 when the condition is wrong.
        DataError: DATA-09 when there are none.
    """
    rows = registry.volumes(f"role = 'label' AND split = 'train' AND ({where})")
    rows = [row for row in rows if row.generated_from is None]
    if not rows:
        raise DataError(
            "DATA-09",
            f"no label volume of the train split satisfies {where!r} in {registry.path}.",
            fix="See `core-mri data ls` for sources and splits; val and test stay out of samples.",
        )
    return rows


def anatomies_of(registry: Registry, config: SampleConfig, anatomy: Anatomy) -> Anatomies:
    """What a configuration asks for."""
    if config.label_maps:
        return MapAnatomies(registry, config)
    return ScanAnatomies(registry, config, anatomy)


def _values(registry: Registry, row: VolumeRow) -> Sequence[int]:
    """Values of a label volume besides 0."""
    told = stored_values(row)
    return [v for v in np.unique(registry.read(row).array).tolist() if v] if told is None else told


def _affine(row: VolumeRow) -> npt.NDArray[np.float64]:
    return np.array(row.affine).reshape(4, 4)

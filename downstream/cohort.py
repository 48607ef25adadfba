"""The scans of a task, by split, and the images as the encoder wants them.

Splits belong to patients: a patient of the test split is in no other one, which is checked here for
every task. Everything is ordered by id, so no result depends on the order of the catalogue.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow
    from downstream.config import Task

T = TypeVar("T")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Cohort:
    """Image volumes of a task, by split, each sorted by id."""

    train: tuple[VolumeRow, ...]
    val: tuple[VolumeRow, ...]
    test: tuple[VolumeRow, ...]
    generated: tuple[VolumeRow, ...] = ()
    """Synthetic images made from training patients: apart from all others, never tested on."""

    @property
    def rows(self) -> tuple[VolumeRow, ...]:
        """All volumes but the generated ones."""
        return self.train + self.val + self.test

    @property
    def synthetic(self) -> bool:
        """Whether every volume was made by a program."""
        return all(row.synthetic for row in self.rows)


def load_cohort(registry: Registry, task: Task) -> Cohort:
    """The image volumes that `task.where` selects.

    Raises:
        DataError: DATA-09 when there are none, DATA-08 when a patient is in two splits, SYNTH-07
            when a generated one is in another split than train.
    """
    where = "role = 'image'" + (f" AND ({task.where})" if task.where else "")
    found = sorted(registry.volumes(where), key=lambda row: row.volume_id)
    rows = [row for row in found if row.generated_from is None]
    generated = tuple(row for row in found if row.generated_from is not None)
    if wrong := [row.volume_id for row in generated if row.split != "train"]:
        raise DataError(
            "SYNTH-07",
            f"task {task.name}: {len(wrong)} generated volumes are not in the train split, such as "
            f"{wrong[0]}.",
            fix="The registry was altered: ingest the generated scans again.",
        )
    if not rows:
        raise DataError(
            "DATA-09",
            f"task {task.name}: no image of the registry satisfies {task.where!r}.",
            fix="See `core-mri data stats` for regions, sequences and sources.",
        )
    check_disjoint(rows, task.name)
    train, val, test = (tuple(r for r in rows if r.split == split) for split in SPLITS)
    if task.test_split == "val":
        val, test = (), val
    return Cohort(train, val, test, generated)


def check_disjoint(rows: Iterable[VolumeRow], task: str) -> None:
    """No patient may be in two splits.

    Raises:
        DataError: DATA-08 naming the patients (pseudonyms) and their splits.
    """
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.subject_id, set()).add(row.split)
    torn = {subject: sorted(found) for subject, found in splits.items() if len(found) > 1}
    if torn:
        subject, found = min(torn.items())
        raise DataError(
            "DATA-08",
            f"task {task}: {len(torn)} patients are in two splits, such as {subject} in {found}.",
            fix="Ingest again: a registry assigns whole patients.",
        )


def subjects(rows: Iterable[VolumeRow]) -> list[str]:
    """Distinct patients (pseudonyms), sorted."""
    return sorted({row.subject_id for row in rows})


def fingerprint(rows: Iterable[VolumeRow]) -> str:
    """Hash of which volumes, with which voxels, in which split: results depend on nothing else."""
    facts = sorted((row.volume_id, row.pixel_hash, row.grid, row.split) for row in rows)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def shuffled(items: Sequence[T], keys: Sequence[str], *salt: object) -> list[T]:
    """`items` in an order that `salt` and their keys decide, whatever order they come in."""

    def rank(pair: tuple[str, T]) -> bytes:
        return hashlib.sha256(json.dumps([*map(str, salt), pair[0]]).encode()).digest()

    return [item for _, item in sorted(zip(keys, items, strict=True), key=rank)]


def read_image(registry: Registry, row: VolumeRow) -> npt.NDArray[np.float32]:
    """Slices [S, H, W] on the stored grid, in [0, 1] by the volume's window."""
    array = registry.read(row).array.astype(np.float32)
    scaled = (array - row.window_low) / (row.window_high - row.window_low)
    clipped: npt.NDArray[np.float32] = np.clip(scaled, 0.0, 1.0, dtype=np.float32)
    return clipped

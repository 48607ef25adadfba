"""Labelled volumes of a segmentation task, and the few that a draw allows to train on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError, GeometryError
from downstream.cohort import Cohort, shuffled

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow
    from downstream.config import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """An image and the label volume on its grid."""

    image: VolumeRow
    label: VolumeRow


@dataclass(frozen=True)
class Shot:
    """One labelled example."""

    pair: Pair
    slices: tuple[int, ...] | None
    """Slices that count as labelled; None is the whole volume."""


@dataclass(frozen=True)
class Pairs:
    """Labelled volumes by split, each sorted by image id."""

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    test: tuple[Pair, ...]


def pair_labels(registry: Registry, cohort: Cohort, task: Task) -> Pairs:
    """Join every image with the label volume of the same patient on the same grid.

    Images without one are left out (their number is logged); equal label volumes count once.

    Raises:
        GeometryError: GEOMETRY-03 when no label volume of a patient lies on the grid of an image.
        ConfigError: CONFIG-05 when several different label volumes fit one image.
        DataError: DATA-09 when the training or the test split has no labelled volume.
    """
    where = "role = 'label'" + (f" AND ({task.label_where})" if task.label_where else "")
    labels = registry.volumes(where)
    wanted = {label.volume_id for label in labels}
    labelled_patients = {label.subject_id for label in labels}

    pairs: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    fitting: set[str] = set()
    unfitting: dict[str, VolumeRow] = {}
    for image in cohort.rows:
        if image.subject_id not in labelled_patients:
            continue
        found = [label for label in registry.labels_of(image) if label.volume_id in wanted]
        different = {label.pixel_hash: label for label in found}
        if len(different) > 1:
            raise ConfigError(
                "CONFIG-05",
                f"task {task.name}: {len(different)} different label volumes fit image "
                f"{image.volume_id}.",
                fix="Choose one with label_where, for example by dataset or series_id.",
            )
        if found:
            fitting.add(image.subject_id)
            pairs[image.split].append(Pair(image, min(found, key=lambda row: row.volume_id)))
        else:
            unfitting[image.subject_id] = image
    if lost := sorted(unfitting.keys() - fitting):
        image = unfitting[lost[0]]
        raise GeometryError(
            "GEOMETRY-03",
            f"task {task.name}: the label volumes of {len(lost)} patients lie on another grid "
            f"than their images, such as image {image.volume_id} of patient {lost[0]} "
            f"({image.num_slices}x{image.rows}x{image.columns}).",
            fix="Resample the labels to the grid of their image and ingest them again.",
        )
    num_left_out = len(cohort.rows) - sum(map(len, pairs.values()))
    if num_left_out:
        log.warning("task %s: %d images without labels are left out", task.name, num_left_out)
    _check_present(pairs, task)
    return Pairs(*(tuple(pairs[split]) for split in ("train", "val", "test")))


def read_mask(registry: Registry, pair: Pair, task: Task) -> npt.NDArray[np.uint8]:
    """Class indices [S, H, W] on the stored grid: 0, then 1, 2, ... in the order of `task.labels`.

    Raises:
        DataError: DATA-06 naming values outside the task's list.
    """
    array = registry.read(pair.label).array
    allowed = [0, *task.labels.values()]
    strange = [value for value in np.unique(array).tolist() if value not in allowed]
    if strange and task.other_labels == "error":
        raise DataError(
            "DATA-06",
            f"task {task.name}: label volume {pair.label.volume_id} of patient "
            f"{pair.label.subject_id} holds {strange[:10]}, allowed are 0 and {task.labels}.",
            fix="Add the values to labels, or set other_labels to background.",
        )
    classes = np.zeros(array.shape, dtype=np.uint8)
    for index, value in enumerate(task.labels.values(), start=1):
        classes[array == value] = index
    return classes


def draw_shots(
    pairs: Sequence[Pair],
    k: int,
    unit: Literal["volumes", "slices"],
    *,
    seed: int,
    draw: int,
    foreground: Callable[[Pair], Sequence[int]],
    fewer: bool = False,
) -> list[Shot]:
    """The first k examples of a seeded order; the draw of k - 1 is contained in the draw of k.

    Patients come in random order and give one example each, then a second one each, and so on, so k
    examples come from as many patients as possible. Slices are drawn from those that show a
    structure.

    Args:
        pairs: Labelled volumes of one split, in any order.
        k: How many examples.
        unit: Whole volumes, or single slices.
        seed: Seed of the run.
        draw: Number of the draw.
        foreground: The slices of a volume that show any structure; called only for ``slices``.
        fewer: Return all there are when there are fewer than k.

    Raises:
        DataError: DATA-09 when there are fewer than k and `fewer` is not set.
    """
    by_patient: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_patient.setdefault(pair.image.subject_id, []).append(pair)
    patients = list(by_patient)
    order = shuffled(patients, patients, seed, draw)
    examples: dict[str, list[Shot]] = {}

    def of_patient(patient: str) -> list[Shot]:
        if patient not in examples:
            own = by_patient[patient]
            found = [
                Shot(pair, slices)
                for pair in own
                for slices in ([None] if unit == "volumes" else [(i,) for i in foreground(pair)])
            ]
            keys = [f"{shot.pair.image.volume_id}/{shot.slices}" for shot in found]
            examples[patient] = shuffled(found, keys, seed, draw)
        return examples[patient]

    chosen: list[Shot] = []
    turn = 0
    while len(chosen) < k:
        this_turn = 0
        for patient in order:
            if len(chosen) < k and turn < len(of_patient(patient)):
                chosen.append(of_patient(patient)[turn])
                this_turn += 1
        if not this_turn and fewer:
            break
        if not this_turn:
            raise DataError(
                "DATA-09",
                f"{k} labelled {unit} were asked for, the split has {len(chosen)} from "
                f"{len(patients)} patients.",
                fix="Lower k, or ingest more labelled scans.",
            )
        turn += 1
    return chosen


def _check_present(pairs: dict[str, list[Pair]], task: Task) -> None:
    counts = {split: len(found) for split, found in pairs.items()}
    num_patients = {p.image.subject_id for found in pairs.values() for p in found}
    if not counts["train"] or not counts["test"]:
        raise DataError(
            "DATA-09",
            f"task {task.name}: labelled volumes by split are {counts}, from {len(num_patients)} "
            "patients; training and testing need different patients.",
            fix="Ingest labelled scans of more patients, or widen `where`.",
        )

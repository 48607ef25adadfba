"""Labelled volumes of a segmentation task, and the few that a draw allows to train on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError, GeometryError
from downstream.cohort import SPLITS, Cohort, shuffled
from downstream.config import training_task
from downstream.recipe import ShotsUnit
from downstream.segmentation.sequences import check_not_mixed, in_order
from downstream.segmentation.structures import stored_values, values_in, with_labels

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow
    from downstream.config import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A case: an image and the label volume on its grid."""

    image: VolumeRow
    """The first sequence of the task, or the only image."""
    label: VolumeRow
    other_sequences: tuple[VolumeRow, ...] = ()
    """The further sequences, in the order of the task."""
    other_labels: tuple[VolumeRow, ...] = ()
    """Further label volumes, where structures lie in several."""

    @property
    def images(self) -> tuple[VolumeRow, ...]:
        """All sequences, in the order of the task."""
        return (self.image, *self.other_sequences)

    @property
    def label_volumes(self) -> tuple[VolumeRow, ...]:
        """All label volumes."""
        return (self.label, *self.other_labels)

    @property
    def volumes(self) -> tuple[VolumeRow, ...]:
        """All of it."""
        return (*self.images, *self.label_volumes)


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
    generated: tuple[Pair, ...] = ()
    """Synthetic pairs; only a recipe with `synthetic_share` trains on them."""
    images: tuple[VolumeRow, ...] = ()
    """Images of the training split, labelled or not; only a recipe with `regions` trains on those
    without labels."""

    def generated_from(self, patients: Collection[str]) -> list[Pair]:
        """Synthetic pairs that were made from none but these patients."""
        return [
            pair
            for pair in self.generated
            if all((row.generated_from or set()) <= set(patients) for row in pair.volumes)
        ]


def name_labels(registry: Registry, cohort: Cohort, task: Task) -> Task:
    """The task with its structures filled in, where it tells them by name.

    Raises:
        ConfigError: CONFIG-05 as `with_labels`.
    """
    patients = {image.subject_id for image in cohort.rows}
    labels = _labels(registry, task)
    return with_labels(task, [label for label in labels if label.subject_id in patients])


def pair_labels(registry: Registry, cohort: Cohort, task: Task) -> Pairs:
    """Join every image, or the sequences of every case, with the label volume on its grid.

    Images without one are left out (their number is logged); equal label volumes count once.

    Args:
        registry: The registry.
        cohort: Images of the task.
        task: As `name_labels` gives it.

    Raises:
        GeometryError: GEOMETRY-03 when no label volume of a patient lies on the grid of an image.
        ConfigError: CONFIG-05 when several different label volumes fit one image, or the channels
            of a case are mixed.
        DataError: DATA-06 for label values outside the task, DATA-09 when the training or the test
            split has no labelled volume or none of a structure, DATA-29 when a case lacks a
            sequence.
    """
    labels = _labels(registry, task)
    wanted = {label.volume_id for label in labels}
    labelled_patients = {label.subject_id for label in labels}

    cases: dict[tuple[str, ...], list[VolumeRow]] = {}
    maps: dict[tuple[str, ...], list[VolumeRow]] = {}
    fitting: set[str] = set()
    unfitting: dict[str, VolumeRow] = {}
    for image in (*cohort.rows, *cohort.generated):
        if image.subject_id not in labelled_patients:
            continue
        found = [label for label in registry.labels_of(image) if label.volume_id in wanted] or [
            label for label in registry.partial_labels_of(image) if label.volume_id in wanted
        ]
        if not found:
            unfitting[image.subject_id] = image
            continue
        fitting.add(image.subject_id)
        key = tuple(label.volume_id for label in found)
        cases.setdefault(key, []).append(image)
        maps[key] = _distinct(found, image, task)
    if lost := sorted(unfitting.keys() - fitting):
        image = unfitting[lost[0]]
        raise GeometryError(
            "GEOMETRY-03",
            f"task {task.name}: the label volumes of {len(lost)} patients lie on another grid "
            f"than their images, such as image {image.volume_id} of patient {lost[0]} "
            f"({image.num_slices}x{image.rows}x{image.columns}).",
            fix="Resample the labels to the grid of their image and ingest them again.",
        )
    num_left_out = len(cohort.rows) + len(cohort.generated) - sum(map(len, cases.values()))
    if num_left_out:
        log.warning("task %s: %d images without labels are left out", task.name, num_left_out)
    pairs: dict[str, list[Pair]] = {split: [] for split in (*SPLITS, "generated")}
    splits = {row.volume_id: split for split in SPLITS for row in getattr(cohort, split)}
    splits |= {row.volume_id: "generated" for row in cohort.generated}
    for key, images in cases.items():
        label, *others = maps[key]
        if task.sequences:
            first, *more = in_order(images, task)
            pairs[splits[first.volume_id]].append(Pair(first, label, tuple(more), tuple(others)))
            continue
        check_not_mixed(images, task)
        pairs[splits[images[0].volume_id]] += [
            Pair(image, label, (), tuple(others)) for image in images
        ]
    for split in pairs.values():
        split.sort(key=lambda pair: pair.image.volume_id)
    generated = tuple(pairs.pop("generated"))
    _check_present(pairs, task)
    _check_values(pairs, task)
    train, val, test = (tuple(pairs[split]) for split in SPLITS)
    return Pairs(train, val, test, generated)


def read_mask(registry: Registry, pair: Pair, task: Task) -> npt.NDArray[np.uint8]:
    """Class indices [S, H, W] on the stored grid: 0, then 1, 2, ... in the order of `task.labels`.

    Where several label volumes or structures meet in a voxel, the first structure wins.

    Raises:
        DataError: DATA-06 naming values outside the task's list.
    """
    read = [(label, _on_image(registry, label, pair.image)) for label in pair.label_volumes]
    classes = np.zeros(read[0][1].shape, dtype=np.uint8)
    for label, array in read:
        _check_listed(label, np.unique(array).tolist(), task)
    for index, name in reversed(list(enumerate(task.labels, start=1))):
        for label, array in read:
            classes[np.isin(array, values_in(label, task)[name])] = index
    return classes


def draw_shots(
    pairs: Sequence[Pair],
    k: int,
    unit: ShotsUnit,
    *,
    seed: int,
    draw: int,
    foreground: Callable[[Pair], Sequence[int]],
    fewer: bool = False,
) -> list[Shot]:
    """The first k examples of a seeded order; the draw of k - 1 is contained in the draw of k.

    Patients come in random order and give one example each, then a second one each, and so on, so k
    examples come from as many patients as possible. Slices are drawn from those that show a
    structure. A patient is an example with all labelled volumes.

    Args:
        pairs: Labelled volumes of one split, in any order.
        k: How many examples.
        unit: Whole volumes, single slices, or whole patients.
        seed: Seed of the run.
        draw: Number of the draw.
        foreground: The slices of a volume that show any structure; called only for ``slices``.
        fewer: Return all there are when there are fewer than k.

    Returns:
        k examples; of ``patients`` all volumes of k of them.

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
                for slices in ([(i,) for i in foreground(pair)] if unit == "slices" else [None])
            ]
            keys = [f"{shot.pair.image.volume_id}/{shot.slices}" for shot in found]
            examples[patient] = shuffled(found, keys, seed, draw)
        return examples[patient]

    def too_few(found: int) -> DataError:
        return DataError(
            "DATA-09",
            f"{k} labelled {unit} were asked for, the split has {found} from "
            f"{len(patients)} patients.",
            fix="Lower k, or ingest more labelled scans.",
        )

    if unit == "patients":
        if len(order) < k and not fewer:
            raise too_few(len(order))
        return [shot for patient in order[:k] for shot in of_patient(patient)]
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
            raise too_few(len(chosen))
        turn += 1
    return chosen


def count_examples(shots: Sequence[Shot], unit: ShotsUnit) -> int:
    """How many examples the shots of a draw are."""
    if unit == "patients":
        return len({shot.pair.image.subject_id for shot in shots})
    return len(shots)


def _on_image(registry: Registry, label: VolumeRow, image: VolumeRow) -> npt.NDArray[np.generic]:
    """Voxels of a label volume on the slices of its image, 0 on those it leaves out."""
    from data_registry.catalogue import first_slice

    array = registry.read(label).array
    if label.num_slices == image.num_slices:
        return array
    start = first_slice(label, image)
    assert start is not None, "pair_labels joins no others"
    whole = np.zeros((image.num_slices, *array.shape[1:]), dtype=array.dtype)
    whole[start : start + label.num_slices] = array
    return whole


def _labels(registry: Registry, task: Task) -> list[VolumeRow]:
    """Label volumes of a task; by name only those that name one of its structures."""
    where = "role = 'label'" + (f" AND ({task.label_where})" if task.label_where else "")
    labels = registry.volumes(where)
    if not task.by_name or not task.labels:
        return labels
    return [label for label in labels if any(values_in(label, task).values())]


def _distinct(found: Sequence[VolumeRow], image: VolumeRow, task: Task) -> list[VolumeRow]:
    """The label volumes of an image, equal ones once, by id.

    Raises:
        ConfigError: CONFIG-05 when there are several, and the task does not unite them.
    """
    by_voxels: dict[str, VolumeRow] = {}
    for label in sorted(found, key=lambda row: row.volume_id):
        by_voxels.setdefault(label.pixel_hash, label)
    if len(by_voxels) > 1 and task.several_label_volumes == "error":
        raise ConfigError(
            "CONFIG-05",
            f"task {task.name}: {len(by_voxels)} different label volumes fit image "
            f"{image.volume_id}.",
            fix="Choose one with label_where, for example by dataset or series_id; or set "
            "several_label_volumes to unite where each holds a part.",
        )
    return list(by_voxels.values())


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


def _check_listed(label: VolumeRow, values: Sequence[int], task: Task) -> None:
    own = values_in(label, task)
    allowed = {0, *(value for listed in own.values() for value in listed)}
    strange = [value for value in values if value not in allowed]
    if strange and task.other_labels == "error":
        raise DataError(
            "DATA-06",
            f"task {task.name}: label volume {label.volume_id} of patient "
            f"{label.subject_id} holds {strange[:10]}, allowed are 0 and {own}.",
            fix="Add the values to labels, or set other_labels to background.",
        )


def _check_values(pairs: dict[str, list[Pair]], task: Task) -> None:
    """What the registry knows of the values of the label volumes, before any is read."""
    wanted = {"train": training_task(task), "val": training_task(task), "test": task}
    shown: dict[str, set[str]] = {}
    for split, found in pairs.items():
        asked = wanted[split]
        shown[split] = set()
        for label in (label for pair in found for label in pair.label_volumes):
            values = stored_values(label)
            if values is None:
                shown[split] |= asked.labels.keys()
                continue
            _check_listed(label, values, asked)
            own = values_in(label, asked)
            shown[split] |= {name for name, listed in own.items() if set(listed) & set(values)}
    for split in ("train", "test"):
        absent = [name for name in wanted[split].labels if name not in shown[split]]
        if absent:
            what = "no structure at all" if not shown[split] else f"no {', no '.join(absent)}"
            raise DataError(
                "DATA-09",
                f"task {task.name}: the {len(pairs[split])} label volumes of the {split} split "
                f"show {what}.",
                fix="Take the structure out of the task, or ingest patients who have it.",
            )

"""What is classified: slices, volumes or patients with their classes, by split; draws of a few."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError, DataError
from downstream.classification.labels_table import LabelsTable, read_labels
from downstream.cohort import Cohort, fingerprint, shuffled, subjects

if TYPE_CHECKING:
    from data_registry.schema import VolumeRow
    from downstream.config import Level, Task

log = logging.getLogger(__name__)

NO_CLASS = ("", "unknown")


@dataclass(frozen=True)
class Example:
    """One slice, volume or patient."""

    rows: tuple[VolumeRow, ...]
    """Its volumes; several for a patient only."""
    label: str
    slice_index: int | None = None
    """0-based; None is all slices."""

    @property
    def subject_id(self) -> str:
        """Pseudonym of the patient."""
        return self.rows[0].subject_id

    @property
    def name(self) -> str:
        """Id that no other example of the task has."""
        if len(self.rows) > 1:
            return self.subject_id
        volume = self.rows[0].volume_id
        return volume if self.slice_index is None else f"{volume}/{self.slice_index:04d}"


@dataclass(frozen=True)
class Examples:
    """Examples of the classes that can be learned and tested, and what was left out."""

    level: Level
    classes: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    left_out: dict[str, int]
    """Class to number of examples, for classes that are not in both training and test split."""

    @property
    def all(self) -> tuple[Example, ...]:
        """Of every split."""
        return self.train + self.val + self.test

    @property
    def rows(self) -> tuple[VolumeRow, ...]:
        """Their volumes, each once, ordered by id."""
        volumes = {row.volume_id: row for example in self.all for row in example.rows}
        return tuple(volumes[name] for name in sorted(volumes))

    @property
    def fingerprint(self) -> str:
        """Hash of scans, splits and labels."""
        labels = sorted((example.name, example.label) for example in self.all)
        facts = [fingerprint(self.rows), self.level, labels]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def index(self, example: Example) -> int:
        """Position of its class."""
        return self.classes.index(example.label)


def find_examples(cohort: Cohort, task: Task) -> Examples:
    """Examples whose class occurs in the training and in the test split; ``unknown`` is no class.

    Raises:
        DataError: DATA-09 with the counts when fewer than two classes remain, DATA-31 as
            `read_labels`, when no id of the table is one of the task, or when a patient has two
            labels.
        ConfigError: CONFIG-05 when the table labels slices and the level is another one.
    """
    table = None if task.table is None else read_labels(task.table, task.target)
    if table is not None and table.by == "slice" and task.level != "slice":
        raise ConfigError(
            "CONFIG-05",
            f"task {task.name}: {table.path} labels slices, the level is {task.level}.",
            fix="Set level: slice, or leave the column `slice` out of the table.",
        )
    splits = {
        split: [e for e in _examples(rows, task, table) if e.label not in NO_CLASS]
        for split, rows in (("train", cohort.train), ("val", cohort.val), ("test", cohort.test))
    }
    if table is not None:
        _check_used(table, task, sum(len(found) for found in splits.values()), cohort)
    in_train, in_test = ({e.label for e in splits[split]} for split in ("train", "test"))
    classes = tuple(sorted(in_train & in_test))
    if len(classes) < 2:
        raise DataError(
            "DATA-09",
            f"task {task.name}: {len(classes)} classes of {task.target} have training and test "
            f"{task.level}s, 2 are needed; training patients "
            f"{len(subjects(cohort.train))} with {sorted(in_train)}, test patients "
            f"{len(subjects(cohort.test))} with {sorted(in_test)}.",
            fix="Widen `where`, or ingest scans of more patients.",
        )
    everything = [example for found in splits.values() for example in found]
    left_out = dict(sorted(Counter(e.label for e in everything if e.label not in classes).items()))
    if left_out:
        log.warning("task %s: left out by class: %s", task.name, left_out)
    kept = {s: tuple(e for e in found if e.label in classes) for s, found in splits.items()}
    unseen = sorted(set(classes) - {e.label for e in kept["val"]})
    if unseen:
        log.warning("task %s: no validation patient shows %s", task.name, ", ".join(unseen))
    return Examples(task.level, classes, kept["train"], kept["val"], kept["test"], left_out)


def draw_examples(
    examples: Sequence[Example],
    classes: Sequence[str],
    per_class: int,
    *,
    seed: int,
    draw: int,
    task: str,
    fewer: bool = False,
) -> tuple[Example, ...]:
    """`per_class` examples of every class, from as many patients as possible.

    The draw of 5 is contained in the draw of 10.

    Args:
        examples: Of one split.
        classes: Names.
        per_class: How many of each; 0 takes all of them.
        seed: Of the run.
        draw: Number of the draw.
        task: For the message.
        fewer: Take what there is of a class that has not as many.

    Raises:
        DataError: DATA-09 when a class has fewer, unless `fewer`.
    """
    if not per_class:
        return tuple(examples)
    chosen: list[Example] = []
    for label in classes:
        own = [example for example in examples if example.label == label]
        if len(own) < per_class and not fewer:
            raise DataError(
                "DATA-09",
                f"task {task}: {per_class} labelled examples of class {label} were asked for, the "
                f"training patients have {len(own)}.",
                fix="Lower per_class, or ingest scans of more patients.",
            )
        chosen += _by_turns(own, seed, draw, label)[:per_class]
    return tuple(chosen)


def _by_turns(own: Sequence[Example], seed: int, draw: int, label: str) -> list[Example]:
    """One of every patient, then a second one of every patient, and so on."""
    salt = ("classification", seed, draw, label)
    turns: Counter[str] = Counter()
    ranked: list[tuple[int, int, Example]] = []
    for place, example in enumerate(shuffled(own, [example.name for example in own], *salt)):
        ranked.append((turns[example.subject_id], place, example))
        turns[example.subject_id] += 1
    return [example for _, _, example in sorted(ranked, key=lambda entry: entry[:2])]


def _examples(
    rows: Sequence[VolumeRow], task: Task, table: LabelsTable | None
) -> Iterator[Example]:
    def label_of(row: VolumeRow) -> str:
        return str(getattr(row, task.target)) if table is None else table.of_volume(row)

    if task.level == "patient":
        patients: dict[str, list[VolumeRow]] = {}
        for row in rows:
            if label_of(row) not in NO_CLASS:
                patients.setdefault(row.subject_id, []).append(row)
        for _, own in sorted(patients.items()):
            yield Example(tuple(own), _only_label(own, [label_of(row) for row in own], task))
        return
    for row in rows:
        if task.level == "volume":
            yield Example((row,), label_of(row))
            continue
        for index in range(row.num_slices):
            label = label_of(row) if table is None else table.of_slice(row, index)
            yield Example((row,), label, index)


def _only_label(rows: Sequence[VolumeRow], labels: Sequence[str], task: Task) -> str:
    if len(set(labels)) > 1:
        raise DataError(
            "DATA-31",
            f"task {task.name}: patient {rows[0].subject_id} has volumes of {sorted(set(labels))}, "
            "but one class per patient is needed.",
            fix="Set level: volume, or choose volumes of one class with `where`.",
        )
    return labels[0]


def _check_used(table: LabelsTable, task: Task, num_used: int, cohort: Cohort) -> None:
    known = {row.subject_id if table.by == "subject" else row.volume_id for row in cohort.rows}
    foreign = sorted({name for name, _ in table.labels} - known)
    if not num_used:
        raise DataError(
            "DATA-31",
            f"{table.path}: none of its {len(table.labels)} labels is of an image of task "
            f"{task.name}" + (f", such as {foreign[0]}." if foreign else "."),
            fix="`core-mri data ls --json` lists the ids of volumes and subjects.",
        )
    if foreign:
        log.warning(
            "task %s: %d ids of %s are no image of the task, such as %s",
            task.name, len(foreign), table.path, foreign[0],
        )  # fmt: skip

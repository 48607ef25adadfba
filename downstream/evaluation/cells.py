"""One cell: one encoder on one task, fitted, tested on every test patient, written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core_mri.config import config_hash
from core_mri.errors import DataError
from core_mri.metrics import auroc, balanced_accuracy
from core_mri.models.encoder import Encoder
from core_mri.models.segmenter import Segmenter
from core_mri.runs import Run
from core_mri.slice_grid import image_to_square, mask_to_square
from downstream.classification.probe import (
    METHODS,
    LabelledVolumes,
    class_indices,
    labelled_volumes,
    probe,
    volume_features,
)
from downstream.clustering.scores import ClusterData, Clustering
from downstream.cohort import fingerprint, load_cohort, read_image, subjects
from downstream.config import Adaptation, Protocol, Recipe, Task
from downstream.evaluation.cases import save_cases
from downstream.evaluation.fitting import drop_checkpoints, fit_best, scaled
from downstream.evaluation.results import ALL_PATIENTS, Outcome, Probed, Score, finite
from downstream.evaluation.testing import Tested, score_predictions
from downstream.segmentation.data import Pair, Pairs, Shot, draw_shots, pair_labels, read_mask
from downstream.segmentation.paper import PAPER_ENDING, paper_shots
from downstream.segmentation.predict import predict_pairs
from downstream.segmentation.train import LabelledSlices, Trainer, check_fits

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """The scans of a task, checked."""

    task: Task
    rows: tuple[VolumeRow, ...]
    """Every image volume that is used."""
    data: Pairs | LabelledVolumes | ClusterData
    scans: str
    """Fingerprint of images, labels and splits."""


@dataclass(frozen=True)
class Contender:
    """An encoder in the comparison."""

    name: str
    """For tables."""
    against: str
    """Name of its random twin; empty for a twin."""
    encoder: Encoder
    fingerprint: str
    """Hash of the weights."""
    pretraining_patients: frozenset[str] | None
    """Pseudonyms the weights' card lists; None when it lists none."""
    card: Mapping[str, Any] | None = None
    """The card of the weights; None for random ones."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All that the result of a cell depends on, and two names.

    What has no effect on a cell is left at its default, so that equal cells have equal keys.
    """

    task: Task
    weights: str
    """Name for tables."""
    against: str
    """Name of the random twin; empty for a twin."""
    fingerprint: str
    """Hash of the weights."""
    scans: str
    """Hash of images, labels and splits."""
    k: int
    draw: int = 0
    seed: int
    steps: int = 0
    adaptation: Adaptation = "frozen"
    protocol: Protocol = "volumes"
    tuning: tuple[float, ...] = (1.0,)
    baseline: str = ""
    """Name of a baseline, which has neither weights nor a twin."""
    recipe: Recipe

    @property
    def twin(self) -> bool:
        """Whether this is of a random twin."""
        return not self.against and not self.baseline

    @property
    def key(self) -> str:
        """File name; equal for equal weights, whatever they are called."""
        model = "twin" if self.twin else self.baseline or "model"
        nameless = config_hash(replace(self, weights="", against=""))
        return f"{self.task.name}-{model}-k{self.k}-d{self.draw}-{nameless[:12]}"


def prepare(registry: Registry, task: Task) -> TaskData:
    """Select and check the scans of a task.

    Raises:
        DataError: DATA-08, DATA-09 as `load_cohort`, `pair_labels` and `labelled_volumes`.
        GeometryError: GEOMETRY-03 as `pair_labels`.
    """
    cohort = load_cohort(registry, task)
    if task.kind == "classification":
        volumes = labelled_volumes(cohort, task)
        rows = volumes.train + volumes.val + volumes.test
        return TaskData(task, rows, volumes, fingerprint(rows))
    found = pair_labels(registry, cohort, task)
    pairs = found.train + found.val + found.test
    rows = tuple(pair.image for pair in pairs)
    scans = fingerprint([*rows, *(pair.label for pair in pairs)])
    return TaskData(task, rows, ClusterData(found) if task.kind == "clustering" else found, scans)


def run_cell(
    cell: Cell,
    contender: Contender,
    data: TaskData,
    registry: Registry,
    run: Run,
    *,
    main: bool = False,
) -> tuple[Outcome, Segmenter | None]:
    """Fit and test; pictures of a segmentation cell go to ``cells/KEY.npz`` of the run.

    The second result is the fitted model of a segmentation cell.

    Args:
        cell: What to do.
        contender: The encoder.
        data: The scans.
        registry: Where their voxels are.
        run: The run of the whole evaluation.
        main: Train in the folder of `run` itself, and write the masks of the test volumes to its
            ``predictions/``.

    Raises:
        DataError: DATA-06, DATA-09 from labels and draws.
        RunError: RUN-01 when the training diverges.
        Interrupted: With a checkpoint in the cell's folder.
    """
    started = time.process_time()
    if isinstance(data.data, LabelledVolumes):
        outcome, model = _classify(cell, contender, data.data, registry), None
    elif isinstance(data.data, ClusterData):
        outcome, model = _cluster(cell, contender, data.data, registry, run), None
    else:
        outcome, model = _segment(cell, contender, data.data, registry, run, main)
    common = {
        "sources": tuple(sorted({f"{row.source} ({row.licence})" for row in data.rows})),
        "synthetic": all(row.synthetic for row in data.rows),
        "cpu_seconds": round(time.process_time() - started, 2),
    }
    return replace(outcome, **common), model  # type: ignore[arg-type]


def _segment(
    cell: Cell, contender: Contender, pairs: Pairs, registry: Registry, run: Run, main: bool
) -> tuple[Outcome, Segmenter | None]:
    check_fits(contender.encoder, cell.recipe)
    shots, validation = draw(cell, pairs, registry)

    def make(factor: float) -> Trainer:
        recipe = scaled(cell.recipe, factor)
        own = replace(cell, recipe=recipe)
        return make_trainer(own, contender.encoder, shots, validation, registry)

    trainer, tuned = fit_best(make, cell, run, main=main)
    segmenter = trainer.finish()

    predictions = predict_pairs(segmenter, registry, pairs.test, cell.task)
    tested = score_predictions(predictions, cell, run, write=main)
    if not main:
        drop_checkpoints(run, cell)
    used = {
        "train": [shot.pair.image for shot in shots],
        "val": [shot.pair.image for shot in validation],
        "test": [pair.image for pair in pairs.test],
    }
    kept_step = f"step {trainer.best_step} of {cell.steps} kept"
    chosen = (
        f"best of {len(validation)} validation {cell.recipe.shots_unit}"
        if validation
        else "the last"
    )
    return (
        outcome_of(
            cell,
            used,
            scores=measured_scores(cell, cell.adaptation, tested),
            curve=tuple((p.step, p.loss, p.validation_dice) for p in trainer.curve),
            cases=tested.cases,
            notes=(f"{kept_step}, {chosen}", *tuned, *_absent(trainer, cell)),
        ),
        segmenter,
    )


def _classify(
    cell: Cell, contender: Contender, volumes: LabelledVolumes, registry: Registry
) -> Outcome:
    parts = {"train": volumes.train, "val": volumes.val, "test": volumes.test}
    features = {
        split: volume_features(contender.encoder, registry, rows, cell.recipe.image_size)
        for split, rows in parts.items()
    }
    truth = {s: class_indices(rows, cell.task, volumes.classes) for s, rows in parts.items()}
    scores: list[Score] = []
    probed: list[Probed] = []
    notes: list[str] = []
    for method in METHODS:
        train, val = ((features[s], truth[s]) for s in ("train", "val"))
        result = probe(method, train, val, features["test"])
        reference, found = truth["test"].numpy(), result.scores.numpy()
        for metric, value in (
            ("balanced_accuracy", balanced_accuracy(reference, found.argmax(1))),
            ("auroc", auroc(reference, found)),
        ):
            scores.append(_score(cell, method, ALL_PATIENTS, "", metric, value))
        probed += [
            Probed(
                method=method,
                patient=row.subject_id,
                truth=int(reference[index]),
                scores=tuple(float(v) for v in found[index]),
            )
            for index, row in enumerate(volumes.test)
        ]
        notes.append(f"{method}: {result.note}")
    if volumes.left_out:
        notes.append(f"left out, as not in both training and test split: {volumes.left_out}")
    return outcome_of(
        cell,
        parts,
        scores=tuple(scores),
        probed=tuple(probed),
        classes=volumes.classes,
        notes=tuple(notes),
    )


def _cluster(
    cell: Cell, contender: Contender, data: ClusterData, registry: Registry, run: Run
) -> Outcome:
    found = Clustering(
        contender.encoder,
        contender.fingerprint,
        data,
        cell.task,
        registry,
        cell.recipe.image_size,
        cell.recipe.cache_gb,
    ).run(cell.k, seed=seed_of(cell))
    used = {
        "train": [pair.image for pair in data.pairs.train],
        "val": [],
        "test": [pair.image for pair in data.pairs.test],
    }
    return outcome_of(
        cell,
        used,
        scores=tuple(
            _score(cell, method, patient, structure, "dice_2d", value)
            for (method, patient, structure), value in sorted(found.scores.items())
        ),
        cases=save_cases(found.pictures, run.out / "cells", cell.key),
        notes=found.notes,
    )


def seed_of(cell: Cell) -> int:
    """One seed of the run and the draw; the same for all contenders."""
    return int(np.random.SeedSequence((cell.seed, cell.draw)).generate_state(1)[0])


def draw(cell: Cell, pairs: Pairs, registry: Registry) -> tuple[list[Shot], list[Shot]]:
    """Training and validation examples of a cell; an encoder and its twin get the same ones."""

    def foreground(pair: Pair) -> list[int]:
        mask = read_mask(registry, pair, cell.task)
        return np.flatnonzero(mask.any(axis=(1, 2))).tolist()

    unit = cell.recipe.shots_unit
    choose = partial(
        paper_shots if cell.protocol == "paper" else partial(draw_shots, unit=unit),
        seed=cell.seed,
        draw=cell.draw,
        foreground=foreground,
    )
    try:
        shots = choose(pairs.train, cell.k)
    except DataError as error:
        raise DataError(
            error.code, f"task {cell.task.name}, training split: {error.message}", fix=error.fix
        ) from None
    validation = choose(pairs.val, cell.recipe.num_validation, fewer=True)
    if len(validation) < cell.recipe.num_validation:
        log.warning(
            "task %s: %d validation %s instead of %d",
            cell.task.name, len(validation), unit, cell.recipe.num_validation,
        )  # fmt: skip
    return shots, validation


def make_trainer(
    cell: Cell,
    encoder: Encoder,
    shots: Sequence[Shot],
    validation: Sequence[Shot],
    registry: Registry,
) -> Trainer:
    """Read the examples and set up their training.

    Raises:
        DataError: DATA-06 for a label value outside the list, DATA-09 when no training example
            shows any structure.
    """

    def read(shot: Shot) -> LabelledSlices:
        image = read_image(registry, shot.pair.image)
        mask = read_mask(registry, shot.pair, cell.task)
        if shot.slices is not None:
            image, mask = image[list(shot.slices)], mask[list(shot.slices)]
        size = cell.recipe.image_size
        return LabelledSlices(image_to_square(image, size), mask_to_square(mask, size))

    return Trainer(
        encoder,
        [read(shot) for shot in shots],
        [read(shot) for shot in validation],
        labels=dict(enumerate(cell.task.labels, start=1)),
        adaptation=cell.adaptation,
        recipe=cell.recipe,
        steps=cell.steps,
        seed=seed_of(cell),
        name=cell.task.name,
    )


def outcome_of(cell: Cell, used: Mapping[str, Sequence[VolumeRow]], **found: object) -> Outcome:
    """What the cell leaves behind: the scans it used by split, and the fields `found`."""
    return Outcome(
        key=cell.key,
        task=cell.task.name,
        weights=cell.weights,
        against=cell.against,
        baseline=bool(cell.baseline),
        k=cell.k,
        draw=cell.draw,
        patients={split: tuple(subjects(rows)) for split, rows in used.items()},
        num_volumes={split: len({row.volume_id for row in rows}) for split, rows in used.items()},
        **found,  # type: ignore[arg-type]
    )


def measured_scores(cell: Cell, method: str, tested: Tested) -> tuple[Score, ...]:
    """Rows of ``results.json`` of a segmentation cell; a method says if it is in paper mode."""
    if cell.protocol == "paper":
        method += PAPER_ENDING
    return tuple(
        _score(cell, method, patient, found.structure, found.metric, found.value, found.unit)
        for patient, found in tested.scores
    )


def _score(
    cell: Cell,
    method: str,
    patient: str,
    structure: str,
    metric: str,
    value: float,
    unit: str = "1",
) -> Score:
    return Score(
        task=cell.task.name,
        weights=cell.weights,
        twin=cell.twin,
        method=method,
        k=cell.k,
        draw=cell.draw,
        seed=cell.seed,
        patient=patient,
        structure=structure,
        metric=metric,
        value=finite(value),
        unit=unit,
    )


def _absent(trainer: Trainer, cell: Cell) -> list[str]:
    """Structures that the training examples do not show."""
    present = set(torch.unique(trainer.masks).tolist())
    absent = [name for index, name in trainer.segmenter.labels.items() if index not in present]
    if not absent:
        return []
    log.warning("task %s, draw %d: no training example shows %s", cell.task.name, cell.draw, absent)
    return [f"no training example shows {', '.join(absent)}"]

"""One cell: one encoder on one task, fitted, tested on every test patient, written down."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core_mri.config import config_hash
from core_mri.errors import ConfigError
from core_mri.metrics import auroc, balanced_accuracy
from core_mri.models.encoder import Encoder
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.segmenter import Segmenter
from core_mri.runs import Run
from core_mri.training.loop import fit
from downstream.classification.probe import (
    METHODS,
    LabelledVolumes,
    class_indices,
    labelled_volumes,
    probe,
    volume_features,
)
from downstream.clustering.scores import ClusterData, Clustering
from downstream.cohort import Cohort, check_disjoint, fingerprint, load_cohort, subjects
from downstream.config import Adaptation, Recipe, Task, training_task
from downstream.evaluation.cases import Slices, picture, save_cases
from downstream.evaluation.results import ALL_PATIENTS, Case, Outcome, Probed, Score, finite
from downstream.prompting.answers import Scores, check_shown, score_prompts
from downstream.prompting.train import PromptTrainer
from downstream.segmentation.data import (
    Pair,
    Pairs,
    Shot,
    draw_shots,
    name_labels,
    pair_labels,
    read_mask,
)
from downstream.segmentation.examples import LabelledSlices, labelled_slices
from downstream.segmentation.predict import Prediction, predict_pairs, write_prediction
from downstream.segmentation.sequences import read_channels
from downstream.segmentation.structures import values_in
from downstream.segmentation.train import Trainer, check_fits

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

log = logging.getLogger(__name__)

CHECKPOINT_EVERY = 500
"""Steps of a cell between two checkpoints; a finished cell keeps none."""


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
    recipe: Recipe

    @property
    def key(self) -> str:
        """File name; equal for equal weights, whatever they are called."""
        model = "model" if self.against else "twin"
        nameless = config_hash(replace(self, weights="", against=""))
        return f"{self.task.name}-{model}-k{self.k}-d{self.draw}-{nameless[:12]}"


def prepare(registry: Registry, task: Task) -> TaskData:
    """Select and check the scans of a task.

    Raises:
        ConfigError: CONFIG-05 as `name_labels` and `pair_labels`.
        DataError: DATA-06, DATA-08, DATA-09, DATA-29 as `load_cohort`, `pair_labels` and
            `labelled_volumes`; DATA-35 as `check_shown`.
        GeometryError: GEOMETRY-03 as `pair_labels`.
    """
    cohort = load_cohort(registry, task)
    if task.train_where:
        trained = load_cohort(registry, replace(task, where=task.train_where))
        cohort = Cohort(trained.train, trained.val, cohort.test)
        check_disjoint(cohort.rows, task.name)
    if task.kind == "classification":
        volumes = labelled_volumes(cohort, task)
        rows = volumes.train + volumes.val + volumes.test
        return TaskData(task, rows, volumes, fingerprint(rows))
    task = name_labels(registry, cohort, task)
    found = pair_labels(registry, cohort, task)
    if task.kind == "prompting":
        check_shown(registry, found.test, task)
    pairs = found.train + found.val + found.test
    rows = tuple(pair.image for pair in pairs)
    labels = [label for pair in pairs for label in pair.label_volumes]
    scans = fingerprint([*(row for pair in pairs for row in pair.images), *labels])
    if task.by_name:
        meanings = sorted({json.dumps(values_in(label, task)) for label in labels})
        scans = hashlib.sha256(json.dumps([scans, meanings]).encode()).hexdigest()[:16]
    return TaskData(task, rows, ClusterData(found) if task.kind == "clustering" else found, scans)


def run_cell(
    cell: Cell,
    contender: Contender,
    data: TaskData,
    registry: Registry,
    run: Run,
    *,
    main: bool = False,
) -> tuple[Outcome, Segmenter | PromptableSegmenter | None]:
    """Fit and test; pictures of a segmentation cell go to ``cells/KEY.npz`` of the run.

    The second result is the fitted model of a segmentation or prompting cell.

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
    model: Segmenter | PromptableSegmenter | None
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
) -> tuple[Outcome, Segmenter | PromptableSegmenter]:
    """A segmentation or prompting cell."""
    check_fits(contender.encoder, cell.recipe)
    shots, validation = draw(cell, pairs, registry)
    trainer = make_trainer(cell, contender.encoder, shots, validation, registry)
    moving, total = trainer.num_moving
    if main:
        _train(trainer, run, cell)
    else:
        folder = run.out / "cells" / cell.key
        with Run.open(folder, cell) as own:
            _train(trainer, own, cell)
        if own.stop_requested:  # a signal during the last step
            run.request_stop()
    model = trainer.finish()

    scores: dict[tuple[str, str, str], list[float]] = {}
    pictures: list[tuple[Case, Slices]] = []
    for prediction, found in _tested(model, cell, pairs, registry):
        patient = prediction.pair.image.subject_id
        for (method, structure), values in found.items():
            scores.setdefault((patient, structure, method), []).extend(values)
        pictures.append(picture(prediction))
        if main:
            write_prediction(prediction, cell.task, run.out / "predictions")
    cases = save_cases(pictures, run.out / "cells", cell.key)
    if not main:
        shutil.rmtree(run.out / "cells" / cell.key / "checkpoints", ignore_errors=True)
    used = {
        "train": [shot.pair.image for shot in shots],
        "val": [shot.pair.image for shot in validation],
        "test": [pair.image for pair in pairs.test],
    }
    metric = "dice_2d" if cell.task.kind == "prompting" else "dice"
    done = trainer.curve[-1].step
    kept_step = f"step {trainer.best_step} of {done} kept"
    if done < cell.steps:
        kept_step += f" (stopped early, {cell.steps} were allowed)"
    chosen = (
        f"best of {len(validation)} validation {cell.recipe.shots_unit}"
        if validation
        else "the last"
    )
    return (
        _outcome(
            cell,
            used,
            scores=tuple(
                _score(cell, method, patient, structure, metric, float(np.mean(values)))
                for (patient, structure, method), values in sorted(scores.items())
            ),
            curve=tuple((p.step, p.loss, p.validation_dice) for p in trainer.curve),
            cases=cases,
            notes=(
                f"{kept_step}, {chosen}",
                f"{moving:,} of {total:,} parameters moved",
                *_absent(trainer, cell),
            ),
        ),
        model,
    )


def _tested(
    model: Segmenter | PromptableSegmenter, cell: Cell, pairs: Pairs, registry: Registry
) -> Iterator[tuple[Prediction, Scores]]:
    """Test volumes with what they score."""
    if isinstance(model, PromptableSegmenter):
        yield from score_prompts(model, registry, pairs.test, cell.task)
        return
    for prediction in predict_pairs(model, registry, pairs.test, cell.task):
        yield (
            prediction,
            {(cell.adaptation, name): [value] for name, value in prediction.scores.items()},
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
    return _outcome(
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
    ).run(cell.k, seed=_seed(cell))
    used = {
        "train": [pair.image for pair in data.pairs.train],
        "val": [],
        "test": [pair.image for pair in data.pairs.test],
    }
    return _outcome(
        cell,
        used,
        scores=tuple(
            _score(cell, method, patient, structure, "dice_2d", value)
            for (method, patient, structure), value in sorted(found.scores.items())
        ),
        cases=save_cases(found.pictures, run.out / "cells", cell.key),
        notes=found.notes,
    )


def _seed(cell: Cell) -> int:
    return int(np.random.SeedSequence((cell.seed, cell.draw)).generate_state(1)[0])


def draw(cell: Cell, pairs: Pairs, registry: Registry) -> tuple[list[Shot], list[Shot]]:
    """Training and validation examples of a cell; an encoder and its twin get the same ones."""
    task = training_task(cell.task)

    def foreground(pair: Pair) -> list[int]:
        mask = read_mask(registry, pair, task)
        return np.flatnonzero(mask.any(axis=(1, 2))).tolist()

    unit = cell.recipe.shots_unit
    shots = draw_shots(
        pairs.train, cell.k, unit, seed=cell.seed, draw=cell.draw, foreground=foreground
    )
    validation = draw_shots(
        pairs.val,
        cell.recipe.num_validation,
        unit,
        seed=cell.seed,
        draw=cell.draw,
        foreground=foreground,
        fewer=True,
    )
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
) -> Trainer | PromptTrainer:
    """Read the examples and set up their training.

    Raises:
        DataError: DATA-06 for a label value outside the list, DATA-09 when no training example
            shows any structure.
    """
    task = training_task(cell.task)

    def read(shots: Sequence[Shot]) -> list[LabelledSlices]:
        found: list[LabelledSlices] = []
        for shot in shots:
            channels = read_channels(registry, shot.pair.images)
            mask = read_mask(registry, shot.pair, task)
            spacing = shot.pair.image.spacing_mm
            found += labelled_slices(channels, mask, spacing, cell.recipe, shot.slices)
        return found

    examples = read(shots), read(validation)
    given: dict[str, Any] = {
        "adaptation": cell.adaptation,
        "recipe": cell.recipe,
        "steps": cell.steps,
        "seed": _seed(cell),
        "name": cell.task.name,
    }
    if cell.task.kind == "prompting":
        return PromptTrainer(encoder, *examples, **given)
    labels = dict(enumerate(task.labels, start=1))
    return Trainer(encoder, *examples, labels=labels, sequences=task.sequences, **given)


def _train(trainer: Trainer | PromptTrainer, run: Run, cell: Cell) -> None:
    """Fit with checkpoints.

    Raises:
        ConfigError: CONFIG-04 when the checkpoint of the folder is of other weights or scans.
    """

    def restore(state: Mapping[str, Any]) -> None:
        if state["cell"] != cell.key:
            raise ConfigError(
                "CONFIG-04",
                f"{run.out}: weights, labels or scans have changed since this run was started.",
                fix="Choose another --out, or empty this folder.",
            )
        trainer.restore(state)

    fit(
        trainer.step,
        run=run,
        steps=cell.steps,
        state=lambda: {"cell": cell.key, **trainer.state()},
        restore=restore,
        checkpoint_every=CHECKPOINT_EVERY,
        enough=lambda: trainer.enough,
        description=f"{cell.task.name}, {cell.weights}, k {cell.k}, draw {cell.draw}",
    )


def _outcome(cell: Cell, used: Mapping[str, Sequence[VolumeRow]], **found: object) -> Outcome:
    return Outcome(
        key=cell.key,
        task=cell.task.name,
        weights=cell.weights,
        against=cell.against,
        k=cell.k,
        draw=cell.draw,
        patients={split: tuple(subjects(rows)) for split, rows in used.items()},
        num_volumes={split: len({row.volume_id for row in rows}) for split, rows in used.items()},
        **found,  # type: ignore[arg-type]
    )


def _score(
    cell: Cell, method: str, patient: str, structure: str, metric: str, value: float
) -> Score:
    return Score(
        task=cell.task.name,
        weights=cell.weights,
        twin=not cell.against,
        method=method,
        k=cell.k,
        draw=cell.draw,
        seed=cell.seed,
        patient=patient,
        structure=structure,
        metric=metric,
        value=finite(value),
        unit="1",
    )


def _absent(trainer: Trainer | PromptTrainer, cell: Cell) -> list[str]:
    """Structures that the training examples do not show."""
    present = set(torch.unique(trainer.masks).tolist())
    names = enumerate(training_task(cell.task).labels, start=1)
    absent = [name for index, name in names if index not in present]
    if not absent:
        return []
    log.warning("task %s, draw %d: no training example shows %s", cell.task.name, cell.draw, absent)
    return [f"no training example shows {', '.join(absent)}"]

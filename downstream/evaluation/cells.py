"""One cell: one encoder on one task, fitted, tested on every test patient, written down."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core_mri.config import config_hash
from core_mri.errors import ConfigError
from core_mri.models.classifier import Classifier
from core_mri.models.encoder import Encoder
from core_mri.models.segmenter import Segmenter
from core_mri.runs import Run
from core_mri.slice_grid import image_to_square, mask_to_square
from core_mri.training.loop import fit
from downstream.classification.attention import AttentionTrainer
from downstream.classification.cell import classify
from downstream.classification.examples import Examples, find_examples
from downstream.classification.features import Tokens
from downstream.clustering.scores import ClusterData, Clustering
from downstream.cohort import fingerprint, load_cohort, read_image, subjects
from downstream.config import Adaptation, Recipe, Task
from downstream.evaluation.cases import Slices, picture, save_cases
from downstream.evaluation.results import ALL_PATIENTS, Case, Outcome, Score, finite
from downstream.feature_cache import FeatureCache, remembering
from downstream.segmentation.data import Pair, Pairs, Shot, draw_shots, pair_labels, read_mask
from downstream.segmentation.predict import predict_pairs, write_prediction
from downstream.segmentation.train import LabelledSlices, Trainer, check_fits

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
    data: Pairs | Examples | ClusterData
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
        DataError: DATA-08, DATA-09, DATA-31 as `load_cohort`, `pair_labels` and `find_examples`.
        GeometryError: GEOMETRY-03 as `pair_labels`.
    """
    cohort = load_cohort(registry, task)
    if task.kind == "classification":
        examples = find_examples(cohort, task)
        return TaskData(task, examples.rows, examples, examples.fingerprint)
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
    cache: FeatureCache | None = None,
) -> tuple[Outcome, Segmenter | Classifier | None]:
    """Fit and test; pictures of a segmentation cell go to ``cells/KEY.npz`` of the run.

    The second result is the fitted model, if there is one that can be released.

    Args:
        cell: What to do.
        contender: The encoder.
        data: The scans.
        registry: Where their voxels are.
        run: The run of the whole evaluation.
        main: Train in the folder of `run` itself, and write the masks of the test volumes to its
            ``predictions/``.
        cache: Where features of encoders that do not move are kept.

    Raises:
        DataError: DATA-06, DATA-09 from labels and draws.
        RunError: RUN-01 when the training diverges.
        Interrupted: With a checkpoint in the cell's folder.
    """
    started = time.process_time()
    model: Segmenter | Classifier | None = None
    if isinstance(data.data, Examples):
        tokens = Tokens(
            contender.encoder, contender.fingerprint, registry, cell.recipe.image_size, cache
        )
        outcome, model = _classify(cell, data.data, tokens, registry, run, main)
    elif isinstance(data.data, ClusterData):
        outcome = _cluster(cell, contender, data.data, registry, run)
    else:
        outcome, model = _segment(cell, contender, data.data, registry, run, main, cache)
    if not main:
        shutil.rmtree(run.out / "cells" / cell.key / "checkpoints", ignore_errors=True)
    common = {
        "sources": tuple(sorted({f"{row.source} ({row.licence})" for row in data.rows})),
        "synthetic": all(row.synthetic for row in data.rows),
        "cpu_seconds": round(time.process_time() - started, 2),
    }
    return replace(outcome, **common), model  # type: ignore[arg-type]


def _segment(
    cell: Cell,
    contender: Contender,
    pairs: Pairs,
    registry: Registry,
    run: Run,
    main: bool,
    cache: FeatureCache | None,
) -> tuple[Outcome, Segmenter | None]:
    check_fits(contender.encoder, cell.recipe)
    shots, validation = draw(cell, pairs, registry)
    trainer = make_trainer(cell, contender.encoder, shots, validation, registry)
    _train(trainer, run, cell, main)
    segmenter = trainer.finish()
    if cell.adaptation == "frozen":  # the same for every draw and k
        segmenter.encoder = remembering(segmenter.encoder, contender.fingerprint, cache)

    scores: dict[tuple[str, str], list[float]] = {}
    pictures: list[tuple[Case, Slices]] = []
    for prediction in predict_pairs(segmenter, registry, pairs.test, cell.task):
        for structure, value in prediction.scores.items():
            scores.setdefault((prediction.pair.image.subject_id, structure), []).append(value)
        pictures.append(picture(prediction))
        if main:
            write_prediction(prediction, cell.task, run.out / "predictions")
    cases = save_cases(pictures, run.out / "cells", cell.key)
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
        _outcome(
            cell,
            used,
            scores=tuple(
                _score(cell, cell.adaptation, patient, structure, "dice", float(np.mean(values)))
                for (patient, structure), values in sorted(scores.items())
            ),
            curve=tuple((p.step, p.loss, p.validation_dice) for p in trainer.curve),
            cases=cases,
            notes=(f"{kept_step}, {chosen}", *_absent(trainer, cell)),
        ),
        segmenter,
    )


def _classify(
    cell: Cell, examples: Examples, tokens: Tokens, registry: Registry, run: Run, main: bool
) -> tuple[Outcome, Classifier | None]:
    found = classify(
        cell,
        examples,
        tokens,
        registry,
        seed=_seed(cell),
        train=lambda trainer: _train(trainer, run, cell, main),
    )
    outcome = _outcome(
        cell,
        {split: [row for e in own for row in e.rows] for split, own in found.used.items()},
        scores=tuple(
            _score(cell, method, ALL_PATIENTS, "", metric, value)
            for (method, metric), value in found.scores.items()
        ),
        probed=found.probed,
        classes=examples.classes,
        curve=found.curve,
        notes=found.notes,
    )
    return outcome, found.model


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

    def foreground(pair: Pair) -> list[int]:
        mask = read_mask(registry, pair, cell.task)
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
        seed=_seed(cell),
        name=cell.task.name,
    )


def _train(trainer: Trainer | AttentionTrainer, run: Run, cell: Cell, main: bool) -> None:
    """All steps, in the folder of the run itself or in one of the cell."""
    if main:
        _fit(trainer, run, cell)
        return
    with Run.open(run.out / "cells" / cell.key, cell) as own:
        _fit(trainer, own, cell)
    if own.stop_requested:  # a signal during the last step
        run.request_stop()


def _fit(trainer: Trainer | AttentionTrainer, run: Run, cell: Cell) -> None:
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


def _absent(trainer: Trainer, cell: Cell) -> list[str]:
    """Structures that the training examples do not show."""
    present = set(torch.unique(trainer.masks).tolist())
    absent = [name for index, name in trainer.segmenter.labels.items() if index not in present]
    if not absent:
        return []
    log.warning("task %s, draw %d: no training example shows %s", cell.task.name, cell.draw, absent)
    return [f"no training example shows {', '.join(absent)}"]

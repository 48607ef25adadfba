"""One cell: one encoder on one task, fitted, tested on every test patient, written down."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from core_mri.config import to_mapping
from core_mri.devices import is_main
from core_mri.models.classifier import Classifier
from core_mri.models.encoder import Encoder
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.segmenter import Segmenter
from core_mri.runs import Run
from downstream.adapt import Start
from downstream.classification.cell import classify
from downstream.classification.examples import Examples, find_examples
from downstream.classification.features import Tokens
from downstream.clustering.scores import ClusterData, Clustering
from downstream.cohort import Cohort, check_disjoint, fingerprint, load_cohort, subjects
from downstream.config import Adaptation, Protocol, Task, training_task
from downstream.evaluation.cases import save_cases
from downstream.evaluation.draws import draw, draw_unlabelled, make_trainer, seed_of
from downstream.evaluation.fitting import drop_checkpoints, fit_best, kept, scaled, train
from downstream.evaluation.generated import generated_note, generated_shots
from downstream.evaluation.results import ALL_PATIENTS, Outcome, Score, finite
from downstream.evaluation.testing import Tested, score_answers, score_predictions
from downstream.feature_cache import FeatureCache, remembering
from downstream.prompting.answers import check_shown, score_prompts
from downstream.prompting.regions import Slices
from downstream.prompting.train import PromptTrainer
from downstream.recipe import Recipe
from downstream.segmentation.data import (
    Pairs,
    count_examples,
    name_labels,
    pair_labels,
)
from downstream.segmentation.paper import PAPER_ENDING
from downstream.segmentation.predict import predict_pairs
from downstream.segmentation.structures import values_in
from downstream.segmentation.train import Trainer, check_fits

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
    data: Pairs | Examples | ClusterData
    scans: str
    """Fingerprint of images, labels and splits."""


@dataclass(frozen=True)
class Contender:
    """An encoder, or SAM, in the comparison."""

    name: str
    """For tables."""
    against: str
    """Name of its random twin; empty for a twin."""
    start: Start
    fingerprint: str
    """Hash of the weights."""
    pretraining_patients: frozenset[str] | None
    """Pseudonyms the weights' card lists; None when it lists none."""
    card: Mapping[str, Any] | None = None
    """The card of the weights; None for random ones."""

    @property
    def encoder(self) -> Encoder:
        """What all but prompts need."""
        assert isinstance(self.start, Encoder), "SAM is taken for prompts alone"
        return self.start


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
    synthetic: str = ""
    """Hash of the generated pairs, where the recipe trains on some."""
    images: str = ""
    """Hash of the images that regions are drawn in, where the recipe wants regions."""
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
        nameless = to_mapping(replace(self, weights="", against=""))
        # Keys are not sorted: structures are numbered in their order.
        digest = hashlib.sha256(json.dumps(nameless).encode()).hexdigest()
        return f"{self.task.name}-{model}-k{self.k}-d{self.draw}-{digest[:12]}"


def prepare(registry: Registry, task: Task) -> TaskData:
    """Select and check the scans of a task.

    Raises:
        ConfigError: CONFIG-05 as `name_labels` and `pair_labels`.
        DataError: DATA-06, DATA-08, DATA-09, DATA-29, DATA-31 as `load_cohort`, `pair_labels` and
            `find_examples`; DATA-35 as `check_shown`.
        GeometryError: GEOMETRY-03 as `pair_labels`.
    """
    cohort = load_cohort(registry, task)
    if task.train_where:
        trained = load_cohort(registry, replace(task, where=task.train_where))
        cohort = Cohort(trained.train, trained.val, cohort.test)
        check_disjoint(cohort.rows, task.name)
    if task.kind == "classification":
        examples = find_examples(cohort, task)
        return TaskData(task, examples.rows, examples, examples.fingerprint)
    task = name_labels(registry, cohort, task)
    found = pair_labels(registry, cohort, task)
    if task.kind == "prompting":
        check_shown(registry, found.test, task)
        found = replace(found, images=cohort.train)
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
    cache: FeatureCache | None = None,
) -> tuple[Outcome, Segmenter | PromptableSegmenter | Classifier | None]:
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
    model: Segmenter | PromptableSegmenter | Classifier | None = None
    if isinstance(data.data, Examples):
        tokens = Tokens(
            contender.encoder, contender.fingerprint, registry, cell.recipe.image_size, cache
        )
        outcome, model = _classify(cell, data.data, tokens, registry, run, main)
    elif isinstance(data.data, ClusterData):
        outcome = _cluster(cell, contender, data.data, registry, run)
    else:
        outcome, model = _segment(cell, contender, data.data, registry, run, main, cache)
    if not main and is_main():
        drop_checkpoints(run, cell)
    rows = data.rows
    if isinstance(data.data, Pairs) and cell.images:
        rows += data.data.images
    common = {
        "sources": tuple(sorted({f"{row.source} ({row.licence})" for row in rows})),
        "synthetic": all(row.synthetic for row in rows),
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
) -> tuple[Outcome, Segmenter | PromptableSegmenter]:
    """A segmentation or prompting cell."""
    if isinstance(contender.start, Encoder):
        check_fits(contender.start, cell.recipe)
    shots, validation = draw(cell, pairs, registry)
    generated = generated_shots(cell, pairs, shots)
    unlabelled = draw_unlabelled(cell, pairs)

    def make(factor: float) -> Trainer | PromptTrainer:
        own = replace(cell, recipe=scaled(cell.recipe, factor))
        return make_trainer(
            own, contender.start, shots, validation, registry, generated, unlabelled
        )

    trainer, tuned = fit_best(make, cell, run, main=main)
    moving, total = trainer.num_moving
    model = trainer.finish()
    if not is_main():  # one worker tests
        return outcome_of(cell, {}), model
    if cell.adaptation == "frozen" and isinstance(contender.start, Encoder):
        # Its features are the same for every draw and k.
        holder: Any = model.image_encoder if isinstance(model, PromptableSegmenter) else model
        holder.encoder = remembering(holder.encoder, contender.fingerprint, cache)

    tested = _test(model, cell, pairs, registry, run, main)
    used = {
        "train": [*(shot.pair.image for shot in shots), *(own.row for own in unlabelled)],
        "val": [shot.pair.image for shot in validation],
        "test": [pair.image for pair in pairs.test],
    }
    chosen = (
        f"best of {count_examples(validation, cell.recipe.shots_unit)} validation "
        f"{cell.recipe.shots_unit}"
        if validation
        else "the last"
    )
    return (
        outcome_of(
            cell,
            used,
            scores=measured_scores(cell, tested),
            curve=tuple(map(astuple, trainer.best.curve)),
            cases=tested.cases,
            notes=(
                f"{kept(trainer, cell)}, {chosen}",
                f"{moving:,} of {total:,} parameters moved",
                *generated_note(cell, generated),
                *_regions_note(unlabelled),
                *tuned,
                *_absent(trainer, cell),
            ),
        ),
        model,
    )


def _test(
    model: Segmenter | PromptableSegmenter,
    cell: Cell,
    pairs: Pairs,
    registry: Registry,
    run: Run,
    write: bool,
) -> Tested:
    if isinstance(model, PromptableSegmenter):
        answers = score_prompts(model, registry, pairs.test, cell.task)
        return score_answers(answers, cell, run, write=write)
    predictions = predict_pairs(model, registry, pairs.test, cell.task)
    return score_predictions(predictions, cell, run, method=cell.adaptation, write=write)


def _classify(
    cell: Cell, examples: Examples, tokens: Tokens, registry: Registry, run: Run, main: bool
) -> tuple[Outcome, Classifier | None]:
    found = classify(
        cell,
        examples,
        tokens,
        registry,
        seed=seed_of(cell),
        train=lambda trainer: train(trainer, cell, run, main=main),
    )
    outcome = outcome_of(
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


def measured_scores(cell: Cell, tested: Tested) -> tuple[Score, ...]:
    """Rows of ``results.json`` of a cell with masks; a method says if it is in paper mode."""
    ending = PAPER_ENDING if cell.protocol == "paper" else ""
    return tuple(
        _score(
            cell, method + ending, patient, found.structure, found.metric, found.value, found.unit
        )
        for patient, method, found in tested.scores
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


def _regions_note(drawn: Sequence[Slices]) -> list[str]:
    if not drawn:
        return []
    count = sum(len(own.indices) for own in drawn)
    return [f"regions of even brightness in {count} slices of {len(drawn)} training scans"]


def _absent(trainer: Trainer | PromptTrainer, cell: Cell) -> list[str]:
    """Structures that the training examples do not show."""
    present = set(torch.unique(trainer.masks).tolist())
    names = enumerate(training_task(cell.task).labels, start=1)
    absent = [name for index, name in names if index not in present]
    if not absent:
        return []
    log.warning("task %s, draw %d: no training example shows %s", cell.task.name, cell.draw, absent)
    return [f"no training example shows {', '.join(absent)}"]

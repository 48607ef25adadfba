"""What a cell is fitted on: its seed, the examples of its draw, and the trainer that takes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from core_mri.errors import DataError
from core_mri.models.encoder import Encoder
from downstream.adapt import Start
from downstream.config import training_task
from downstream.prompting.regions import Slices, drawn_slices, region_slices
from downstream.prompting.train import PromptTrainer
from downstream.segmentation.data import (
    Pair,
    Pairs,
    Shot,
    count_examples,
    draw_shots,
    read_mask,
)
from downstream.segmentation.examples import LabelledSlices, labelled_slices
from downstream.segmentation.paper import paper_shots
from downstream.segmentation.sequences import read_channels
from downstream.segmentation.train import Trainer

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from downstream.evaluation.cells import Cell

log = logging.getLogger(__name__)


def seed_of(cell: Cell) -> int:
    """One seed of the run and the draw; the same for all contenders."""
    return int(np.random.SeedSequence((cell.seed, cell.draw)).generate_state(1)[0])


def draw(cell: Cell, pairs: Pairs, registry: Registry) -> tuple[list[Shot], list[Shot]]:
    """Training and validation examples of a cell; an encoder and its twin get the same ones."""
    task = training_task(cell.task)

    def foreground(pair: Pair) -> list[int]:
        mask = read_mask(registry, pair, task)
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
    if (found := count_examples(validation, unit)) < cell.recipe.num_validation:
        log.warning(
            "task %s: %d validation %s instead of %d",
            cell.task.name, found, unit, cell.recipe.num_validation,
        )  # fmt: skip
    return shots, validation


def draw_unlabelled(cell: Cell, pairs: Pairs) -> list[Slices]:
    """The slices whose regions a prompting cell trains on, equal for an encoder and its twin."""
    return drawn_slices(pairs.images, cell.recipe.regions, seed_of(cell))


def make_trainer(
    cell: Cell,
    start: Start,
    shots: Sequence[Shot],
    validation: Sequence[Shot],
    registry: Registry,
    generated: Sequence[Shot] = (),
    unlabelled: Sequence[Slices] = (),
) -> Trainer | PromptTrainer:
    """Read the examples and set up their training.

    Args:
        cell: What to fit.
        start: Weights it begins with.
        shots: Labelled examples.
        validation: Those that choose the step that is kept.
        registry: Where the scans are.
        generated: Synthetic examples, for segmentation.
        unlabelled: Slices whose regions are prompted, as `draw_unlabelled` gives them.

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
        "seed": seed_of(cell),
        "name": cell.task.name,
    }
    if cell.task.kind == "prompting":
        last = len(task.labels)
        regions = region_slices(registry, unlabelled, cell.recipe, seed_of(cell), after=last)
        return PromptTrainer(start, [*examples[0], *regions], examples[1], **given)
    assert isinstance(start, Encoder)
    labels = dict(enumerate(task.labels, start=1))
    return Trainer(
        start,
        *examples,
        labels=labels,
        sequences=task.sequences,
        generated=read(generated),
        **given,
    )

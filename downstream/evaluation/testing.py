"""The masks of the test volumes of a cell, turned into scores per patient and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from core_mri.runs import Run
from downstream.evaluation.cases import Slices, picture, save_cases
from downstream.evaluation.results import Case
from downstream.prompting.answers import Scores
from downstream.segmentation.paper import paper_measure
from downstream.segmentation.predict import Prediction, write_prediction
from downstream.segmentation.scores import Measured, distances_of, measure

if TYPE_CHECKING:
    from downstream.evaluation.cells import Cell


@dataclass(frozen=True)
class Tested:
    """What the test volumes of a cell give."""

    scores: tuple[tuple[str, str, Measured], ...]
    """Patient (pseudonym), method and number, the mean over the volumes of the patient."""
    cases: tuple[Case, ...]


def score_predictions(
    predictions: Iterable[Prediction], cell: Cell, run: Run, *, method: str, write: bool = False
) -> Tested:
    """Score every volume, keep the pictures of three, and nothing else of them.

    Args:
        predictions: Of all test volumes.
        cell: Where they belong; pictures go to ``cells/KEY.npz`` of the run.
        run: The run of the whole evaluation.
        method: What made the masks.
        write: Write the masks to ``predictions/`` of the run.
    """
    scored = ((p, [(method, found) for found in _measured(p, cell)]) for p in predictions)
    return _collect(scored, cell, run, write)


def score_answers(
    answers: Iterable[tuple[Prediction, Scores]], cell: Cell, run: Run, *, write: bool = False
) -> Tested:
    """The same of prompted volumes, whose Dice is that of slices.

    Args:
        answers: Of all test volumes, those to boxes, with the scores of all methods.
        cell: Where they belong; pictures go to ``cells/KEY.npz`` of the run.
        run: The run of the whole evaluation.
        write: Write the masks to ``predictions/`` of the run.
    """
    scored = (
        (
            prediction,
            [
                (method, Measured(structure, "dice_2d", value, "1"))
                for (method, structure), values in scores.items()
                for value in values
            ],
        )
        for prediction, scores in answers
    )
    return _collect(scored, cell, run, write)


def _collect(
    scored: Iterable[tuple[Prediction, Iterable[tuple[str, Measured]]]],
    cell: Cell,
    run: Run,
    write: bool,
) -> Tested:
    values: dict[tuple[str, str, Measured], list[float]] = {}
    pictures: list[tuple[Case, Slices]] = []
    for prediction, numbers in scored:
        patient = prediction.pair.image.subject_id
        for method, found in numbers:
            values.setdefault((patient, method, replace(found, value=0.0)), []).append(found.value)
        pictures.append(picture(prediction))
        if write:
            write_prediction(prediction, cell.task, run.out / "predictions")
    means = [
        (patient, method, replace(kind, value=float(np.mean(found))))
        for (patient, method, kind), found in values.items()
    ]
    means.sort(key=lambda item: (item[0], item[2].metric, item[2].structure, item[1], item[2].unit))
    return Tested(tuple(means), save_cases(pictures, run.out / "cells", cell.key))


def _measured(prediction: Prediction, cell: Cell) -> Iterable[Measured]:
    structures = list(cell.task.labels)
    if cell.protocol == "paper":
        return paper_measure(prediction.reference, prediction.estimate, structures)
    spacing, unit = distances_of(prediction.pair.image)
    return measure(
        prediction.reference,
        prediction.estimate,
        structures,
        spacing=spacing,
        unit=unit,
        tolerances=cell.task.tolerances,
    )

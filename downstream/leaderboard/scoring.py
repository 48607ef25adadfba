"""Scores of a submission by patient, with the project's metrics."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from downstream.leaderboard.board import Array, Board, Case
from downstream.leaderboard.task import METRICS
from downstream.reconstruction.scores import volume_scores
from downstream.segmentation.scores import measure

Scores = dict[str, dict[str, float]]
"""Metric -> patient -> value."""


def case_scores(board: Board, case: Case, reference: Array, estimate: Array) -> dict[str, float]:
    """Every metric of a case; of masks the mean over the structures of the task.

    As `downstream.reconstruction.scores` and `downstream.segmentation.scores`, where it stands what
    structures score that one of the masks lacks.
    """
    if board.task.kind == "reconstruction":
        return volume_scores(reference, estimate)  # type: ignore[arg-type]
    matrix = np.reshape(case.affine, (4, 4))
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    values: dict[str, list[float]] = defaultdict(list)
    for one in measure(
        reference, estimate, board.task.structures,  # type: ignore[arg-type]
        spacing=tuple(map(float, spacing)), unit="mm", tolerances={},
    ):  # fmt: skip
        values[one.metric].append(one.value)
    return {metric: float(np.mean(of)) for metric, of in values.items()}


def by_patient(board: Board, scores: list[dict[str, float]]) -> Scores:
    """The mean over the cases of each patient.

    Args:
        board: The leaderboard.
        scores: Of each case, in their order.
    """
    return {
        metric: {
            patient: float(np.mean([
                found[metric] for case, found in zip(board.cases, scores, strict=True)
                if case.patient == patient
            ]))
            for patient in board.patients
        }
        for metric in METRICS[board.task.kind]
    }  # fmt: skip

"""The page of one training: verdict, scores beside classical methods, panels, curve, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from core_mri.config import to_mapping
from core_mri.pictures import comparison
from core_mri.reports import Cell, Report
from downstream.evaluation.summary import SummaryRow
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.sets import Sets
from downstream.reconstruction.training.testing import Tested

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from downstream.reconstruction.training.trainer import ReconstructionTrainer

ERROR_GAIN = 5


def training_report(
    config: ReconstructionConfig,
    sets: Sets,
    trainer: ReconstructionTrainer,
    tested: Mapping[tuple[str, str], Sequence[Tested]],
    rows: Sequence[SummaryRow],
    leakage: str,
) -> Report:
    """Write nothing, gather everything.

    Args:
        config: The run.
        sets: Its slices.
        trainer: After its last step.
        tested: (method, acceleration) to volumes.
        rows: The summary.
        leakage: What is known of test patients in the weights it began with.
    """
    simulated = sets.training.simulated
    name = config.network.name
    data = "SIMULATED k-space of magnitude images" if simulated else "measured k-space"
    own = [row for row in rows if row.weights == name and row.metric == "PSNR"]
    told = "; ".join(f"{row.task}: {row.mean:.2f} dB over {row.n} patients" for row in own)
    verdict = f"{name}, {config.supervision}, on {data}. {told or 'No test patients.'}"
    report = Report(f"Training of {name} for reconstruction", verdict, "Not for diagnosis.")
    if rows:
        report.add_table(
            "Scores of test patients",
            score_table(rows),
            "Volume scores averaged per patient, then over patients; 95 % bootstrap intervals. "
            + (
                "K-space is simulated: smooth phase, ring of coils, white noise."
                if simulated
                else ""
            ),
        )
    report.add_gallery("Middle slices", panels(tested))
    moving, total = trainer.num_moving
    report.add_table(
        "Validation",
        [
            {
                "step": point.step,
                "score": point.validation,
                "kept": "kept" if point.step == trainer.best.step else "",
            }
            for point in trainer.best.curve
            if point.validation is not None
        ],
        f"By {config.fitting.validate_by}; higher is better. "
        "holdout: minus the loss on a fifth of the measured points, which needs no reference.",
    )
    report.add_facts(
        "Training",
        {
            "data": sets.describe(),
            "parameters that move": f"{moving:,} of {total:,}",
            "steps": trainer.steps,
            "kept step": trainer.best.step,
            "weights it began with": leakage or "none",
        },
    )
    report.add_facts("Settings", flat(to_mapping(config)))
    return report


def score_table(rows: Sequence[SummaryRow]) -> list[dict[str, Cell]]:
    """A line a task and method, best PSNR first."""
    lines: dict[tuple[str, str, str, int], dict[str, Cell]] = {}
    order: dict[tuple[str, str, str, int], float] = {}
    for row in sorted(rows, key=lambda row: ("PSNR", "SSIM", "NMSE").index(row.metric)):
        key = (row.task, row.weights, row.method, row.k)
        line = lines.setdefault(
            key, {"data": row.task, "method": row.weights, "training": row.method,
                  "labelled": labelled(row),
                  "patients": row.n},
        )  # fmt: skip
        line[row.metric] = row.mean
        line[f"{row.metric} 95 %"] = (
            f"{row.ci_low:.3f} to {row.ci_high:.3f}" if np.isfinite(row.ci_low) else ""
        )
        if row.metric == "PSNR":
            order[key] = row.mean
    return [lines[key] for key in sorted(lines, key=lambda key: (key[0], -order.get(key, 0.0)))]


def labelled(row: SummaryRow) -> Cell:
    """Training patients with references."""
    if row.method in ("classical", "self-supervised", "zero-shot"):
        return "none"
    return row.k or "all"


def panels(
    tested: Mapping[tuple[str, str], Sequence[Tested]],
) -> list[tuple[Figure, str]]:
    """The middle slice of the first test volume by every method, with zoom and error."""
    found = []
    for (name, rate), volumes in tested.items():
        if not volumes:
            continue
        first = volumes[0]
        height, width = first.image.shape
        zoom = (3 * height // 8, 3 * width // 8, max(height // 4, 1), max(width // 4, 1))
        figure = comparison(first.image, first.reference, zoom=zoom, gain=ERROR_GAIN)
        scores = first.scores
        found.append(
            (figure, f"{name}, {rate}: PSNR {scores['PSNR']:.2f} dB, SSIM {scores['SSIM']:.3f}")
        )
    return found


def flat(mapping: Mapping[str, object], prefix: str = "") -> dict[str, Cell]:
    """Nested settings with dotted names."""
    lines: dict[str, Cell] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            lines |= flat(value, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = str(value)
    return lines

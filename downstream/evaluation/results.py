"""What a cell of an evaluation leaves behind, and the files that hold all of them.

A cell is one model on one task: task x weights x k x draw. ``results.json`` has the scores of all
cells, one row per patient and structure, the summary over patients, and what failed.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.config import load_config, to_mapping
from core_mri.errors import ConfigError
from core_mri.runs import write_atomically, writing
from downstream.evaluation.latex import latex_table

if TYPE_CHECKING:
    from downstream.evaluation.summary import Comparison, SummaryRow

SCHEMA = 1
ALL_PATIENTS = "all"
"""`Score.patient` of a score that exists for a set of patients only, such as the AUROC."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number."""

    task: str
    """Name of the task."""
    weights: str
    """Name of the weights, of the random twin's architecture, or of the baseline."""
    twin: bool
    """Whether this is the random-initialised twin."""
    method: str
    """Segmentation: an adaptation (frozen, head, adapters, lora, full), from scratch or as
    released; classification: linear probe, knn, or attention- with an adaptation; clustering:
    patient-oracle, set-oracle or set-matched (`downstream.clustering.scores`); prompting: box, 1
    click, 3 clicks or 5 clicks."""
    k: int
    """Labelled training volumes or slices; classification: labelled examples per class, 0 for all
    of them; clustering: number of clusters."""
    draw: int
    """Number of the draw of the k."""
    seed: int
    """Seed of the run."""
    patient: str
    """Pseudonym of the test patient, or ``all``."""
    structure: str
    """Structure; empty for classification."""
    metric: str
    """dice, nsd or hd95 (`downstream.segmentation.scores`), dice_2d (per slice that shows the
    structure), balanced_accuracy, auroc, auprc, ece (of calibrated probabilities), ece_uncalibrated
    or brier (calibrated)."""
    value: float | None
    """The number; None when it is not defined."""
    unit: str
    """``1`` for shares between 0 and 1; distances: ``mm``, or ``px`` where no spacing is known."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a classifier said about one test example."""

    method: str
    """As `Score.method`."""
    patient: str
    """Pseudonym."""
    example: str
    """Id of the slice, volume or patient."""
    truth: int
    """Position of its class in `Outcome.classes`."""
    scores: tuple[float, ...]
    """Probability of each class."""
    calibrated: tuple[float, ...]
    """The same after the temperature chosen on the validation patients."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A test volume worth looking at: the worst, the median or the best of a cell."""

    rank: str
    """worst, median or best."""
    patient: str
    """Pseudonym."""
    dice: float
    """Mean over the structures of the volume."""
    slice_index: int
    """The slice pictured: the one that shows most of the structures."""
    plane: str
    """Plane of the volume."""
    spacing_mm: tuple[float, float]
    """Row and column spacing."""
    synthetic: bool
    """Made by a program."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything one cell leaves behind, except its pictures and its model."""

    key: str
    """File name of the cell, with the hash of all it depends on."""
    task: str
    """Name of the task."""
    weights: str
    """Name of the weights."""
    against: str
    """Name of its random twin; empty for a twin and a baseline."""
    k: int
    """Labelled training volumes or slices."""
    draw: int
    """Number of the draw."""
    scores: tuple[Score, ...] = ()
    """Its rows of ``results.json``."""
    classes: tuple[str, ...] = ()
    """Classification: names of the classes."""
    probed: tuple[Probed, ...] = ()
    """Classification: the test examples."""
    curve: tuple[tuple[int, float, float | None], ...] = ()
    """Segmentation: (step, loss, validation Dice where taken); attention: balanced accuracy."""
    cases: tuple[Case, ...] = ()
    """Segmentation: what is pictured."""
    patients: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Split to pseudonyms of the patients that were used."""
    num_volumes: dict[str, int] = field(default_factory=dict)
    """Split to number of volumes that were used."""
    sources: tuple[str, ...] = ()
    """Names and licences of the sources of the scans."""
    synthetic: bool = False
    """Whether every scan was made by a program."""
    leakage: str = ""
    """What is known about test patients among the pretraining patients."""
    notes: tuple[str, ...] = ()
    """What a reader should know."""
    cpu_seconds: float = 0.0
    """Processor time of this process."""
    error: str = ""
    """Why the cell failed; empty when it did not."""
    baseline: bool = False
    """Whether this is a baseline (`downstream.baselines`)."""
    empty: str = ""
    """Why there is nothing to score, such as a program that is not installed; no failure."""

    @property
    def twin(self) -> bool:
        """Whether this is a random twin."""
        return not self.against and not self.baseline


def save_outcome(outcome: Outcome, folder: Path) -> None:
    """Write ``KEY.json``; readers see all of it or none."""
    text = json.dumps(to_mapping(outcome), indent=1, allow_nan=False)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{outcome.key}.json", f"{text}\n".encode())


def load_outcome(folder: Path, key: str) -> Outcome | None:
    """The finished cell of that key; None when there is none, it failed, or is damaged."""
    path = folder / f"{key}.json"
    if not path.is_file():
        return None
    try:
        outcome = load_config(Outcome, json.loads(path.read_text(encoding="utf-8")))
    except (ConfigError, ValueError):
        return None
    return None if outcome.error else outcome


def write_results(
    out: Path,
    outcomes: Sequence[Outcome],
    summary: Sequence[SummaryRow],
    verdict: str,
    comparisons: Sequence[Comparison] = (),
) -> Path:
    """Write ``results.json``, ``results.csv`` (one score a line), ``summary.csv``, ``summary.tex``.

    Nothing in them depends on time, order of work or machine.

    Returns:
        Path of ``results.json``.
    """
    scores = sorted(
        (score for outcome in outcomes for score in outcome.scores),
        key=lambda s: (
            s.task,
            s.twin,
            s.weights,
            s.method,
            s.k,
            s.draw,
            s.patient,
            s.structure,
            s.metric,
            s.unit,
        ),
    )
    cells = [asdict(score) for score in scores]
    rows = [_plain(asdict(row)) for row in summary]
    failed = sorted((o.key, o.error) for o in outcomes if o.error)
    content = {
        "schema": SCHEMA,
        "verdict": verdict,
        "cells": cells,
        "summary": rows,
        "comparisons": [_plain(comparison.row()) for comparison in comparisons],
        "empty": [{"cell": o.key, "why": o.empty} for o in outcomes if o.empty],
        "failed": [{"cell": key, "error": error} for key, error in failed],
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    with writing(out):
        write_atomically(out / "results.json", f"{text}\n".encode())
        _write_csv(out / "results.csv", [f.name for f in fields(Score)], cells)
        _write_csv(out / "summary.csv", list(rows[0]) if rows else [], rows)
        write_atomically(out / "summary.tex", latex_table(summary).encode())
    return out / "results.json"


def finite(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None


def _plain(row: dict[str, object]) -> dict[str, object]:
    return {k: finite(v) if isinstance(v, float) else v for k, v in row.items()}


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)

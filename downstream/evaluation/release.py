"""What a model card says of a fine-tuned model, and of an encoder after an evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.config import to_mapping
from core_mri.errors import WeightsError
from core_mri.weights import update_card
from core_mri.weights.folder import find_folder, read_config
from downstream.config import training_task
from downstream.evaluation.results import Outcome
from downstream.evaluation.summary import PRIMARY, SummaryRow

if TYPE_CHECKING:
    from downstream.config import SuiteConfig
    from downstream.evaluation.cells import Cell, Contender

log = logging.getLogger(__name__)

Facts = dict[str, Any]


def card_facts(cell: Cell, contender: Contender, outcome: Outcome, leakage: str) -> Facts:
    """Facts for the model card of a fine-tuned segmenter, promptable model or classifier."""
    synthetic = " All scans are synthetic." if outcome.synthetic else ""
    seen = contender.pretraining_patients
    return {
        "summary": f"{_purpose(cell, outcome)}.{synthetic}",
        "data": {
            "sources": list(outcome.sources),
            "patients": {split: len(found) for split, found in outcome.patients.items()},
            "leakage": leakage,
        },
        "training": {
            "seed": cell.seed,
            "steps": cell.steps,
            "adaptation": cell.adaptation,
            "recipe": to_mapping(cell.recipe),
        },
        "results": _first_results(outcome),
        **({"label_values": dict(cell.task.labels)} if cell.task.labels else {}),
        "subjects": None if seen is None else sorted(seen | trained_on(outcome)),
    }


def trained_on(outcome: Outcome) -> set[str]:
    """Pseudonyms of the patients a cell fitted or chose on."""
    return set(outcome.patients["train"]) | set(outcome.patients["val"])


def _purpose(cell: Cell, outcome: Outcome) -> str:
    start = f"fine-tuned from {cell.weights} with"
    if cell.task.kind != "classification":
        what = f"Segments {', '.join(cell.task.labels)}"
        if cell.task.kind == "prompting":
            names = ", ".join(training_task(cell.task).labels)
            what = f"Segments what boxes and points name, trained on {names}"
        return f"{what} (task {cell.task.name}), {start} {cell.k} labelled {cell.recipe.shots_unit}"
    labels = f"{cell.k} labelled {cell.task.level}s of each class"
    if not cell.k:
        labels = f"{len(outcome.patients['train'])} labelled patients"
    return (
        f"Tells {', '.join(outcome.classes)} (task {cell.task.name}, one class per "
        f"{cell.task.level}), {start} {labels}"
    )


def _first_results(outcome: Outcome) -> list[Facts]:
    """Means of one draw, without intervals: those are in the report."""
    patients = len(outcome.patients["test"])
    if outcome.classes:
        return [
            {
                "task": outcome.task,
                "method": score.method,
                "metric": score.metric,
                "mean": None if score.value is None else round(score.value, 4),
                "test patients": patients,
            }
            for score in outcome.scores
        ]
    values: dict[tuple[str, str], list[float]] = {}
    for score in outcome.scores:
        if score.value is not None and score.metric in PRIMARY:
            values.setdefault((score.method, score.metric), []).append(score.value)
    return [
        {
            "task": outcome.task,
            "method": method,
            "metric": f"Dice per patient{', per slice' if metric == 'dice_2d' else ''}, mean over "
            "structures",
            "mean": round(sum(found) / len(found), 4),
            "test patients": patients,
        }
        for (method, metric), found in values.items()
    ]


def update_cards(
    config: SuiteConfig, outcomes: Sequence[Outcome], summary: Sequence[SummaryRow]
) -> list[Path]:
    """Write the summary of each encoder into its weights folder; files of others are left alone.

    Rows of an earlier evaluation stay unless the same task, method, k and metric was scored again.

    Returns:
        The folders.

    Raises:
        DataError: DATA-07 when a folder cannot be written.
    """
    synthetic = {o.task for o in outcomes if o.synthetic}
    done = []
    for name, source in config.weights.items():
        try:
            folder = find_folder(Path(source))
        except WeightsError:
            log.warning(
                "%s: %s is no weights folder of ours, its card is not updated", name, source
            )
            continue
        rows = {
            _identity(row): row
            for row in read_config(folder).get("card", {}).get("evaluations", [])
        }
        own = [_row(row, synthetic) for row in summary if row.weights == name and row.n]
        rows |= {_identity(row): row for row in own}
        update_card(folder, {"evaluations": list(rows.values())})
        log.info("%s: %d results written into %s", name, len(own), folder / "README.md")
        done.append(folder)
    return done


def _row(row: SummaryRow, synthetic: set[str]) -> Facts:
    interval = "-" if math.isnan(row.ci_low) else f"{row.ci_low:.3f} to {row.ci_high:.3f}"
    return {
        "task": row.task + (" (synthetic)" if row.task in synthetic else ""),
        "method": row.method,
        "k": row.k,
        "metric": row.metric if row.unit == "1" else f"{row.metric} ({row.unit})",
        "mean": None if math.isnan(row.mean) else round(row.mean, 4),
        "95 % interval": interval,
        "test patients": row.n,
        "p against random twin (Holm)": None if row.p_holm is None else round(row.p_holm, 5),
    }


def _identity(row: Facts) -> tuple[object, ...]:
    return row["task"], row["method"], row["k"], row["metric"]

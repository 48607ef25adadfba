"""`core-mri data statistics`: what weights saw, kept beside them; and how well they can tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from data_registry.schema import Split
from data_registry.terminal import parse, progress, table

if TYPE_CHECKING:
    from data_registry.slices import SliceDataset


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    """Keep what weights saw beside them, for whoever has the weights alone.

    They can then ask how like other scans are, and are warned of unlike ones. Pretraining does the
    same at its end.
    """

    weights: Annotated[Path, tyro.conf.Positional]
    """A weights folder, or a run folder that holds one."""
    registry: Path
    """Folder of the registry with the training data."""
    cohort: str = ""
    """The frozen cohort that was trained on; all training patients when not given."""
    where: str = ""
    """SQL condition on the columns, as the training had it."""
    slices: int = 10_000
    """Training slices that are embedded."""
    check: bool = False
    """Instead: how many volumes of the split below would be warned of. Nothing is written."""
    split: Split = "test"
    """Patients of --check."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: Words after ``core-mri data statistics``.

    Returns:
        The exit code.
    """
    options = parse(_Statistics, arguments, "statistics")
    return _check(options) if options.check else _write(options)


def _write(options: _Statistics) -> int:
    from core_mri.errors import DataError
    from core_mri.training_statistics import save_statistics
    from core_mri.weights import load_model
    from core_mri.weights.folder import find_folder, read_config, update_card
    from data_registry.similarity.features import EncoderFeatures
    from data_registry.similarity.training import training_statistics

    folder = find_folder(options.weights)
    maker = EncoderFeatures(load_model(str(folder), device=options.device), folder.name)
    try:
        held_out = _slices(options, "val")
    except DataError as error:
        if error.code != "DATA-09":
            raise
        held_out = None
    with progress("embedding slices") as on_progress:
        found = training_statistics(
            maker,
            read_config(folder)["sha256"],
            _slices(options, "train"),
            held_out,
            most_slices=options.slices,
            on_progress=on_progress,
        )
    path = save_statistics(found, folder)
    update_card(folder, {"statistics": found.card()})
    facts: dict[str, Any] = {
        "file": str(path),
        "slices_embedded": found.moments.n,
        **{f"training_{name}": count for name, count in found.population.items()},
        "threshold": found.threshold,
        "false_alarm_rate": found.false_alarm_rate,
        "calibrated_on": found.calibrated_on,
    }
    _show(facts, options, f"Statistics of {options.weights}")
    return 0


def _check(options: _Statistics) -> int:
    from core_mri.metrics import bootstrap_interval
    from core_mri.predictor import Predictor
    from core_mri.training_statistics import load_statistics
    from core_mri.weights import load_model
    from core_mri.weights.folder import find_folder, read_config

    folder = find_folder(options.weights)
    statistics = load_statistics(folder, read_config(folder)["sha256"])
    predictor = Predictor(load_model(str(folder), device=options.device))
    data = _slices(options, options.split)
    alarms: dict[str, list[bool]] = {}
    scores = []
    rows = list(data.volumes)
    with progress("judging volumes") as on_progress:
        for done, row in enumerate(rows):
            judgement = predictor.judge(data.registry.read(row))
            assert judgement is not None
            alarms.setdefault(row.subject_id, []).append(judgement.unlike)
            scores.append(judgement.score)
            if on_progress is not None:
                on_progress(done + 1, len(rows))
    shares = bootstrap_interval([float(np.mean(own)) for own in alarms.values()])
    facts: dict[str, Any] = {
        "split": options.split,
        "volumes": len(rows),
        "patients": shares.n,
        "median_score": float(np.median(scores)),
        "threshold": statistics.threshold,
        "promised_rate": statistics.false_alarm_rate,
        "alarms": sum(map(sum, alarms.values())),
        "rate_by_patient": shares.mean,
        "rate_low": shares.low,
        "rate_high": shares.high,
        "calibrated_on": statistics.calibrated_on,
    }
    _show(facts, options, f"Warnings of {options.weights}")
    return 0


def _slices(options: _Statistics, split: Split) -> SliceDataset:
    from data_registry.catalogue import Registry
    from data_registry.slices import SliceDataset

    return SliceDataset(
        Registry.open(options.registry), split=(split,), where=options.where, cohort=options.cohort
    )


def _show(facts: dict[str, Any], options: _Statistics, title: str) -> None:
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    lines = [
        (name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in facts.items()
    ]
    print(table(title, ("", ""), lines))

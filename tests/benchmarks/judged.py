"""Encoders pretrained at small scale and judged by validation patients, for the studies beside."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core_mri.config import load_config
from core_mri.errors import RunError
from core_mri.runs import Run, write_atomically
from downstream.cli import CONFIGS as SUITES
from downstream.config import SuiteConfig
from downstream.evaluation.suite import evaluate
from pretrain.config import PretrainConfig
from pretrain.train import train

Scores = dict[str, dict[str, float]]
"""Question to patient to score."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Where, and how encoders are judged."""

    registry: Path
    """Registry of the sources ``core_mri_data``, with the key of the suite."""
    out: Path
    """Folder of the study."""
    size: int = 64
    """Side of the views, px."""
    image_size: int = 96
    """Side of the slices of the tasks, px."""
    suite_steps: int = 200
    """Optimizer steps of a few-shot training."""
    draws: int = 2
    """Choices of five labelled patients."""
    tasks: tuple[str, ...] = ("left-ventricle", "hippocampus")
    """Of the suite ``core_mri_data``."""


@dataclass(frozen=True)
class Ended:
    """How one pretraining ended."""

    name: str
    folder: Path
    alarms: int
    error: str
    """Empty, or why it diverged; such a run is not judged."""


def pretrain_judged(config: PretrainConfig, name: str) -> Ended:
    """Pretrain unless that was done; a run that diverges is a result too."""
    error, failure = "", config.out / "failed.json"
    if failure.exists():
        error = json.loads(failure.read_text())["error"]
    elif not (config.out / "report.html").is_file():
        print(f"{name}: {config.steps} steps", flush=True)
        try:
            train(config)
        except RunError as caught:
            error = str(caught)
            write_atomically(failure, json.dumps({"error": error}).encode())
    lines = Run(config.out, main=False).metrics()
    alarms = int(max((line.get("alarms") or 0 for line in lines), default=0))
    return Ended(name, config.out, alarms, error)


def judge(study: Judged, runs: Mapping[str, Ended]) -> dict[str, Scores]:
    """Nearest neighbors, and Dice from five patients with the encoder frozen, of each run.

    Args:
        study: How.
        runs: By name; those that did not diverge.
    """
    scores = {name: _probed(run) for name, run in runs.items()}
    for name, own in _segmented(study, runs).items():
        scores[name].update(own)
    return scores


def _probed(run: Ended) -> Scores:
    found: Scores = defaultdict(dict)
    for cell in json.loads((run.folder / "results.json").read_text())["cells"]:
        if cell["method"] == "knn" and cell["weights"] == "pretrained":
            found[f"{cell['task']}, nearest neighbors"][cell["patient"]] = cell["value"]
    return dict(found)


def _segmented(study: Judged, runs: Mapping[str, Ended]) -> dict[str, Scores]:
    """Mean over structures and draws."""
    suite = load_config(SuiteConfig, SUITES / "suites" / "core_mri_data.yaml")
    tasks = [replace(task, test_split="val") for task in suite.tasks if task.name in study.tasks]
    suite = replace(
        suite,
        registry=study.registry,
        out=study.out / "suite",
        weights={name: str(run.folder / "weights") for name, run in runs.items()},
        tasks=tuple(tasks),
        baselines=(),
        tuning=(1.0,),
        steps=study.suite_steps,
        draws=study.draws,
        recipe=replace(
            suite.recipe, image_size=study.image_size, num_validation=0, shots_unit="patients"
        ),
    )
    results = json.loads((evaluate(suite) / "results.json").read_text())
    values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for cell in results["cells"]:
        if cell["metric"] == "dice" and not cell["twin"] and cell["value"] is not None:
            question = f"{cell['task']}, Dice"
            values[cell["weights"]][question][cell["patient"]].append(cell["value"])
    return {
        name: {
            task: {p: statistics.fmean(v) for p, v in own.items()} for task, own in tasks.items()
        }
        for name, tasks in values.items()
    }

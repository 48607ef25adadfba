"""Encoders pretrained at small scale and judged by validation patients, for the studies beside."""

from __future__ import annotations

import json
import multiprocessing
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from core_mri.config import load_config
from core_mri.errors import RunError
from core_mri.runs import Run, write_atomically
from downstream.cli import CONFIGS as SUITES
from downstream.config import SuiteConfig
from downstream.evaluation.suite import evaluate
from pretrain.config import PretrainConfig
from pretrain.train import train

Item = TypeVar("Item")
Result = TypeVar("Result")
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
    jobs: int = 1
    """Processes at once."""


@dataclass(frozen=True)
class Ended:
    """How one pretraining ended."""

    name: str
    folder: Path
    alarms: int
    error: str
    """Empty, or why it diverged; such a run is not judged."""
    model: str
    """Name of the encoder."""


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
    return Ended(name, config.out, alarms, error, config.model)


def side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], jobs: int
) -> list[Result]:
    """`function` of each item, in processes of their own when `jobs` is more than one."""
    if jobs == 1:
        return [function(item) for item in items]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        return list(pool.map(function, items))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def pretrain_all(study: Judged, configs: Mapping[str, PretrainConfig]) -> list[Ended]:
    """`pretrain_judged` of each, by name."""
    return side_by_side(_pretrain_named, configs.items(), study.jobs)


def _pretrain_named(named: tuple[str, PretrainConfig]) -> Ended:
    name, config = named
    return pretrain_judged(config, name)


def judge(study: Judged, runs: Mapping[str, Ended]) -> dict[str, Scores]:
    """Nearest neighbors, and Dice from five patients with the encoder frozen, of each run.

    Args:
        study: How.
        runs: By name; those that did not diverge.
    """
    evaluate_each(study, runs.values(), _on_validation(tasks_of(study)))
    return {name: {**probed(run), **_dice(study, run)} for name, run in runs.items()}


def judge_twins(study: Judged, runs: Mapping[str, Ended]) -> dict[str, Scores]:
    """The same of the random twin of each run, once `judge` is done."""
    return {
        name: {**probed(run, twin=True), **_dice(study, run, twin=True)}
        for name, run in runs.items()
    }


def probed(run: Ended, *, twin: bool = False) -> Scores:
    """Nearest neighbors of a pretraining's own report, of the encoder or of its random twin.

    The neighbors in pixels, which stand there too, are neither.
    """
    found: Scores = defaultdict(dict)
    for cell in json.loads((run.folder / "results.json").read_text())["cells"]:
        asked = cell["twin"] if twin else cell["weights"] == "pretrained"
        if cell["method"] == "knn" and asked:
            found[f"{cell['task']}, nearest neighbors"][cell["patient"]] = cell["value"]
    return dict(found)


def evaluate_each(study: Judged, runs: Iterable[Ended], suite: SuiteConfig) -> list[Path]:
    """Each run in a suite of its own.

    The first run of each model trains the random twin too, whose cells the others then reuse.

    Args:
        study: Where, and in how many processes.
        runs: Those that did not diverge.
        suite: What to do with each; folder and weights are replaced.

    Returns:
        The folders ``out/suite/NAME``, in the order of the runs.
    """
    runs = list(runs)
    folders = [study.out / "suite" / run.name for run in runs]
    first = {run.model: run for run in reversed(runs)}
    for wave in (True, False):
        suites = [
            replace(
                suite,
                out=folder,
                reuse=() if wave else (study.out / "suite" / first[run.model].name,),
                weights={run.name: str(run.folder / "weights")},
            )
            for run, folder in zip(runs, folders, strict=True)
            if (run is first[run.model]) is wave
        ]
        side_by_side(evaluate, suites, study.jobs)
    return folders


def tasks_of(study: Judged) -> SuiteConfig:
    """The chosen tasks of ``core_mri_data``, at the size of the study; no baselines, no tuning."""
    suite = load_config(SuiteConfig, SUITES / "suites" / "core_mri_data.yaml")
    return replace(
        suite,
        registry=study.registry,
        tasks=tuple(task for task in suite.tasks if task.name in study.tasks),
        baselines=(),
        tuning=(1.0,),
        steps=study.suite_steps,
        draws=study.draws,
        recipe=replace(suite.recipe, image_size=study.image_size),
    )


def _on_validation(suite: SuiteConfig) -> SuiteConfig:
    """Scored on validation patients, which then choose no step; shots are patients."""
    return replace(
        suite,
        tasks=tuple(replace(task, test_split="val") for task in suite.tasks),
        recipe=replace(suite.recipe, num_validation=0, shots_unit="patients"),
    )


def _dice(study: Judged, run: Ended, *, twin: bool = False) -> Scores:
    """Mean over structures and draws."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    results = json.loads((study.out / "suite" / run.name / "results.json").read_text())
    for cell in results["cells"]:
        if cell["metric"] == "dice" and cell["twin"] is twin and cell["value"] is not None:
            values[f"{cell['task']}, Dice"][cell["patient"]].append(cell["value"])
    return {
        task: {patient: statistics.fmean(v) for patient, v in own.items()}
        for task, own in values.items()
    }

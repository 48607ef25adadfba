"""Cells on the machines of a Ray cluster.

A cell is computed there as it would be here, with as many threads. The run's folder, the registry
and the weights must lie under the same paths everywhere.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from core_mri.config import load_config, to_mapping
from core_mri.devices import select_device
from core_mri.errors import CoreMRIError
from core_mri.launch import map_on_ray
from core_mri.runs import Run
from data_registry.catalogue import Registry
from downstream.config import Running, SuiteConfig
from downstream.evaluation.baselines import Baseline, all_cells, baselines
from downstream.evaluation.cells import Contender, TaskData
from downstream.evaluation.results import Outcome
from downstream.evaluation.setup import Failed, contenders, prepared

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """A cell by names."""

    contender: str
    task: str
    key: str


def cells_on_ray(
    config: SuiteConfig, jobs: Sequence[Job], run: Run, running: Running
) -> Iterator[tuple[Job, Outcome | CoreMRIError]]:
    """Compute cells; each outcome as its worker left it, or why there is none.

    Raises:
        RunError: RUN-02 when the cluster cannot be reached.
    """
    common = {
        "config": json.dumps(to_mapping(config)),  # structures are numbered in their order
        "embeddings": str((running.embeddings or config.out / "embeddings").absolute()),
        "embeddings_gb": running.embeddings_gb,
        "folder": str(Path.cwd()),
        "threads": torch.get_num_threads(),
    }
    log.info("%d cells on Ray at %s", len(jobs), running.ray)
    found = map_on_ray(
        f"{__name__}:work",
        [common | job._asdict() for job in jobs],
        address=running.ray,
        num_workers=running.workers,
        num_gpus=1 if select_device(config.device).type == "cuda" else 0,
        stopped=lambda: run.stop_requested,
    )
    for number, result in found:
        if isinstance(result, CoreMRIError):
            yield jobs[number], result
        else:
            yield jobs[number], load_config(Outcome, result)


def work(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Compute one cell in a worker; the outcome, a failed one too."""
    from downstream.evaluation.suite import Study

    os.chdir(payload["folder"])
    torch.set_num_threads(payload["threads"])
    config, registry, tasks = _inputs(payload["config"])
    running = Running(
        embeddings=Path(payload["embeddings"]), embeddings_gb=payload["embeddings_gb"]
    )
    contender = _contender(payload["config"], payload["contender"])
    data = tasks[payload["task"]]
    (cell,) = [c for c in all_cells(config, contender, data) if c.key == payload["key"]]
    study = Study(config, registry, (data,), iter((contender,)), running=running)
    outcome = study.outcome(cell, contender, data, Run(config.out, main=False), main=False)
    return dict(to_mapping(outcome))


@lru_cache(maxsize=1)
def _inputs(config_text: str) -> tuple[SuiteConfig, Registry, dict[str, TaskData]]:
    config = load_config(SuiteConfig, json.loads(config_text))
    registry = Registry.open(config.registry)
    tasks = {d.task.name: d for d in prepared(config, registry) if not isinstance(d, Failed)}
    return config, registry, tasks


@lru_cache(maxsize=1)
def _contender(config_text: str, name: str) -> Contender | Baseline:
    """Cells come encoder by encoder, so that one in memory is enough."""
    config, _, _ = _inputs(config_text)
    if name in config.baselines:
        return next(baseline for baseline in baselines(config) if baseline.name == name)
    for contender in contenders(config):
        if contender.name == name and isinstance(contender, Contender):
            return contender
    raise AssertionError(name)  # it was there when the cells were planned

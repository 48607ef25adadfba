"""How like the scans of a task are to what the weights saw, where the registry knows both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.weights.folder import CONFIG, find_folder, read_config
from data_registry.catalogue import Registry
from data_registry.similarity.history import kept

if TYPE_CHECKING:
    from core_mri.reports import Cell, Report
    from downstream.config import SuiteConfig

HEADING = "Likeness to the pretraining data"


def add_likeness(report: Report, config: SuiteConfig) -> None:
    """Add the newest distances of `core-mri data similarity`; nothing when there are none.

    A cohort named as the task is what was compared; weights are recognized by their tensors.
    """
    digests = {
        name: read_config(find_folder(Path(source)))["sha256"]
        for name, source in config.weights.items()
        if any((Path(source) / inside / CONFIG).is_file() for inside in ("", "weights"))
    }
    if not digests:
        return
    registry = Registry.open(config.registry)
    rows: list[dict[str, Cell]] = [
        {"task": task.name, "weights": name, **found}
        for name, digest in digests.items()
        for task in config.tasks
        for found in kept(registry, task.name, digest)
    ]
    if rows:
        report.add_table(
            HEADING,
            rows,
            "Cohorts named as the tasks, against what the weights saw. Null: the same between "
            "halves of the pretraining patients. A small distance promises no gain.",
        )

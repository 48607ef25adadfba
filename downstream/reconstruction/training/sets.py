"""Training, validation and test slices of a configuration; patients apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from core_mri.errors import DataError
from data_registry.catalogue import Registry
from data_registry.schema import Split
from downstream.cohort import check_disjoint
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.slices import MeasuredSlices, SimulatedSlices, Slices


@dataclass(frozen=True)
class Sets:
    """Slices by what they are for; None where there are none."""

    training: Slices
    validation: Slices | None
    test: Slices | None
    registry: Registry | None

    def describe(self) -> str:
        """Slices and patients, one line."""
        parts = []
        for name in ("training", "validation", "test"):
            slices: Slices | None = getattr(self, name)
            count, patients = (len(slices), len(set(slices.patients))) if slices else (0, 0)
            parts.append(f"{name} {count} slices of {patients} patients")
        kind = "simulated k-space" if self.training.simulated else "measured k-space"
        return f"{kind}: {', '.join(parts)}"


def load_sets(config: ReconstructionConfig) -> Sets:
    """The slices of a configuration.

    Raises:
        DataError: DATA-01 for files that are not there, DATA-08 for a patient in two splits,
            DATA-09 without a training slice, DATA-43 for a patient in two lists of files.
    """
    if config.registry is not None:
        registry = Registry.open(config.registry)
        where = "role = 'image'" + (f" AND ({config.where})" if config.where else "")
        check_disjoint(registry.volumes(where), "reconstruction")
        train = SimulatedSlices(registry, "train", config.where, config.simulation)
        val, test = _if_any(registry, "val", config), _if_any(registry, "test", config)
        return Sets(train, val, test, registry)
    lists = [_measured(paths) for paths in (config.train, config.validation, config.test)]
    check_apart([set(slices.patients) if slices else set() for slices in lists])
    assert lists[0] is not None
    return Sets(lists[0], lists[1], lists[2], None)


def check_apart(groups: Sequence[Collection[str]]) -> None:
    """No patient may be in two lists.

    Raises:
        DataError: DATA-43.
    """
    names = ("train", "validation", "test")
    for i, first in enumerate(groups):
        for j in range(i):
            if both := set(first) & set(groups[j]):
                raise DataError(
                    "DATA-43",
                    f"{len(both)} patients are in both lists of files, {names[j]} and {names[i]}.",
                    fix="Give every patient's files to one list.",
                )


def _if_any(
    registry: Registry, split: Split, config: ReconstructionConfig
) -> SimulatedSlices | None:
    try:
        return SimulatedSlices(registry, split, config.where, config.simulation)
    except DataError as error:
        if error.code != "DATA-09":
            raise
        return None


def _measured(paths: Sequence[Path]) -> MeasuredSlices | None:
    return MeasuredSlices(paths) if paths else None

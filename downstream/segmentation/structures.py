"""Structures of a task: by value, or by the names that the registry stores with the label maps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError

if TYPE_CHECKING:
    from data_registry.schema import VolumeRow
    from downstream.config import Task

Values = tuple[int, ...]


def named_values(label: VolumeRow) -> dict[str, Values]:
    """Structures of a label volume: name to its values, regions of several values last."""
    from data_registry.schema import LABEL_NAMES, LABEL_REGIONS

    facts = json.loads(label.facts)
    found: dict[str, Values] = {}
    for pair in str(facts.get(LABEL_NAMES, "")).split(";"):
        value, equals, name = pair.partition("=")
        if equals:
            found[name] = (*found.get(name, ()), int(value))
    for pair in str(facts.get(LABEL_REGIONS, "")).split(";"):
        name, equals, values = pair.rpartition("=")
        if equals:
            found[name] = tuple(int(value) for value in values.split(","))
    return found


def sided(names: Iterable[str]) -> list[str]:
    """Those of the names that say left or right."""
    return [name for name in names if {"left", "right"} & set(re.split("[^a-z]+", name.lower()))]


def without_side(name: str) -> str:
    """A name in lower case without its left or right: the same for both sides of a structure."""
    return " ".join(w for w in re.split("[^a-z0-9]+", name.lower()) if w not in ("left", "right"))


def stored_values(label: VolumeRow) -> Values | None:
    """Values that a label volume holds besides 0; None when the registry does not know."""
    from data_registry.schema import LABEL_VALUES

    told = json.loads(label.facts).get(LABEL_VALUES)
    return None if told is None else tuple(int(value) for value in told.split(";") if value)


def values_in(label: VolumeRow, task: Task) -> dict[str, Values]:
    """Values of each structure of a task in one label volume, in the order of `task.labels`.

    Equal names may have other values in another source, so every volume is asked for its own.

    Args:
        label: The label volume.
        task: As `with_labels` gives it.
    """
    if not task.by_name:
        return {name: (value,) for name, value in task.labels.items()}
    named = named_values(label)
    return {
        structure: tuple(
            sorted(
                value
                for name, values in named.items()
                if any(
                    _matches(name, pattern) for pattern in task.unite.get(structure, (structure,))
                )
                for value in values
            )
        )
        for structure in task.labels
    }


def with_labels(task: Task, labels: Sequence[VolumeRow]) -> Task:
    """A task by name with its structures and the values that masks written for it hold.

    A structure keeps the value that it has in all label volumes; where these disagree, or several
    values are united, structures count from 1.

    Args:
        task: The task; one with values is returned as it is.
        labels: Label volumes of its patients.

    Raises:
        ConfigError: CONFIG-05 when it has values too, label volumes have no names, none has a name
            that was asked for, or two structures have a value in common.
    """
    if not task.by_name:
        return task
    if task.labels:
        raise ConfigError(
            "CONFIG-05",
            f"task {task.name}: give labels, or label_names and unite, not both.",
        )
    known: dict[str, set[Values]] = {}
    plain: set[str] = set()
    for label in labels:
        for name, values in named_values(label).items():
            known.setdefault(name, set()).add(values)
            if len(values) == 1:
                plain.add(name)
    if not known:
        raise ConfigError(
            "CONFIG-05",
            f"task {task.name}: its {len(labels)} label volumes have no names of structures.",
            fix="Give labels with values, or ingest with label names.",
        )
    wanted: dict[str, set[Values]] = {}
    for pattern in task.label_names:
        names = [n for n in known if _matches(n, pattern) and (n in plain or n == pattern)]
        _check_found(task, pattern, names, known)
        wanted |= {name: known[name] for name in names if name not in task.unite}
    for structure, patterns in task.unite.items():
        for pattern in patterns:
            _check_found(task, pattern, [n for n in known if _matches(n, pattern)], known)
        wanted[structure] = {()}
    same = {next(iter(values)) for values in wanted.values() if len(values) == 1}
    keep = len(same) == len(wanted) and all(len(values) == 1 for values in same)
    numbered = {
        name: next(iter(values))[0] if keep else number
        for number, (name, values) in enumerate(wanted.items(), start=1)
    }
    found = replace(task, labels=numbered)
    for label in labels:
        _check_apart(label, found)
    return found


def _check_found(task: Task, pattern: str, names: Sequence[str], known: Iterable[str]) -> None:
    if not names:
        raise ConfigError(
            "CONFIG-05",
            f"task {task.name}: no label volume has a structure {pattern!r}; there are "
            f"{', '.join(known)}.",
        )


def _check_apart(label: VolumeRow, task: Task) -> None:
    owner: dict[int, str] = {}
    for structure, values in values_in(label, task).items():
        for value in values:
            if owner.setdefault(value, structure) != structure:
                raise ConfigError(
                    "CONFIG-05",
                    f"task {task.name}: value {value} of label volume {label.volume_id} is both "
                    f"{owner[value]!r} and {structure!r}.",
                    fix="Make one task of each: structures of a task exclude each other.",
                )


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.lower(), pattern.lower())

"""Patients that must not be pretrained on: of public benchmarks, of user lists, of registries."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError, DataError
from data_registry.catalogue import REGISTRY_FILE, Registry
from data_registry.database import connect
from data_registry.deidentify.identifiers import load_key, pseudonym
from data_registry.deny_list import open_deny_list

if TYPE_CHECKING:
    import pyarrow

NAMESPACE = "idc"
"""`subject_namespace` under which series of this index are meant to be ingested: equal PatientIDs
of two collections are then one person, as they are in a plan."""

_LISTED = {
    "collection_id": "collection", "PatientID": "patient_id",
    "StudyInstanceUID": "study_uid", "SeriesInstanceUID": "series_uid",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A public benchmark whose patients the index holds."""

    name: str
    collections: tuple[str, ...]
    why: str
    default: bool
    """Left out unless asked otherwise."""


@dataclass(frozen=True)
class Denied:
    """Patients of one list, and what it was."""

    name: str
    """Name of the benchmark or the file."""
    why: str
    digest: str
    """SHA-256 of the list's content."""
    patients: frozenset[str]
    """PatientIDs that the index holds."""


@cache
def tasks() -> dict[str, Task]:
    """The packaged benchmarks (`task_patients.yaml`) by name."""
    import yaml

    text = Path(__file__).with_name("task_patients.yaml").read_text(encoding="utf-8")
    return {
        name: Task(name, tuple(entry["collections"]), entry["why"], entry["default"])
        for name, entry in yaml.safe_load(text).items()
    }


def chosen_tasks(names: Sequence[str]) -> list[Task]:
    """The benchmarks meant by ``default``, ``all``, ``none`` or their names.

    Raises:
        ConfigError: CONFIG-01 when a name is unknown.
    """
    known = tasks()
    groups = {
        "default": [task for task in known.values() if task.default],
        "all": list(known.values()),
        "none": [],
    }
    found: dict[str, Task] = {}
    for name in names:
        if name not in groups and name not in known:
            raise unknown("benchmark", name, [*groups, *known])
        meant = groups[name] if name in groups else [known[name]]
        found |= {task.name: task for task in meant}
    return list(found.values())


def patients_of_tasks(chosen: Iterable[Task], series: pyarrow.Table) -> list[Denied]:
    """The patients of the collections of benchmarks."""
    collections, patients = _columns(series, "collection", "patient_id")
    return [
        Denied(
            task.name,
            task.why,
            hashlib.sha256(repr(task).encode()).hexdigest(),
            frozenset(
                p for c, p in zip(collections, patients, strict=True) if c in task.collections
            ),
        )
        for task in chosen
    ]


def patients_of_list(path: Path, series: pyarrow.Table, key_file: Path | None) -> Denied:
    """The patients of one list of a user.

    Args:
        path: A CSV or Parquet file with any of the columns collection_id, PatientID,
            StudyInstanceUID, SeriesInstanceUID (a row denies the patients that all its values
            fit); or a registry, or a deny list that `core-mri data dedupe` wrote, which hold
            keyed ids.
        series: All series of the index.
        key_file: Project key of keyed ids; that of a registry lies beside it by default.

    Raises:
        ConfigError: CONFIG-05 when keyed ids come without a key; as `load_key`.
        DataError: DATA-01 when there is no such list, DATA-34 when it cannot be understood.
    """
    if path.is_dir() and (path / REGISTRY_FILE).exists():
        registry = Registry.open(path)
        rows = registry.rows("SELECT DISTINCT subject_id FROM subjects WHERE split = 'test'")
        named = registry.rows("SELECT DISTINCT subject_namespace FROM sources")
        key_path = key_file or path.with_name(f"{path.name}.key")
        return _keyed(path, {r[0] for r in rows}, {r[0] for r in named}, series, key_path)
    if not path.is_file():
        raise DataError("DATA-01", f"no deny list at {path}.")
    table = _read(path)
    if "subject_id" in table.column_names:
        if key_file is None:
            raise ConfigError(
                "CONFIG-05",
                f"the ids in {path} are keyed.",
                fix="Give --key-file, the project key of the registry that wrote it.",
            )
        subjects = set(open_deny_list(path).subjects.values())
        return _keyed(path, subjects, set(), series, key_file)
    return _plain(path, table, series)


def unknown(what: str, name: str, known: Sequence[str]) -> ConfigError:
    """CONFIG-01 for a name that does not exist, with what was perhaps meant."""
    small = {one.lower(): one for one in known}
    close = [small[one] for one in difflib.get_close_matches(name.lower(), small, cutoff=0.5)]
    listed = ", ".join(known) if len(known) <= 45 else f"{len(known)}"
    return ConfigError(
        "CONFIG-01",
        f"no {what} {name!r}; there are {listed}.",
        fix=f"Perhaps you meant {' or '.join(map(repr, close))}." if close else "",
    )


def _plain(path: Path, table: pyarrow.Table, series: pyarrow.Table) -> Denied:
    given = [name for name in _LISTED if name in table.column_names]
    if not given:
        raise DataError(
            "DATA-34",
            f"{path} has none of the columns {', '.join(_LISTED)}; it has "
            f"{', '.join(table.column_names[:20])}.",
            fix="Name one of them in the first row.",
        )
    own = [_LISTED[name] for name in given]
    wanted = set(zip(*(map(_text, table.column(name).to_pylist()) for name in given), strict=True))
    rows = zip(*_columns(series, *own), strict=True)
    patients = series.column("patient_id").to_pylist()
    found = frozenset(p for row, p in zip(rows, patients, strict=True) if row in wanted)
    return Denied(path.name, "your list", _digest(path), found)


def _keyed(
    path: Path, subjects: set[str], namespaces: set[str], series: pyarrow.Table, key_file: Path
) -> Denied:
    key = load_key(key_file, create=False)
    collections, patients = _columns(series, "collection", "patient_id")
    people = set(zip(collections, patients, strict=True))
    found = frozenset(
        patient
        for collection, patient in people
        if any(
            pseudonym(key, "subject", namespace, patient) in subjects
            for namespace in {NAMESPACE, collection, *namespaces}
        )
    )
    digest = hashlib.sha256("\n".join(sorted(subjects)).encode()).hexdigest()
    return Denied(path.name, "test patients of your registry", digest, found)


def _read(path: Path) -> pyarrow.Table:
    import duckdb

    try:
        with connect() as connection:
            if path.suffix == ".parquet":
                return connection.read_parquet(os.fspath(path)).to_arrow_table()
            read = connection.read_csv(os.fspath(path), header=True, all_varchar=True)
            return read.to_arrow_table()
    except duckdb.Error as error:
        first = str(error).partition("\n")[0]
        raise DataError(
            "DATA-34",
            f"{path} is no deny list: {first}.",
            fix="Give a .csv or .parquet file with a column such as PatientID.",
        ) from error


def _columns(series: pyarrow.Table, *names: str) -> list[list[str]]:
    return [series.column(name).to_pylist() for name in names]


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

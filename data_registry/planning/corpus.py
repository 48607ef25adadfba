"""`plan_corpus`: a balanced choice of series from an index, the same for the same inputs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from data_registry.database import connect
from data_registry.deidentify.identifiers import load_key, pseudonym
from data_registry.label_words import regions as all_regions
from data_registry.planning.balance import water_filling_order
from data_registry.planning.deny_patients import (
    NAMESPACE,
    Denied,
    chosen_tasks,
    patients_of_list,
    patients_of_tasks,
    unknown,
)
from data_registry.planning.idc_index import SeriesIndex, read_index
from data_registry.planning.leave_out import reasons, wanted
from data_registry.planning.licence_names import licences_allowed, spdx_id
from data_registry.planning.series_labels import add_labels
from data_registry.splits import DEFAULT_FRACTIONS, Fractions, split_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow

LEVELS = ("region", "sequence", "vendor", "collection", "patient_id")
"""What a plan balances, from the outside in; the first four name a stratum."""
_NOT_CHOSEN = -1


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Inputs of a plan; with the index they determine every byte of it."""

    source: str = "idc"
    """``idc`` (the installed `idc-index-data`), or a folder with its files."""
    regions: tuple[str, ...] = ()
    """Regions, each with all that lies in it; empty for all, those without a name too."""
    licence: tuple[str, ...] = ("commercial-ok",)
    """``commercial-ok``, ``any-known``, or licences by SPDX id."""
    max_slices: int = 0
    """Slices at most; 0 for all that may be chosen."""
    seed: int = 0
    """Which series of equal standing, and which split, when there is no `key_file`."""
    balance: float = 1.0
    """0 (strata in proportion to what there is) to 1 (as equal as the data allow)."""
    exclude_collections: tuple[str, ...] = ()
    """Collections to leave out."""
    tasks: tuple[str, ...] = ("default",)
    """Benchmarks whose patients are left out: ``default``, ``all``, ``none`` or names."""
    deny_lists: tuple[Path, ...] = ()
    """Lists of patients to leave out, and registries whose test patients are."""
    min_slices: int = 5
    """Series of fewer slices are left out."""
    fractions: Fractions = DEFAULT_FRACTIONS
    """Parts of the patients in train, val and test."""
    key_file: Path | None = None
    """Project key: splits are then those that a registry with this key gives the patients, when
    their source has ``subject_namespace: idc``."""


@dataclass(frozen=True)
class Plan:
    """All series of an index, each with its place in the plan or the reason why it has none."""

    config: PlanConfig
    index: SeriesIndex
    denied: tuple[Denied, ...]
    series: pyarrow.Table
    """The index with labels, and the columns ``licence``, ``split``, ``stratum``, ``left_out`` (why
    it cannot be chosen; empty if it can), ``rank`` (0 is taken first; -1 is not chosen)."""

    @cached_property
    def chosen(self) -> pyarrow.Table:
        """The chosen series in the order of their rank."""
        import pyarrow.compute

        taken = self.series.filter(pyarrow.compute.field("rank") > _NOT_CHOSEN)
        return taken.sort_by("rank")

    @property
    def num_slices(self) -> int:
        """Slices chosen."""
        return sum(self.chosen.column("num_slices").to_pylist())

    def inputs(self) -> dict[str, Any]:
        """What determines the plan, without paths of this machine."""
        config = self.config
        return {
            "regions": sorted(config.regions) or "all",
            "licence": sorted(config.licence),
            "max_slices": config.max_slices,
            "seed": config.seed,
            "balance": config.balance,
            "min_slices": config.min_slices,
            "exclude_collections": sorted(config.exclude_collections),
            "left_out_patients": [
                {"list": one.name, "why": one.why, "sha256": one.digest} for one in self.denied
            ],
            "split_fractions": list(config.fractions),
            "split_key": _key_check(_split_key(config)),
            "index_sha256": self.index.sha256,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the inputs and the chosen series with licence, split and size."""
        digest = hashlib.sha256(json.dumps(self.inputs(), sort_keys=True).encode())
        columns = ("series_uid", "licence", "split", "stratum", "num_slices", "num_bytes")
        for row in zip(*(self.chosen.column(name).to_pylist() for name in columns), strict=True):
            digest.update(("\t".join(map(str, row)) + "\n").encode())
        return digest.hexdigest()

    def sql(self, query: str) -> pyarrow.Table:
        """The answer of one SELECT over the table ``series``, which is all it can see.

        Raises:
            ConfigError: CONFIG-01 when the query is wrong, or does more than select.
        """
        import duckdb

        try:
            kinds = [statement.type for statement in self._connection.extract_statements(query)]
            if kinds != [duckdb.StatementType.SELECT]:
                raise ConfigError("CONFIG-01", "the query must be one SELECT.")
            return self._connection.sql(query).to_arrow_table()
        except duckdb.Error as error:
            first = str(error).partition("\n")[0]
            raise ConfigError("CONFIG-01", f"the query cannot be run: {first}.") from error

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """One for all queries: it takes longer to open than most of them to run."""
        connection = connect()
        connection.register("series", self.series)
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        return connection


def plan_corpus(config: PlanConfig) -> Plan:
    """Choose series.

    Raises:
        ConfigError: CONFIG-01 when a region, licence, collection or benchmark is unknown, or a
            number out of range; as `read_index` and `patients_of_list`.
        DataError: As `read_index` and `patients_of_list`.
    """
    _check_numbers(config)
    index = read_index(config.source)
    series = add_labels(index.table, index.locations)
    names = {name: spdx_id(name) for name in set(series.column("licence_name").to_pylist())}
    series = series.append_column(
        "licence", [[names[name] for name in series.column("licence_name").to_pylist()]]
    )
    _check_names(config, series)
    denied = (
        *patients_of_tasks(chosen_tasks(config.tasks), series),
        *(patients_of_list(path, series, config.key_file) for path in config.deny_lists),
    )
    left_out = reasons(
        series,
        species=index.species,
        min_slices=config.min_slices,
        excluded=config.exclude_collections,
        licences=licences_allowed(config.licence, set(names.values())),
        denied=denied,
        regions=config.regions,
    )
    series = series.append_column("split", [_splits(config, series)])
    series = series.append_column("stratum", [_strata(series)])
    series = series.append_column("left_out", [left_out.tolist()])
    series = series.append_column("rank", [_ranks(config, series, left_out)])
    return Plan(config, index, denied, series)


def check_met(plan: Plan) -> None:
    """Whether the plan holds what was asked for.

    Raises:
        DataError: DATA-33 with everything that is short, and the largest plan that can be met.
    """
    config = plan.config
    columns = (plan.series.column(n).to_pylist() for n in ("region", "left_out", "num_slices"))
    rows = [
        (region, reason, slices)
        for region, reason, slices in zip(*columns, strict=True)
        if not config.regions or wanted(region, config.regions)
    ]
    eligible = sum(slices for _, reason, slices in rows if not reason)
    problems, empty = [], []
    for region in config.regions:
        own = [(reason, slices) for name, reason, slices in rows if wanted(name, {region})]
        if all(reason for reason, _ in own):
            empty.append(region)
            problems.append(f"no series of {region} may be chosen ({_lost(own) or 'it has none'})")
    if eligible < max(config.max_slices, 1):
        asked = f"{config.max_slices:,} slices were asked for and " if config.max_slices else ""
        what = f"{', '.join(config.licence)}; {', '.join(config.regions) or 'all regions'}"
        problems.append(f"{asked}{eligible:,} slices may be chosen ({what})")
    if not problems:
        return
    parts = [f"leave {', '.join(empty)} out of --regions"] if empty else []
    if eligible < config.max_slices:
        parts.append(f"ask for --max-slices {eligible}, the largest plan")
    chosen_away = ("licence ", "patient of ", "collection ")
    yours = _lost([(why, n) for _, why, n in rows if why.startswith(chosen_away)])
    raise DataError(
        "DATA-33",
        f"the plan cannot be met: {'; '.join(problems)}.",
        fix=(f"To get a plan, {' and '.join(parts)}. " if eligible else "")
        + f"Left out by your choice: {yours or 'nothing'}.",
    )


def _lost(rows: Iterable[tuple[str, int]]) -> str:
    """The reasons that cost most slices."""
    lost: Counter[str] = Counter()
    for reason, slices in rows:
        lost[reason] += slices
    return "; ".join(f"{slices:,} by {reason!r}" for reason, slices in lost.most_common(4))


def _ranks(
    config: PlanConfig, series: pyarrow.Table, left_out: npt.NDArray[np.object_]
) -> npt.NDArray[np.int64]:
    """Copies come after all that were acquired; the plan ends before the first that is too much."""
    may = np.flatnonzero(left_out == "")
    ranks = np.full(len(left_out), _NOT_CHOSEN, dtype=np.int64)
    if not len(may):
        return ranks
    uids = series.column("series_uid").to_pylist()
    ties = np.array([_tie(config.seed, uids[i]) for i in may], dtype=np.uint64)
    sizes = series.column("num_slices").to_numpy()[may]
    levels = [np.array(series.column(name).to_pylist(), dtype=str)[may] for name in LEVELS]
    copied = np.array(series.column("kind").to_pylist(), dtype=str)[may] == "copy"
    parts = []
    for part in (np.flatnonzero(~copied), np.flatnonzero(copied)):
        if len(part):
            own = [level[part] for level in levels]
            order = water_filling_order(own, sizes[part], ties[part], config.balance)
            parts.append(part[order])
    order = np.concatenate(parts)
    if config.max_slices:
        order = order[: np.searchsorted(np.cumsum(sizes[order]), config.max_slices, side="right")]
    ranks[may[order]] = np.arange(len(order))
    return ranks


def _tie(seed: int, uid: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{uid}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _splits(config: PlanConfig, series: pyarrow.Table) -> list[str]:
    """Drawn as a registry draws them, from the patient alone, so that no later plan moves one."""
    key = _split_key(config)
    patients = series.column("patient_id").to_pylist()
    drawn = {
        patient: split_of(key, pseudonym(key, "subject", NAMESPACE, patient), config.fractions)
        for patient in set(patients)
    }
    return [drawn[patient] for patient in patients]


def _strata(series: pyarrow.Table) -> list[str]:
    columns = (series.column(name).to_pylist() for name in LEVELS[:-1])
    return [" / ".join(row) for row in zip(*columns, strict=True)]


def _split_key(config: PlanConfig) -> bytes:
    if config.key_file is not None:
        return load_key(config.key_file, create=False)
    return hashlib.sha256(f"core-mri plan {config.seed}".encode()).digest()


def _key_check(key: bytes) -> str:
    return pseudonym(key, "plan")


def _check_numbers(config: PlanConfig) -> None:
    wrong = {
        "--max-slices": config.max_slices < 0,
        "--min-slices": config.min_slices < 1,
        "--balance": not 0 <= config.balance <= 1,
        "--fractions": min(config.fractions) < 0 or abs(sum(config.fractions) - 1) > 1e-9,
    }
    if any(wrong.values()):
        raise ConfigError(
            "CONFIG-01",
            f"{', '.join(flag for flag, bad in wrong.items() if bad)}: slices are counted from 0 "
            "(at least 1 a series), balance lies in 0..1, fractions are three parts of 1.",
        )


def _check_names(config: PlanConfig, series: pyarrow.Table) -> None:
    for name in config.regions:
        if name not in all_regions():
            raise unknown("region", name, [*all_regions(), "all"])
    collections = sorted(set(series.column("collection").to_pylist()))
    for name in config.exclude_collections:
        if name not in collections:
            raise unknown("collection", name, collections)

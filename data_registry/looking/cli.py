"""`core-mri data ls | stats | query | inspect`: what a registry holds."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from core_mri.errors import ConfigError
from data_registry.terminal import parse, progress, table

if TYPE_CHECKING:
    import pyarrow

    from data_registry.catalogue import Registry


@dataclass(frozen=True, kw_only=True)
class _Stats:
    """Count the volumes, slices and subjects of a registry, and what is in quarantine."""

    registry: Path
    """Folder of the registry."""
    json: bool = False
    """Print a JSON object."""
    html: Path | None = None
    """Write a page with tables and plots: one file, which loads nothing."""


@dataclass(frozen=True, kw_only=True)
class _List:
    """List the volumes of a registry."""

    registry: Path
    """Folder of the registry."""
    where: str = ""
    """SQL condition on the columns, such as "region = 'knee' and split = 'train'"."""
    cohort: str = ""
    """Only the volumes of a frozen cohort."""
    limit: int = 50
    """Lines at most; 0 for all."""
    json: bool = False
    """Print one JSON object a volume, with all columns."""


@dataclass(frozen=True, kw_only=True)
class _Query:
    """Ask a registry, and freeze the answer as a cohort: a named choice of volumes with a hash.

    With a name that exists it tells whether the same query would choose the same today. Without
    anything it lists the cohorts.
    """

    registry: Path
    """Folder of the registry."""
    where: str = ""
    """SQL condition on the columns of volumes, such as "region = 'knee' and not synthetic"."""
    sql: str = ""
    """Instead: one SELECT over volumes, slices, subjects, studies, sources, splits, files,
    quarantine, shards, cohort_members. For a cohort its answer needs a column volume_id."""
    name: str = ""
    """Name of the cohort. What is frozen never changes."""
    exclude_noncommercial: bool = False
    """Leave out sources whose licence does not permit commercial use in so many words."""
    limit: int = 50
    """Lines at most of an answer to --sql; 0 for all."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, kw_only=True)
class _Inspect:
    """Draw contact sheets: slices of each volume, with the letters of the patient's sides."""

    registry: Path
    """Folder of the registry."""
    out: Path
    """File to write: .png (one sheet, a row a volume) or .html (a page)."""
    where: str = ""
    """SQL condition on the columns, such as "region = 'knee' and split = 'train'"."""
    cohort: str = ""
    """Only the volumes of a frozen cohort."""
    slices: Annotated[int, tyro.conf.arg(metavar="N")] = 6
    """Slices of each volume, evenly spread."""
    limit: int = 24
    """Volumes at most, evenly spread over all that fit."""
    json: bool = False
    """Print a JSON object."""


def stats_main(arguments: Sequence[str]) -> int:
    """`core-mri data stats`."""
    from data_registry.catalogue import Registry
    from data_registry.similarity.history import newest

    options = parse(_Stats, arguments, "stats")
    registry = Registry.open(options.registry)
    stats = registry.stats()
    similarity = newest(registry)
    if options.json:
        print(json.dumps({**stats, **({"similarity": similarity} if similarity else {})}, indent=2))
    else:
        print(stats_table(options.registry, stats))
        if similarity:
            lines = [
                (row["task"], row["pretraining"], f"{row['value']:.3g}" if row["value"] else "",
                 row["features"], f"{row['patients']}/{row['pretraining_patients']}",
                 f"{row['shared_patients']}", row["when"])
                for row in similarity
            ]  # fmt: skip
            head = ("task", "pretraining", "KID", "features", "patients", "shared", "when")
            print(table("\nLikeness of tasks to pretraining data, newest", head, lines))
    if options.html is not None:
        from data_registry.looking.statistics_page import statistics_page

        statistics_page(registry).write(options.html)
        if not options.json:
            print(f"\nPage: {options.html}")
    return 0


def stats_table(registry: Path, stats: Mapping[str, Any]) -> str:
    """The answer of `Registry.stats` as text."""
    numbers = [
        f"{stats[k]} {k}"
        for k in ("volumes", "slices", "subjects", "synthetic", "labels", "kspace")
    ]
    lines: list[tuple[str, str, str]] = []
    for group in ("region", "sequence", "plane", "source", "split"):
        for i, (name, count) in enumerate(stats[f"by_{group}"].items()):
            lines.append((group if i == 0 else "", name, str(count)))
    for i, (name, count) in enumerate(stats["quarantined"].items()):
        lines.append(("quarantined" if i == 0 else "", name, str(count)))
    return table(f"{registry}: {', '.join(numbers)}", ("by", "", "volumes"), lines)


def ls_main(arguments: Sequence[str]) -> int:
    """`core-mri data ls`."""
    from data_registry.catalogue import Registry
    from data_registry.cohorts import condition

    options = parse(_List, arguments, "ls")
    registry = Registry.open(options.registry)
    where = condition(registry, options.cohort, options.where)
    count = f"SELECT count(*) AS n FROM volumes {f'WHERE {where}' if where else ''}"
    total = registry.sql(count)["n"][0].as_py()
    rows = registry.volumes(where, limit=options.limit)
    if options.json:
        for row in rows:
            print(json.dumps(dataclasses.asdict(row)))
        return 0
    columns = ("subject", "split", "role", "region", "sequence", "plane", "size", "mm", "source")
    lines = [
        (
            row.subject_id[:8],
            row.split,
            row.role,
            row.region,
            row.sequence,
            row.plane,
            f"{row.num_slices}x{row.rows}x{row.columns}",
            "x".join(f"{s:.3g}" for s in row.spacing_mm),
            row.source + (" (synthetic)" if row.synthetic else ""),
        )
        for row in rows
    ]
    print(table(f"{len(rows)} of {total} volumes in {options.registry}", columns, lines))
    return 0


def query_main(arguments: Sequence[str]) -> int:
    """`core-mri data query`."""
    from data_registry.catalogue import Registry
    from data_registry.cohorts import names, preview

    options = parse(_Query, arguments, "query")
    registry = Registry.open(options.registry)
    if options.exclude_noncommercial:
        options = _commercial(registry, options)
    if options.name:
        return _cohort(registry, options)
    if options.where:
        chosen = preview(registry, options.where, sql=options.sql)
        found = {
            "volumes": chosen.num_volumes, "slices": chosen.num_slices, "sha256": chosen.digest,
            "licence": chosen.licence,
        }  # fmt: skip
        if options.json:
            print(json.dumps(found))
            return 0
        print(f"{chosen.num_volumes} volumes, {chosen.num_slices} slices, sha256 {chosen.digest}")
        if chosen.licence:
            print(f"licence {chosen.licence}")
        print("\nNext: --name NAME freezes them as a cohort.")
        return 0
    if options.sql:
        _show_answer(registry.sql(options.sql), options)
        return 0
    _list_cohorts(registry, names(registry), options)
    return 0


def inspect_main(arguments: Sequence[str]) -> int:
    """`core-mri data inspect`."""
    from data_registry.catalogue import Registry
    from data_registry.looking.contact_sheets import write_sheets

    options = parse(_Inspect, arguments, "inspect")
    for name in ("slices", "limit"):
        if getattr(options, name) < 1:
            raise ConfigError("CONFIG-01", f"--{name} must be at least 1.")
    with progress("drawing volumes") as on_progress:
        shown, total = write_sheets(
            Registry.open(options.registry),
            options.out,
            where=options.where,
            cohort=options.cohort,
            num_slices=options.slices,
            limit=options.limit,
            on_progress=on_progress,
        )
    if options.json:
        print(json.dumps({"shown": shown, "volumes": total, "out": str(options.out)}))
    else:
        print(f"{shown} of {total} volumes drawn to {options.out}.")
    return 0


def noncommercial_line(left_out: Mapping[str, int]) -> str:
    """What `--exclude-noncommercial` cost, in a line."""
    by_source = ", ".join(f"{name} {count}" for name, count in left_out.items())
    total = sum(left_out.values())
    return f"volumes left out, no licence for commercial use: {total} ({by_source})."


def _commercial(registry: Registry, options: _Query) -> _Query:
    """The query without sources that do not permit commercial use; tells what that costs."""
    from data_registry.cohorts import members
    from data_registry.governance.propagation import noncommercial_cost, only_commercial

    if not (options.where or options.sql):
        raise ConfigError(
            "CONFIG-05",
            "--exclude-noncommercial narrows a query, and there is none.",
            fix='Give --where; --where "true" means all volumes.',
        )
    where = members(registry, options.where, sql=options.sql)
    if left_out := noncommercial_cost(registry, where):
        print(noncommercial_line(left_out), file=sys.stderr)
    condition = only_commercial(registry)
    if options.where:
        return dataclasses.replace(options, where=f"({options.where}\n) AND {condition}")
    chosen = f"SELECT volume_id FROM volumes WHERE {condition}"
    sql = f"SELECT * FROM ({options.sql}\n) WHERE volume_id IN ({chosen})"
    return dataclasses.replace(options, sql=sql)


def _cohort(registry: Registry, options: _Query) -> int:
    """Freeze a cohort, or tell whether its query would choose the same today."""
    from data_registry.cohorts import compare, freeze, load, names

    known = options.name in names(registry)
    if not known and not (options.where or options.sql):
        load(registry, options.name)  # says which cohorts there are
    if known:
        cohort = load(registry, options.name)
        same_query = (options.where, options.sql) in (("", ""), (cohort.where, cohort.sql))
        if not same_query:
            raise ConfigError(
                "CONFIG-03",
                f"cohort {cohort.name} was frozen with another query: "
                f"{cohort.where or cohort.sql}.",
                fix="A cohort never changes: choose another name.",
            )
    else:
        cohort = freeze(registry, options.name, options.where, sql=options.sql)
    change = compare(registry, cohort)
    if options.json:
        print(json.dumps({**dataclasses.asdict(cohort), "frozen_now": not known, **vars(change)}))
        return 0
    how = "was frozen before" if known else "is frozen"
    print(
        f"cohort {cohort.name} {how}: {cohort.num_volumes} volumes, {cohort.num_slices} slices, "
        f"sha256 {cohort.digest}"
    )
    for removal in cohort.removals:
        print(
            f"changed {removal.when}: {removal.volumes} volumes were withdrawn, its sha256 was "
            f"{removal.digest_before}"
        )
    if cohort.licence:
        print(f"licence {cohort.licence}")
    if change.more or change.fewer:
        print(f"the same query now gives {change.more} more and {change.fewer} fewer volumes.")
    elif known:
        print("the same query gives the same volumes now.")
    if change.missing:
        print(f"{change.missing} of its volumes are no longer in the registry.")
    return 0


def _show_answer(answer: pyarrow.Table, options: _Query) -> None:
    shown = answer.slice(0, options.limit) if options.limit else answer
    rows = shown.to_pylist()
    if options.json:
        for row in rows:
            print(json.dumps(row, default=_plain))
        return
    lines = [[str(value) for value in row.values()] for row in rows]
    print(table(f"{len(rows)} of {len(answer)} rows", answer.column_names, lines))


def _plain(value: object) -> object:
    """Sums come from DuckDB as decimals, and some other types as their text."""
    return int(value) if isinstance(value, Decimal) and value == int(value) else str(value)


def _list_cohorts(registry: Registry, known: Sequence[str], options: _Query) -> None:
    from data_registry.cohorts import load

    cohorts = [load(registry, name) for name in known]
    if options.json:
        for cohort in cohorts:
            print(json.dumps(dataclasses.asdict(cohort)))
        return
    lines = [
        (
            c.name,
            str(c.num_volumes),
            str(c.num_slices),
            c.digest[:12],
            c.removals[-1].when if c.removals else "",
            c.where or c.sql,
        )
        for c in cohorts
    ]
    columns = ("cohort", "volumes", "slices", "sha256", "changed", "query")
    print(table(f"{len(cohorts)} cohorts in {registry.path}", columns, lines))

"""Cohorts: named choices of volumes, frozen with a hash, so that a result names its data exactly.

A cohort is one file `cohorts/NAME.parquet` of the registry, written once: what it holds, the query
that chose it, and SHA-256 over the sorted lines ``volume_id pixel_hash``. Only a patient who is
withdrawn leaves it, and it says when. The view `cohort_members` has them all, so any condition may
say ``volume_id IN (SELECT volume_id FROM cohort_members WHERE cohort = 'brains')``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError, DataError
from data_registry.governance.audit_log import append
from data_registry.governance.licences import mixture
from data_registry.shards import PARTIAL, cannot_write, fsync

if TYPE_CHECKING:
    import pyarrow

    from data_registry.catalogue import Registry

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_METADATA = b"core-mri cohort"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The volumes that a query chooses now."""

    volumes: pyarrow.Table
    """Columns volume_id and pixel_hash, in the order of the ids."""
    num_slices: int
    digest: str
    """SHA-256 over the sorted lines ``volume_id pixel_hash``."""
    licence: str
    """SPDX expression of all of it; empty when nothing is chosen."""

    @property
    def num_volumes(self) -> int:
        """Number of volumes."""
        return len(self.volumes)


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A frozen choice of volumes."""

    name: str
    where: str
    """The condition that chose it, or empty."""
    sql: str
    """The SELECT that chose it, or empty."""
    digest: str
    """As `Selection.digest`."""
    num_volumes: int
    num_slices: int
    licence: str = ""
    """SPDX expression of all of it; empty in cohorts of older versions."""
    removals: tuple[Removal, ...] = ()
    """When patients were withdrawn; the digest is that of what is left."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Volumes that left a cohort, because their patient was withdrawn from the registry."""

    when: str
    """UTC, ISO 8601."""
    volumes: int
    digest_before: str
    """Results made before name the cohort by it."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the query of a cohort would give today."""

    more: int
    """Volumes that it chooses now and did not then."""
    fewer: int
    """The other way round."""
    missing: int
    """Volumes of the cohort that the registry no longer holds."""


def preview(registry: Registry, where: str = "", *, sql: str = "") -> Selection:
    """What a query chooses.

    Args:
        registry: The registry.
        where: SQL condition on the columns of `VolumeRow`.
        sql: Instead: one SELECT whose answer has a column volume_id.

    Raises:
        ConfigError: CONFIG-01 for a wrong query, CONFIG-05 for both or none of the two.
    """
    chosen = registry.sql(
        "SELECT volume_id, pixel_hash, num_slices, licence FROM volumes "
        f"WHERE ({members(registry, where, sql=sql)}\n) ORDER BY volume_id"
    )
    licences = chosen["licence"].unique().to_pylist()
    volumes = chosen.select(["volume_id", "pixel_hash"])
    return Selection(
        volumes=volumes,
        num_slices=sum(chosen.column("num_slices").to_pylist()),
        digest=_digest(volumes),
        licence=mixture(licences) if licences else "",
    )


def members(registry: Registry, where: str = "", *, sql: str = "") -> str:
    """The SQL condition on volumes that a query means.

    Args:
        registry: The registry.
        where: As `preview`.
        sql: As `preview`.

    Raises:
        ConfigError: As `preview`.
    """
    if bool(where) == bool(sql):
        raise ConfigError(
            "CONFIG-05", "a cohort is chosen by a condition or by a SELECT: give one."
        )
    if not sql:
        return where
    columns = registry.sql(f"SELECT * FROM ({sql}\n) LIMIT 0").column_names
    if "volume_id" not in columns:
        raise ConfigError(
            "CONFIG-01",
            f"the SELECT gives {', '.join(columns)}: a cohort needs volume_id among them.",
        )
    return f"volume_id IN (SELECT volume_id FROM ({sql}\n))"


def freeze(registry: Registry, name: str, where: str = "", *, sql: str = "") -> Cohort:
    """Write a cohort down; it never changes again, but for patients who are withdrawn.

    Args:
        registry: The registry.
        name: Letters, digits, ``.``, ``_`` and ``-``.
        where: As `preview`.
        sql: As `preview`.

    Raises:
        ConfigError: CONFIG-03 when there is a cohort of that name, CONFIG-01 for another kind of
            name, and as `preview`.
        DataError: DATA-09 when nothing is chosen, DATA-07 when it cannot be written.
    """
    path = _path(registry, name)
    chosen = preview(registry, where, sql=sql)
    if not chosen.num_volumes:
        raise DataError(
            "DATA-09",
            f"no volume of {registry.path} fits, so there is no cohort {name}.",
            fix=f"Look at `core-mri data stats --registry {registry.path}`.",
        )
    cohort = Cohort(
        name=name,
        where=where,
        sql=sql,
        digest=chosen.digest,
        num_volumes=chosen.num_volumes,
        num_slices=chosen.num_slices,
        licence=chosen.licence,
    )
    aside = path.with_name(f"{PARTIAL}{name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        _write(cohort, chosen.volumes, aside)
        os.link(aside, path)  # unlike a rename it never takes the place of another
        fsync(path.parent)
    except FileExistsError:
        raise ConfigError(
            "CONFIG-03",
            f"{registry.path} has a cohort {name} already, and cohorts never change.",
            fix="Choose another name.",
        ) from None
    except OSError as error:
        raise cannot_write(error, f"cohort {name}") from error
    finally:
        aside.unlink(missing_ok=True)
    if _num_missing(registry, name):  # asked once the file is there for others to see
        path.unlink()
        raise DataError(
            "DATA-22",
            f"a patient of cohort {name} was withdrawn while it was being frozen.",
            fix="Run the same command again.",
        )
    append(
        registry.path,
        "freeze",
        {"cohort": name, "volumes": chosen.num_volumes, "sha256": chosen.digest},
    )
    return cohort


def load(registry: Registry, name: str) -> Cohort:
    """A frozen cohort.

    Raises:
        ConfigError: CONFIG-02 when there is none of that name.
        DataError: DATA-08 when its file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    path = _path(registry, name)
    if not path.is_file():
        known = ", ".join(names(registry)) or "none"
        raise ConfigError("CONFIG-02", f"{registry.path} has no cohort {name}; there are: {known}.")
    try:
        table = pyarrow.parquet.read_table(path)
        cohort = _parse(table.schema.metadata[_METADATA])
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _broken(path) from error
    if _digest(table) != cohort.digest or cohort.name != name:
        raise _broken(path)
    return cohort


def withdraw(
    registry: Registry, volumes: Collection[str], words: Collection[str], when: str
) -> list[str]:
    """Take volumes out of all cohorts; done again it changes nothing.

    Args:
        registry: The registry.
        volumes: Their ids.
        words: Ids that the text of a query must not keep.
        when: For `Removal`.

    Returns:
        Names of the cohorts that changed.

    Raises:
        DataError: DATA-07 when a cohort cannot be written, and as `load`.
    """
    import pyarrow.compute
    import pyarrow.parquet

    changed = []
    for name in names(registry):
        path = _path(registry, name)
        table = pyarrow.parquet.read_table(path)
        gone = pyarrow.compute.is_in(table["volume_id"], pyarrow.array(sorted(volumes)))
        cohort = load(registry, name)
        where, sql = (_without(text, words) for text in (cohort.where, cohort.sql))
        num_gone = pyarrow.compute.sum(gone).as_py() or 0
        if not num_gone and (where, sql) == (cohort.where, cohort.sql):
            continue
        left = table.filter(pyarrow.compute.invert(gone)).select(["volume_id", "pixel_hash"])
        removal = Removal(when=when, volumes=num_gone, digest_before=cohort.digest)
        slices = (
            "SELECT coalesce(sum(num_slices), 0)::BIGINT AS n FROM volumes WHERE volume_id IN "
            "(SELECT volume_id FROM cohort_members WHERE cohort = ?) "
            "AND NOT list_contains(?, volume_id)"
        )
        new = dataclasses.replace(
            cohort,
            where=where,
            sql=sql,
            digest=_digest(left),
            num_volumes=len(left),
            num_slices=registry.sql(slices, [name, sorted(volumes)])["n"][0].as_py(),
            removals=(*cohort.removals, removal),
        )
        aside = path.with_name(f"{PARTIAL}{name}.{os.getpid()}")
        try:
            _write(new, left, aside)
            aside.replace(path)
            fsync(path.parent)
        except OSError as error:
            raise cannot_write(error, f"cohort {name}") from error
        changed.append(name)
    return changed


def names(registry: Registry) -> list[str]:
    """Names of all cohorts."""
    return sorted(path.stem for path in (registry.path / "cohorts").glob("[!.]*.parquet"))


def compare(registry: Registry, cohort: Cohort) -> Change:
    """Whether the query of a cohort would still choose the same.

    Raises:
        ConfigError: As `preview`.
    """
    now = set(preview(registry, cohort.where, sql=cohort.sql).volumes["volume_id"].to_pylist())
    members = "SELECT volume_id FROM cohort_members WHERE cohort = ?"
    then = set(registry.sql(members, [cohort.name])["volume_id"].to_pylist())
    return Change(
        more=len(now - then), fewer=len(then - now), missing=_num_missing(registry, cohort.name)
    )


def condition(registry: Registry, cohort: str, where: str = "") -> str:
    """The SQL condition on volumes that means a cohort, all of it, and `where`.

    Args:
        registry: The registry.
        cohort: Name of a cohort; empty means all volumes.
        where: Further condition, or empty.

    Raises:
        ConfigError: As `load`.
        DataError: As `load`; DATA-09 when the registry no longer holds all of the cohort.
    """
    parts = [f"({where}\n)"] if where else []
    if cohort:
        load(registry, cohort)
        if missing := _num_missing(registry, cohort):
            raise DataError(
                "DATA-09",
                f"{missing} volumes of cohort {cohort} are no longer in {registry.path}.",
                fix="Ingest their files again, or freeze a new cohort.",
            )
        parts.append(
            f"volume_id IN (SELECT volume_id FROM cohort_members WHERE cohort = '{cohort}')"
        )
    return " AND ".join(parts)


def _write(cohort: Cohort, volumes: pyarrow.Table, path: Path) -> None:
    import pyarrow.parquet

    table = volumes.append_column("cohort", [[cohort.name] * len(volumes)])
    text = json.dumps(dataclasses.asdict(cohort))
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({_METADATA: text}), path, compression="zstd"
    )
    fsync(path)


def _parse(text: bytes) -> Cohort:
    content = json.loads(text)
    removals = tuple(Removal(**removal) for removal in content.pop("removals", ()))
    return Cohort(**content, removals=removals)


def _without(text: str, words: Collection[str]) -> str:
    for word in words:
        text = text.replace(word, "withdrawn")
    return text


def _num_missing(registry: Registry, name: str) -> int:
    query = (
        "SELECT count(*) AS n FROM cohort_members WHERE cohort = ? "
        "AND volume_id NOT IN (SELECT volume_id FROM volumes)"
    )
    return int(registry.sql(query, [name])["n"][0].as_py())


def _digest(volumes: pyarrow.Table) -> str:
    digest = hashlib.sha256()
    columns = (volumes.column(name).to_pylist() for name in ("volume_id", "pixel_hash"))
    for volume_id, pixels in sorted(zip(*columns, strict=True)):
        digest.update(f"{volume_id} {pixels}\n".encode())
    return digest.hexdigest()


def _path(registry: Registry, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "CONFIG-01",
            f"{name!r} is no name of a cohort: letters, digits, dots, dashes and underscores are.",
        )
    return registry.path / "cohorts" / f"{name}.parquet"


def _broken(path: Path) -> DataError:
    return DataError(
        "DATA-08",
        f"the cohort in {path} is damaged: its volumes are not those of its hash.",
        fix="Copy it back from a backup, or freeze it again under another name.",
    )

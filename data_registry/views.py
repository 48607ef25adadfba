"""The catalogue as DuckDB views over the commits of this moment: read-only, and blind to the rest.

A query is one SELECT. It reaches no file but those of the commits, loads no extension and changes
no setting, so that conditions and queries may come from anywhere.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import ConfigError, DataError
from data_registry.database import connect
from data_registry.schema import RELABELED, TABLES, arrow_schema

if TYPE_CHECKING:
    import duckdb
    import pyarrow

_NUMBERS = re.compile(r"(\d{8,})(?:-(\d{8,}))?")

_VIEWS = """
CREATE VIEW sources AS SELECT * REPLACE (coalesce(card, '{{}}') AS card) FROM all_sources
    QUALIFY row_number() OVER (PARTITION BY source ORDER BY commit DESC) = 1;
CREATE VIEW labels AS SELECT * FROM all_labels
    QUALIFY row_number() OVER (PARTITION BY volume_id ORDER BY commit DESC) = 1;
CREATE VIEW volumes AS SELECT v.* REPLACE ({relabeled}, coalesce(s.licence, v.licence) AS licence)
    FROM all_volumes AS v LEFT JOIN labels AS l ON l.volume_id = v.volume_id AND l.commit > v.commit
    LEFT JOIN sources AS s ON s.source = v.source
    WHERE NOT EXISTS (
    SELECT 1 FROM all_retired AS r WHERE r.volume_id = v.volume_id AND r.commit > v.commit);
CREATE VIEW slices AS SELECT * FROM all_slices AS s WHERE NOT EXISTS (
    SELECT 1 FROM all_retired AS r WHERE r.volume_id = s.volume_id AND r.commit > s.commit);
CREATE VIEW subjects AS SELECT subject_id, any_value(split) AS split,
    list_sort(list(DISTINCT source)) AS sources, count(DISTINCT nullif(study_id, '')) AS studies,
    count(*) FILTER (role = 'image') AS images, count(*) FILTER (role = 'label') AS labels,
    count(*) FILTER (role = 'kspace') AS kspace FROM volumes GROUP BY subject_id;
CREATE VIEW studies AS SELECT study_id, any_value(subject_id) AS subject_id,
    any_value(split) AS split, list_sort(list(DISTINCT source)) AS sources, count(*) AS volumes,
    list_sort(list(DISTINCT region)) AS regions FROM volumes WHERE study_id <> '' GROUP BY study_id;
CREATE VIEW fingerprints AS SELECT f.* FROM all_fingerprints AS f
    WHERE f.volume_id IN (SELECT volume_id FROM volumes);
CREATE VIEW duplicates AS SELECT d.*, a.subject_id, b.subject_id AS other_subject_id,
    a.split, b.split AS other_split FROM all_duplicates AS d
    JOIN volumes AS a ON a.volume_id = d.volume_id JOIN volumes AS b ON b.volume_id = d.other_id;
CREATE VIEW conflicts AS
    SELECT DISTINCT unnest([subject_id, other_subject_id]) AS subject_id
    FROM duplicates WHERE split <> other_split;
CREATE VIEW similarities AS SELECT * FROM all_similarities;
CREATE VIEW splits AS SELECT * FROM all_splits;
CREATE VIEW cohort_members AS SELECT * FROM all_cohort_members;
CREATE VIEW shards AS SELECT * FROM all_shards;
CREATE VIEW files AS SELECT * FROM all_files
    QUALIFY row_number() OVER (PARTITION BY file_id, source ORDER BY commit DESC) = 1;
CREATE VIEW quarantine AS SELECT * FROM files WHERE code <> '';
"""
"""What callers may query: the newest state of each table of `schema.py`."""


def commit_folders(registry: Path) -> list[Path]:
    """The complete commit folders, oldest first, without those that a merged one replaces.

    A folder is named after its commit, or after the first and last of those that were merged.
    """
    folder = registry / "commits"
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NUMBERS.fullmatch(path.name)]
    live: list[Path] = []
    for path in sorted(found, key=lambda path: (commit_span(path)[0], -commit_span(path)[1])):
        if not live or commit_span(path)[0] > commit_span(live[-1])[1]:
            live.append(path)
    return live


def commit_span(folder: Path) -> tuple[int, int]:
    """First and last commit that a commit folder holds."""
    first, _, last = folder.name.partition("-")
    return int(first), int(last or first)


class Views:
    """Queries over the catalogue of a registry; each sees the commits that are there by then.

    Args:
        path: Folder of the registry.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._parts: list[Path] = []

    def table(self, query: str, parameters: Sequence[object] = ()) -> pyarrow.Table:
        """The answer of one SELECT.

        Raises:
            ConfigError: CONFIG-01 when the query is wrong, or does more than select.
            DataError: DATA-08 when a part of the catalogue is missing or damaged.
        """
        with self._translated():
            connection = self._checked(query)
            try:
                return connection.sql(query, params=list(parameters)).to_arrow_table()
            except _io_error():
                if self._list() == self._parts:
                    raise
                # Commits were merged after we had listed them, and the old ones swept away.
                return self._checked(query).sql(query, params=list(parameters)).to_arrow_table()

    def rows(self, query: str, parameters: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """The answer row by row, when it need not fit into memory.

        Raises:
            ConfigError: As `table`.
            DataError: As `table`.
        """
        with self._translated():
            cursor = self._checked(query).cursor().execute(query, list(parameters))
            while block := cursor.fetchmany(4096):
                yield from block

    def _checked(self, query: str) -> duckdb.DuckDBPyConnection:
        """The connection, once the query is known to be one SELECT."""
        import duckdb

        connection = self._connect()
        statements = connection.extract_statements(query)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise ConfigError(
                "CONFIG-01",
                "the query cannot be run: it must be one SELECT, and nothing else.",
                fix="A registry is changed by ingest alone.",
            )
        return connection

    def _connect(self) -> duckdb.DuckDBPyConnection:
        listed = self._list()
        if self._connection is not None and listed == self._parts:
            return self._connection
        import pyarrow

        connection = connect()
        connection.execute("SET enable_progress_bar = false")
        tables: dict[str, pyarrow.Schema] = {n: arrow_schema(row) for n, row in TABLES.items()}
        tables["cohort_members"] = pyarrow.schema(
            [(n, pyarrow.string()) for n in ("volume_id", "pixel_hash", "cohort")]
        )
        for table, schema in tables.items():
            kind = "cohorts" if table == "cohort_members" else f"{table}.parquet"
            parts = [p for p in listed if kind in (p.name, p.parent.name)]
            content = f"SELECT * FROM read_parquet([{', '.join(map(_quoted, parts))}])"
            if table == "sources" or not parts:
                connection.from_arrow(schema.empty_table()).create(f"empty_{table}")
                by_name = content.replace("])", "], union_by_name = true)")  # schema 2: no card
                content = f"SELECT * FROM empty_{table}"
                content += f" UNION ALL BY NAME {by_name}" if parts else ""
            connection.execute(f"CREATE VIEW all_{table} AS {content}")
        relabeled = ", ".join(f"coalesce(l.{n}, v.{n}) AS {n}" for n in RELABELED)
        connection.execute(_VIEWS.format(relabeled=relabeled))
        allowed = ", ".join(_quoted(self._path / name) for name in ("commits", "cohorts"))
        connection.execute(
            f"SET allowed_directories = [{allowed}]; SET enable_external_access = false; "
            "SET lock_configuration = true"
        )
        self._connection, self._parts = connection, listed
        return connection

    def _list(self) -> list[Path]:
        """The Parquet files that make up the catalogue now."""
        folders = commit_folders(self._path)
        try:
            parts = [path for folder in folders for path in sorted(folder.iterdir())]
        except FileNotFoundError:
            if commit_folders(self._path) == folders:
                raise
            return self._list()  # another folder took their place meanwhile
        return parts + sorted((self._path / "cohorts").glob("[!.]*.parquet"))

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import duckdb

        damaged = (duckdb.IOException, duckdb.InvalidInputException)
        try:
            yield
        except duckdb.Error as error:
            first = str(error).partition("\n")[0]
            if isinstance(error, damaged):
                raise DataError(
                    "DATA-08",
                    f"the catalogue of {self._path} is damaged: {first}.",
                    fix="Copy the registry's commits/ folder again from a backup.",
                ) from error
            raise ConfigError("CONFIG-01", f"the query cannot be run: {first}.") from error


def _io_error() -> type[Exception]:
    import duckdb

    return duckdb.IOException


def _quoted(path: Path) -> str:
    return "'" + os.fspath(path).replace("'", "''") + "'"

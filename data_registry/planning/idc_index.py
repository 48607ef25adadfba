"""The index of the NCI Imaging Data Commons, read from the package `idc-index-data`; no network.

One row is one DICOM series: labels, licence, size and address, but no technical header values.
"""

from __future__ import annotations

import hashlib
import html
import importlib.metadata
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import DataError
from data_registry.database import connect
from data_registry.label_index import index_file

if TYPE_CHECKING:
    import pyarrow

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
"""MR Image Storage: one file is one slice, which is what makes ``instanceCount`` a slice count."""

_COLUMNS = {
    "series_uid": "SeriesInstanceUID",
    "study_uid": "StudyInstanceUID",
    "patient_id": "coalesce(nullif(trim(PatientID), ''), 'study:' || StudyInstanceUID)",
    "collection": "collection_id",
    "num_slices": "instanceCount",
    "num_bytes": "round(series_size_MB * 1e6)::BIGINT",
    "licence_name": "coalesce(license_short_name, '')",
    "doi": "coalesce(source_DOI, '')",
    "body_part": "coalesce(BodyPartExamined, '')",
    "description": "coalesce(SeriesDescription, '')",
    "study_description": "coalesce(StudyDescription, '')",
    "manufacturer": "coalesce(Manufacturer, '')",
    "model": "coalesce(ManufacturerModelName, '')",
    "storage_class": "coalesce(SOPClassUID, '')",
    "photometric": "coalesce(PhotometricInterpretation, '')",
    "idc_version": "series_revised_idc_version",
    "address": "coalesce(series_aws_url, '')",
}
"""Our column -> the expression over the index that gives it. Who the patient is follows
`source_list.Source.subject_of`: a study without PatientID is one person."""

_CITATIONS = """
SELECT lower(s.source_doi), max(s.citation), max(s.source_title)
FROM (SELECT unnest(sources) AS s FROM read_parquet(?)) GROUP BY 1 ORDER BY 1
"""
_TAG = re.compile(r"<[^>]+>")


@dataclass(frozen=True)
class Citation:
    """What a source asks to be cited as."""

    title: str
    text: str


@dataclass(frozen=True)
class SeriesIndex:
    """The MR series of one version of an index."""

    name: str
    """Package and version, or the name of the folder."""
    release: int
    """Release of the Imaging Data Commons."""
    sha256: dict[str, str]
    """File name to SHA-256."""
    table: pyarrow.Table
    """A row for each MR series, ordered by its UID; columns are the keys of `_COLUMNS`."""
    species: dict[str, str]
    """Collection to species."""
    locations: dict[str, str]
    """Collection to the place of its tumours, in words."""
    citations: dict[str, Citation]
    """DOI, in small letters, to what to cite."""


def read_index(source: str) -> SeriesIndex:
    """Read the index.

    Args:
        source: ``idc`` for the installed package, or a folder with ``idc_index.parquet`` and
            ``collections_index.parquet`` of another version of it.

    Raises:
        ConfigError: CONFIG-06 when the package is not installed.
        DataError: DATA-01 when the folder holds no index, DATA-32 when the index is damaged.
    """
    import duckdb

    path = index_file("idc") if source == "idc" else Path(source) / "idc_index.parquet"
    collections = path.with_name("collections_index.parquet")
    for needed in (path, collections):
        if not needed.is_file():
            raise DataError(
                "DATA-01",
                f"no index at {needed}.",
                fix="Give --source idc, or the folder of an unpacked idc-index-data.",
            )
    chosen = ", ".join(f"{expression} AS {name}" for name, expression in _COLUMNS.items())
    connection = connect()
    connection.execute("SET enable_progress_bar = false")
    try:
        table = connection.sql(
            f"SELECT {chosen} FROM read_parquet(?) WHERE Modality = 'MR' ORDER BY series_uid",
            params=[os.fspath(path)],
        ).to_arrow_table()
        (release,) = connection.execute(
            "SELECT max(series_revised_idc_version) FROM read_parquet(?)", [os.fspath(path)]
        ).fetchone() or (0,)
        about = connection.execute(
            "SELECT collection_id, coalesce(species, ''), coalesce(tumor_locations, '') "
            "FROM read_parquet(?)",
            [os.fspath(collections)],
        ).fetchall()
        cited = connection.execute(_CITATIONS, [os.fspath(collections)]).fetchall()
    except duckdb.Error as error:
        first = str(error).partition("\n")[0]
        raise DataError(
            "DATA-32",
            f"the index {path} cannot be used: {first}.",
            fix="Install it anew: pip install --force-reinstall idc-index-data.",
        ) from error
    finally:
        connection.close()
    _check(path, table)
    return SeriesIndex(
        _name(source),
        release,
        {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (path, collections)},
        table,
        {collection: species for collection, species, _ in about},
        {collection: place for collection, _, place in about},
        {doi: Citation(_plain(title), _plain(text)) for doi, text, title in cited if doi},
    )


def _check(path: Path, table: pyarrow.Table) -> None:
    import pyarrow.compute

    uids = table.column("series_uid")
    wrong = {
        "no series of modality MR": not len(table),
        "a series twice": len(pyarrow.compute.unique(uids)) < len(uids),
        "a series without UID, collection or count": any(
            table.column(name).null_count
            for name in ("series_uid", "study_uid", "collection", "num_slices", "num_bytes")
        ),
    }
    if any(wrong.values()):
        found = next(what for what, holds in wrong.items() if holds)
        raise DataError("DATA-32", f"the index {path} cannot be used: it holds {found}.")


def _name(source: str) -> str:
    if source == "idc":
        return f"idc-index-data {importlib.metadata.version('idc-index-data')}"
    return Path(source).resolve().name


def _plain(text: str | None) -> str:
    """A citation without the tags and line breaks of its HTML."""
    return " ".join(html.unescape(_TAG.sub("", text or "")).split())

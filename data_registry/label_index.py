"""Labels for an index of series: any table whose columns are DICOM keywords, without its images.

An archive is judged before a byte of it is fetched. ``idc`` is the index of the NCI Imaging Data
Commons, which the package `idc-index-data` ships.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from core_mri.errors import ConfigError, DataError
from core_mri.volume import FactValue
from data_registry.database import connect
from data_registry.label_report import Item
from data_registry.labels import LABELS, cast_votes, count_votes

KEYWORDS = (
    "BodyPartExamined",
    "SeriesDescription",
    "ProtocolName",
    "StudyDescription",
    "SequenceName",
    "ScanningSequence",
    "SequenceVariant",
    "ImageType",
    "ContrastBolusAgent",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "Manufacturer",
    "MagneticFieldStrength",
)
"""Columns that are read where the table has them."""


def index_file(name: str) -> Path:
    """The table meant by ``idc`` or by a path.

    Raises:
        ConfigError: CONFIG-06 when `idc-index-data` is not installed.
        DataError: DATA-01 when there is no such file.
    """
    if name == "idc":
        spec = importlib.util.find_spec("idc_index_data")
        if spec is None or spec.origin is None:
            raise ConfigError(
                "CONFIG-06",
                "the index of the Imaging Data Commons is not installed.",
                fix="Run `pip install idc-index-data`.",
            )
        return Path(spec.origin).parent / "idc_index.parquet"
    path = Path(name)
    if not path.is_file():
        raise DataError("DATA-01", f"no index at {path}.", fix="Give a .parquet or .csv file.")
    return path


def label_index(path: Path) -> Iterator[Item]:
    """Votes and labels of the MR series of an index, equal ones once with their number.

    Args:
        path: A Parquet or CSV file, one row a series.

    Raises:
        DataError: DATA-03 when it is no such table, or has no column that tells anything.
    """
    for facts, number in series_facts(path):
        votes = cast_votes(facts, "", {})
        labels = count_votes(facts, "", votes)
        yield (
            votes,
            {
                kind: (getattr(labels, kind), getattr(labels, f"{kind}_confidence"))
                for kind in LABELS
            },
            number,
        )


def series_facts(path: Path) -> Iterator[tuple[dict[str, FactValue], int]]:
    """The distinct headers of the MR series of an index, each with its number of series.

    Raises:
        DataError: As `label_index`.
    """
    import duckdb

    connection = connect()
    try:
        table = connection.read_parquet if path.suffix == ".parquet" else connection.read_csv
        source = table(os.fspath(path))
    except duckdb.Error as error:
        first = str(error).partition("\n")[0]
        raise DataError("DATA-03", f"{path} is no Parquet or CSV table: {first}.") from error
    known = [name for name in KEYWORDS if name in source.columns]
    if not known:
        raise DataError(
            "DATA-03",
            f"{path} has none of the columns {', '.join(KEYWORDS)}; it has "
            f"{', '.join(source.columns[:20])}.",
            fix="Name the columns by DICOM keyword.",
        )
    if "Modality" in source.columns:
        source = source.filter("Modality = 'MR'")
    columns = ", ".join(f'"{name}"' for name in known)
    for *values, number in source.aggregate(f"{columns}, count(*) AS n", columns).fetchall():
        yield {k: v for k, v in zip(known, values, strict=True) if v not in (None, "")}, number

"""A small made-up index with the columns of `idc-index-data`: nothing in it is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

LICENCES = {
    "alpha": "CC BY 4.0",
    "beta": "CC BY 3.0",
    "gamma": "CC BY-NC 4.0",
    "delta": "House rules, v2",
    "prostatex": "CC BY 3.0",
    "mice": "CC BY 4.0",
}
BODY_PARTS = ("BREAST", "BRAIN", "KNEE", "FOOT", "CSPINE", "")
COMMON = (0.6, 0.2, 0.05, 0.05, 0.05, 0.05)
DESCRIPTIONS = ("T1 AX", "T2 TSE", "ax dwi", "T1 SUB", "localizer", "VOLSER: dyn", "???")
VENDORS = ("SIEMENS", "GE MEDICAL SYSTEMS", "Philips", "")

Row = dict[str, Any]
WriteIndex = Callable[..., Path]


def rows_of(number: int, seed: int = 0) -> list[Row]:
    """Series of about a tenth as many patients, breast and DWI far more often than the rest."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(number):
        collection = str(rng.choice(list(LICENCES)))
        patient = f"{'shared' if i % 7 == 0 else collection}-{rng.integers(number // 10)}"
        rows.append(
            {
                "collection_id": collection,
                "PatientID": patient,
                "StudyInstanceUID": f"1.2.{i // 3}",
                "SeriesInstanceUID": f"1.2.3.{i}",
                "source_DOI": f"10.0000/{collection}",
                "Modality": "CT" if i % 29 == 0 else "MR",
                "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7" if i % 31 == 0
                else "1.2.840.10008.5.1.4.1.1.4",
                "PhotometricInterpretation": "MONOCHROME2",
                "BodyPartExamined": str(rng.choice(BODY_PARTS, p=COMMON)),
                "SeriesDescription": str(rng.choice(DESCRIPTIONS)),
                "StudyDescription": None,
                "Manufacturer": str(rng.choice(VENDORS)),
                "ManufacturerModelName": "X",
                "instanceCount": int(rng.integers(1, 200)),
                "license_short_name": LICENCES["gamma" if i % 5 == 0 else collection],
                "series_revised_idc_version": 7,
                "series_size_MB": float(rng.random() * 50),
                "series_aws_url": f"s3://idc-open-data/uuid-{i}/*",
            }
        )  # fmt: skip
    return rows


def write(folder: Path, rows: Sequence[Row]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / "idc_index.parquet")
    collections = [
        {
            "collection_id": name,
            "species": "Mouse" if name == "mice" else "Human",
            "tumor_locations": "Liver" if name == "alpha" else "Breast, Prostate",
            "sources": [
                {
                    "source_doi": f"10.0000/{name.upper()}",
                    "source_title": name,
                    "citation": f"Nobody, N. ({name}). <i>A &amp; B</i>\n[Data set].",
                }
            ],
        }
        for name in LICENCES
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(collections), folder / "collections_index.parquet"
    )
    return folder


@pytest.fixture
def write_index(tmp_path: Path) -> WriteIndex:
    """Writes rows as an index in a folder of the test."""
    return lambda rows, name="index": write(tmp_path / name, rows)


@pytest.fixture
def index(write_index: WriteIndex, rows: list[Row]) -> Path:
    """600 series in a folder."""
    return write_index(rows)


@pytest.fixture
def rows() -> list[Row]:
    """The rows of `index`."""
    return rows_of(600)

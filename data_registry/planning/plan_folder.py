"""A plan as a folder: its series, the manifest that downloads them, splits, whom to name."""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from core_mri.errors import ConfigError, DataError
from core_mri.version import __version__
from data_registry.planning.corpus import Plan
from data_registry.planning.deny_patients import NAMESPACE
from data_registry.planning.plan_page import plan_page
from data_registry.planning.tallies import (
    GROUPS,
    Costs,
    cost_rows,
    counts,
    evenness,
    left_out,
    shortages,
    totals,
)
from data_registry.shards import PARTIAL, cannot_write

if TYPE_CHECKING:
    import pyarrow

PLAN_FILE = "plan.yaml"
SERIES_FILE = "series.parquet"
MANIFEST_FILE = "manifest.s5cmd"
_FORMAT = "core-mri plan, version 1"
_KEYS = {"sha256", "inputs", "totals", "files"}
_IDC_PAPER = "https://doi.org/10.1148/rg.230180"


@dataclass(frozen=True)
class StoredPlan:
    """A plan that lies in a folder."""

    path: Path
    content: dict[str, Any]
    """`plan.yaml`."""
    series: pyarrow.Table
    """`series.parquet`."""


def plan_files(plan: Plan, costs: Costs) -> dict[str, bytes]:
    """The content of every file of the folder; `plan.yaml`, the last one, holds their hashes."""
    files = {
        MANIFEST_FILE: _manifest(plan),
        "splits.csv": _splits(plan),
        "sources.yaml": _sources(plan),
        "attribution.md": _attribution(plan),
        "summary.html": plan_page(plan, costs).html().encode(),
        SERIES_FILE: _series(plan),
    }
    content = {
        "format": _FORMAT,
        "sha256": plan.digest,
        "core_mri": __version__,
        "index": {"name": plan.index.name, "idc_release": plan.index.release},
        "inputs": plan.inputs(),
        "totals": totals(plan),
        "evenness": {column: evenness(plan, column) for column in GROUPS[:4]},
        "short": shortages(plan),
        "costs": cost_rows(plan, costs),
        "left_out": left_out(plan),
        "tallies": {
            column: [row for row in counts(plan, column) if row["slices"]] for column in GROUPS
        },
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return {**files, PLAN_FILE: text.encode()}


def write_plan(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files aside, then rename them, `plan.yaml` last: without it the rest is no plan.

    A full disk leaves an older plan in the folder as it was.

    Raises:
        DataError: DATA-07 when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / f"{PARTIAL}{name}").write_bytes(data)
        for name in files:
            (folder / f"{PARTIAL}{name}").replace(folder / name)
    except OSError as error:
        raise cannot_write(error, f"plan {folder}") from error


def read_plan(folder: Path) -> StoredPlan | None:
    """The plan in a folder, None where there is no folder or an empty one.

    Raises:
        ConfigError: CONFIG-03 when the folder holds something else.
        DataError: DATA-34 when the plan is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    path = folder / PLAN_FILE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or not _unfinished(folder)):
            raise ConfigError(
                "CONFIG-03", f"{folder} holds something else than a plan.", fix="Give a new folder."
            )
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT or not content.keys() >= _KEYS:
            raise ValueError(f"{PLAN_FILE} is of another format, or lacks a part")
        data = (folder / SERIES_FILE).read_bytes()
        if hashlib.sha256(data).hexdigest() != content["files"][SERIES_FILE]:
            raise ValueError(f"{SERIES_FILE} is not the one that {PLAN_FILE} names")
        series = pyarrow.parquet.read_table(io.BytesIO(data))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, pyarrow.ArrowException) as e:
        first = str(e).partition("\n")[0]
        raise DataError(
            "DATA-34",
            f"the plan in {folder} is damaged: {first}.",
            fix="Copy it back, or remove the folder and plan again.",
        ) from e
    return StoredPlan(folder, content, series)


def _unfinished(folder: Path) -> bool:
    """Empty, or what a killed first writing left: our files without `plan.yaml`."""
    own = {
        MANIFEST_FILE, SERIES_FILE, "splits.csv", "sources.yaml", "attribution.md", "summary.html"
    }  # fmt: skip
    return all(p.name in own or p.name.startswith(PARTIAL) for p in folder.iterdir())


def _series(plan: Plan) -> bytes:
    import pyarrow.parquet

    sink = io.BytesIO()
    table = plan.chosen.drop_columns(["left_out", "storage_class", "photometric"])
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _manifest(plan: Plan) -> bytes:
    """One s5cmd command a series, in the order of rank: a first part is a balanced smaller plan."""
    whole = totals(plan)
    lines = [
        f"# {whole['series']} series, {whole['slices']} slices, {whole['bytes'] / 1e9:.1f} GB, of "
        f"release {plan.index.release} of the NCI Imaging Data Commons",
        f"# plan sha256 {plan.digest}",
        f"# pip install idc-index && idc download {MANIFEST_FILE}",
        *(f"cp {address} ." for address in plan.chosen.column("address").to_pylist()),
    ]
    return ("\n".join(lines) + "\n").encode()


def _splits(plan: Plan) -> bytes:
    names = ("patient_id", "split")
    rows = set(zip(*(plan.chosen.column(name).to_pylist() for name in names), strict=True))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([names, *sorted(rows)])
    return text.getvalue().encode()


def _sources(plan: Plan) -> bytes:
    """The source list that ingests what `idc download` made of the manifest in its own layout."""
    columns = ("collection", "licence", "series_uid")
    folders: dict[str, dict[str, list[str]]] = {}
    rows = (plan.chosen.column(column).to_pylist() for column in columns)
    for name, licence, uid in zip(*rows, strict=True):
        folders.setdefault(name, {}).setdefault(licence, []).append(f"{name}/**/MR_{uid}/*")
    entries = []
    for name, by_licence in sorted(folders.items()):
        for licence, series in sorted(by_licence.items()):
            entries.append(
                {
                    "name": name if len(by_licence) == 1 else f"{name} {licence}",
                    "licence": licence,
                    "root": "${IDC_DOWNLOADS}",
                    "include": [f"{name}/**"] if len(by_licence) == 1 else sorted(series),
                    "subject_namespace": NAMESPACE,
                }
            )
    head = (
        "# idc download manifest.s5cmd --download-dir DIR; export IDC_DOWNLOADS=DIR\n"
        "# core-mri data ingest --sources sources.yaml --registry REGISTRY --key-file KEY\n"
        "# The registry draws the splits of this plan if the plan was made with the same key.\n"
    )
    return (head + yaml.safe_dump({"sources": entries}, sort_keys=False)).encode()


def _attribution(plan: Plan) -> bytes:
    """Who must be named: one entry a source, as the licences CC BY ask."""
    rows = plan.sql(
        "SELECT collection, doi, licence, any_value(licence_name) AS name, count(*) AS series, "
        "sum(num_slices)::BIGINT AS slices FROM series WHERE rank >= 0 "
        "GROUP BY collection, doi, licence ORDER BY collection, doi, licence"
    ).to_pylist()
    lines = [
        "# Attribution",
        "",
        f"Series of the NCI Imaging Data Commons ({_IDC_PAPER}), release {plan.index.release}.",
        "",
    ]
    for row in rows:
        cited = plan.index.citations.get(row["doi"].lower())
        lines += [
            f"## {row['collection']}: {row['licence']}",
            "",
            f"{row['series']:,} series, {row['slices']:,} slices. {row['name']}. "
            f"https://doi.org/{row['doi']}",
            "",
            cited.text if cited and cited.text else "The index holds no citation; see the DOI.",
            "",
        ]
    return "\n".join(lines).encode()

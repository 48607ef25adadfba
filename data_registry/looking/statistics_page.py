"""The page of `core-mri data stats --html`: what a registry holds, in tables and plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core_mri.plots import bars
from core_mri.reports import Report
from data_registry.similarity.history import newest

if TYPE_CHECKING:
    from core_mri.reports import Cell
    from data_registry.catalogue import Registry

_IMAGES = "FROM volumes WHERE role = 'image'"
_GROUPS = {
    "Region": "region",
    "Sequence": "sequence",
    "Plane": "plane",
    "Vendor": "vendor",
    "Field strength": "coalesce(printf('%.1f T', field_strength_t), 'unknown')",
}
_MOST_BARS = 25


def statistics_page(registry: Registry) -> Report:
    """Counts of a registry as a report, which names nobody and holds no picture of a scan.

    Raises:
        DataError: DATA-08 as `Registry.sql`.
    """
    stats = registry.stats()
    report = Report(
        "What this registry holds",
        f"{stats['volumes']:,} images ({stats['synthetic']:,} synthetic) with "
        f"{stats['slices']:,} slices of {stats['subjects']:,} patients; "
        f"{stats['labels']:,} label maps and {stats['kspace']:,} volumes of raw data.",
        registry.path.name,
    )
    for heading, column in _GROUPS.items():
        counts = _rows(
            registry,
            f'SELECT {column} AS "{heading.lower()}", count(*) AS volumes, '
            "sum(num_slices)::BIGINT AS slices, "
            f"count(DISTINCT subject_id) AS patients {_IMAGES} GROUP BY ALL "
            "ORDER BY volumes DESC, 1",
        )
        if not counts:
            continue
        shown = {
            str(row[heading.lower()]): float(row["volumes"] or 0) for row in counts[:_MOST_BARS]
        }
        more = len(counts) - len(shown)
        caption = f"Volumes by {heading.lower()}" + (
            f"; {more} more in the table." if more else "."
        )
        report.add_figure(heading, bars(shown, "volumes"), caption)
        report.add_table(heading, counts)
    report.add_table("Region and sequence", _cross_table(registry), "Volumes.")
    report.add_table(
        "Sources",
        _rows(
            registry,
            "SELECT source, licence, count(*) FILTER (role = 'image') AS images, "
            "count(*) FILTER (role = 'label') AS labels, "
            "count(*) FILTER (role = 'kspace') AS raw_data, "
            "count(DISTINCT subject_id) AS patients, bool_and(synthetic) AS synthetic "
            "FROM volumes GROUP BY ALL ORDER BY source, licence",
        ),
    )
    report.add_table(
        "Splits",
        _rows(
            registry,
            "SELECT split, count(DISTINCT subject_id) AS patients, count(*) AS volumes, "
            "sum(num_slices)::BIGINT AS slices FROM volumes GROUP BY split ORDER BY split",
        ),
        "Every patient is in one split.",
    )
    report.add_table("Geometry", _geometry(registry), "Images; the median and the extremes.")
    if similarity := newest(registry):
        hidden = ("pretraining_digest",)
        report.add_table(
            "Likeness of tasks to pretraining data",
            [{k: v for k, v in row.items() if k not in hidden} for row in similarity],
            "The newest answers of `core-mri data similarity`; older ones stay in the registry.",
        )
    if stats["quarantined"]:
        report.add_table(
            "Quarantine",
            [{"reason": reason, "scans": n} for reason, n in stats["quarantined"].items()],
            "Series and files that were found and not stored.",
        )
    return report


def _rows(registry: Registry, query: str) -> list[dict[str, Cell]]:
    return registry.sql(query).to_pylist()


def _cross_table(registry: Registry) -> list[dict[str, Cell]]:
    found = _rows(registry, f"SELECT region, sequence, count(*) AS n {_IMAGES} GROUP BY ALL")
    counts = {(str(row["region"]), str(row["sequence"])): row["n"] for row in found}
    sequences = sorted({sequence for _, sequence in counts})
    return [
        {"region": region, **{s: counts.get((region, s)) for s in sequences}}
        for region in sorted({region for region, _ in counts})
    ]


def _geometry(registry: Registry) -> list[dict[str, Cell]]:
    quantities = {
        "slices of a volume": "num_slices",
        "rows": "rows",
        "columns": "columns",
        "slice distance, mm": "spacing_mm[1]",
        "row distance, mm": "spacing_mm[2]",
        "column distance, mm": "spacing_mm[3]",
    }
    rows: list[dict[str, Cell]] = []
    for name, column in quantities.items():
        (row,) = _rows(
            registry,
            f"SELECT min({column}) AS lowest, median({column})::DOUBLE AS median, "
            f"max({column}) AS highest {_IMAGES}",
        )
        rows.append({"": name, **row})
    return rows

"""`core-mri data label`: how far the labels of a registry or an index can be trusted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core_mri.errors import ConfigError
from data_registry.label_report import KindReport, as_json, report_labels
from data_registry.terminal import parse, table

Key = TypeVar("Key", bound="tuple[str, ...]")


@dataclass(frozen=True, kw_only=True)
class _Label:
    """Show what region, sequence, plane and contrast were told from, and where sources disagree.

    With --relabel the volumes of a registry get the labels of this version's rules, as one further
    commit; the report before it says what would change.
    """

    registry: Path | None = None
    """Folder of the registry."""
    index: str = ""
    """Instead of a registry: a table of series (.parquet or .csv) whose columns are DICOM keywords,
    or idc (package idc-index-data)."""
    relabel: bool = False
    """Write the labels of today's rules."""
    limit: int = 20
    """Lines of each table at most; 0 for all."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: Words after ``core-mri data label``.

    Returns:
        The exit code.
    """
    options = parse(_Label, arguments, "label")
    if bool(options.index) == bool(options.registry) or (options.index and options.relabel):
        raise ConfigError(
            "CONFIG-05", "give either --registry DIR, with or without --relabel, or --index FILE."
        )
    if options.registry is None:
        return _index(options)
    from data_registry.catalogue import Registry
    from data_registry.labels import LABELS
    from data_registry.relabel import past_votes, relabel

    registry = Registry.open(options.registry)
    changes = relabel(registry, write=options.relabel)
    reports = report_labels(
        (
            past_votes(row),
            {k: (getattr(row, k), getattr(row, f"{k}_confidence")) for k in LABELS},
            1,
        )
        for row in registry.volumes("role = 'image'")
    )
    if options.json:
        rows = [{"label": k, "old": o, "new": n, "volumes": c} for (k, o, n), c in changes.items()]
        print(json.dumps({"labels": as_json(reports), "changes": rows}, indent=2))
        return 0
    _show(reports, options.limit, "volumes")
    done = "changed" if options.relabel else "would change by the rules of this version"
    lines = [(*key, str(n)) for key, n in changes.items()]
    if lines:
        print(table(f"Labels that {done}", ("label", "old", "new", "volumes"), lines))
    else:
        print("The labels are those of the rules of this version.")
    if changes and not options.relabel:
        print(f"\nNext: core-mri data label --registry {options.registry} --relabel")
    return 0


def _index(options: _Label) -> int:
    from data_registry.label_index import index_file, label_index

    path = index_file(options.index)
    started = time.process_time()
    reports = report_labels(label_index(path))
    seconds = time.process_time() - started
    if options.json:
        print(json.dumps({"labels": as_json(reports), "cpu_seconds": round(seconds, 2)}, indent=2))
        return 0
    print(f"{reports['region'].total} MR series in {seconds:.1f} CPU-seconds")
    _show(reports, options.limit, "series")
    return 0


def _show(reports: Mapping[str, KindReport], limit: int, unit: str) -> None:
    lines = [
        (
            kind,
            _share(r.total - r.unknown, r.total),
            _share(r.doubtful, r.total),
            ", ".join(f"{source} {_share(n, r.total)}" for source, n in r.spoke.most_common()),
        )
        for kind, r in reports.items()
    ]
    print(
        table(
            f"Labels of {reports['region'].total} {unit}",
            ("label", "known", "confidence < 0.7", "said by"),
            lines,
        )
    )
    for kind, r in reports.items():
        pairs = [
            (f"{a} and {b}", str(both), _share(r.agree[a, b], both))
            for a, b in sorted(r.agree.keys() | r.differ.keys())
            if (both := r.agree[a, b] + r.differ[a, b])
        ]
        if pairs:
            print(
                table(
                    f"\nAgreement on the {kind}", ("sources", f"{unit} with both", "agree"), pairs
                )
            )
        told = [(*key, str(n)) for key, n in _top(r.disagreements, limit)]
        if told:
            more = f" ({len(told)} of {len(r.disagreements)} rows)"
            title = f"\nOutvoted on the {kind}{more if len(told) < len(r.disagreements) else ''}"
            print(table(title, ("label", "source", "said instead", unit), told))
        declared = [(*key, str(n)) for key, n in _top(r.confusion, limit)]
        if declared:
            title = f"\nDeclared {kind}, and what the other sources tell"
            print(table(title, ("declared", "told", unit), declared))


def _top(counts: Mapping[Key, int], limit: int) -> list[tuple[Key, int]]:
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return rows[:limit] if limit else rows


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"

"""`core-mri data dedupe`: people who are in a registry under several subjects."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core_mri.devices import available_cores
from data_registry.catalogue import Registry
from data_registry.dedupe import DedupeReport, dedupe
from data_registry.governance.uses import record_use
from data_registry.terminal import parse, progress, table


@dataclass(frozen=True, kw_only=True)
class _Dedupe:
    """Find scans that are there twice under different subjects: same voxels, or same pictures.

    The subjects are then one person and belong in one split. Exit code 1 when such subjects are in
    different splits: pretraining then refuses those in training until they are left out.
    """

    registry: Path
    """Folder of the registry."""
    jobs: int = 0
    """Processes that hash new slices; 0 takes all cores."""
    pictures: Path | None = None
    """Write the pairs side by side as a picture (.png) to look at."""
    deny_list: Path | None = None
    """Write the test patients as hashes (.parquet), for whoever pretrains on other data."""
    limit: int = 20
    """Groups shown at most; 0 for all."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: Words after ``core-mri data dedupe``.

    Returns:
        The exit code.
    """
    options = parse(_Dedupe, arguments, "dedupe")
    registry = Registry.open(options.registry)
    with progress("hashing slices") as on_progress:
        report = dedupe(registry, jobs=options.jobs or available_cores(), on_progress=on_progress)
    if options.json:
        print(json.dumps(report.to_mapping(), indent=2))
    else:
        _show(report, options)
    if options.pictures is not None:
        from data_registry.dedupe_pictures import write_pairs

        shown = write_pairs(registry, options.pictures)
        told = f"{shown} pairs drawn in {options.pictures}" if shown else "no pairs to draw"
        print(told, file=sys.stderr)
    if options.deny_list is not None:
        from data_registry.deny_list import deny_list_of, write_deny_list

        deny = deny_list_of(registry)
        record_use(
            registry.path, "deny list", deny.subjects.values(), {"folder": str(options.deny_list)}
        )
        write_deny_list(deny, options.deny_list)
        print(f"{len(set(deny.subjects.values()))} test patients in {options.deny_list}",
              file=sys.stderr)  # fmt: skip
    conflicts = sum(group.conflict for group in report.groups)
    if conflicts:
        print(
            f"core-mri: {conflicts} groups of subjects that are one person are in different "
            "splits. Splits never change: leave the subjects of the view `conflicts` out, such as "
            'with --where "subject_id NOT IN (SELECT subject_id FROM conflicts)".',
            file=sys.stderr,
        )
        return 1
    return 0


def _show(report: DedupeReport, options: _Dedupe) -> None:
    search = report.search
    lines = [
        ("volumes hashed now", report.hashed),
        ("pairs of volumes with the same voxels", report.exact),
        ("further pairs that look the same", report.near),
        ("pairs not noted before", report.new),
        ("subjects that are one person with another", sum(len(g.subjects) for g in report.groups)),
        ("slices left out, nearly empty", search.empty),
        ("pictures left out, in many subjects", search.common),
        ("pictures left out, in too large a crowd", search.skipped),
        ("pairs of like hashes and unlike voxels", search.rejected),
    ]
    print(
        table(f"Duplicates in {options.registry}", ("", "count"), [(n, str(c)) for n, c in lines])
    )
    groups = report.groups[: options.limit] if options.limit else report.groups
    if groups:
        rows = [
            (
                " ".join(subject[:8] for subject in group.subjects),
                " ".join(group.splits) + ("  CONFLICT" if group.conflict else ""),
                " ".join(group.sources),
            )
            for group in groups
        ]
        title = f"\n{len(groups)} of {len(report.groups)} groups of subjects"
        print(table(title, ("subjects", "splits", "sources"), rows))

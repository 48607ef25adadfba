"""`core-mri data withdraw`: take a patient out of a registry."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data_registry.catalogue import Registry
from data_registry.governance.withdrawal import WithdrawConfig, WithdrawReport, withdraw
from data_registry.terminal import parse, table


@dataclass(frozen=True, kw_only=True)
class _Withdraw:
    """Take a patient out of shards, catalogue and cohorts, and refuse the patient from now on.

    Killed at any moment, the same command completes it. It lists the weights trained on the patient
    and the copies that went out, which nobody can call back.
    """

    subject: Annotated[str, tyro.conf.Positional]
    """Pseudonym of the registry; or the id in the files, with --source."""
    registry: Path
    """Folder of the registry."""
    source: str = ""
    """Name of the source whose id SUBJECT is."""
    everywhere: bool = False
    """Take this id in all sources: they are one person."""
    key_file: Path | None = None
    """Project key, for an id; REGISTRY.key beside the registry when not given."""
    weights: tuple[Path, ...] = ()
    """Folders to search for weights that were trained on the patient."""
    reason: str = ""
    """For the audit log. Name no patient."""
    actor: str = ""
    """Who asks for it; the account when not given."""
    dry_run: bool = False
    """Only tell."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: Words after ``core-mri data withdraw``.

    Returns:
        The exit code.
    """
    options = parse(_Withdraw, arguments, "withdraw")
    given = vars(options).copy()
    registry = Registry.open(given.pop("registry"))
    as_json = given.pop("json")
    report = withdraw(registry, WithdrawConfig(**given))
    if as_json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        _show(report, options)
    return 0


def _show(report: WithdrawReport, options: _Withdraw) -> None:
    if report.completed:
        print("A withdrawal that had been interrupted was completed first.")
    if report.already:
        print("This patient was withdrawn before; nothing of theirs is left in the registry.")
    else:
        lines = [
            ("volumes", str(report.volumes)),
            ("slices", str(report.slices)),
            ("shards written anew or deleted", str(report.shards)),
            ("cohorts changed", ", ".join(report.cohorts) or "none"),
            ("other files deleted", ", ".join(report.deleted) or "none"),
        ]
        title = "Would be withdrawn" if options.dry_run else "Withdrawn"
        print(table(title, ("", "count"), lines))
    for subject, sources in report.whom.subjects.items():
        how = "the same scans, found by dedupe" if subject in report.whom.joined else "as asked"
        print(f"  subject {subject} of {', '.join(sources) or 'no source'}: {how}")
    for subject, source in report.whom.elsewhere.items():
        print(f"  not taken: {subject} of {source} has the same id; --everywhere takes both")
    if report.weights or report.uses:
        print("\nOut of reach, and not changed:")
    for found in report.weights:
        print(f"  weights {found['folder']} (sha256 {found['sha256']}) list the patient")
    for use in report.uses:
        told = ", ".join(f"{k} {v}" for k, v in use.items() if k not in ("kind", "when"))
        print(f"  {use['kind']} of {use['when']}: {told}")
    print(
        "\nNot looked at: backups, snapshots, private logs and folders outside the registry."
        + (
            ""
            if report.already or options.dry_run
            else " The next ingest reads unread files again."
        )
    )

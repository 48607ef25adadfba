"""The command `core-mri data deidentify`."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track

from core_mri.errors import ConfigError
from data_registry.deidentify.folder import AUDIT, deidentify_files, find_files
from data_registry.deidentify.identifiers import load_key


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """De-identify the headers of DICOM images, at a first level that is no PS3.15 profile.

    Writes OUT/PATIENT/STUDY/SERIES/SOP.dcm with keyed names and OUT/audit.jsonl. Pixel data are
    not changed and not looked at: burned-in text and faces stay. Running again goes on where it
    stopped.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A DICOM file, or a folder of them."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A new folder, or one that this command made with the same key."""
    key_file: Path
    """64 hexadecimal digits, mode 600; keep it apart from the data."""
    strict: bool = False
    """Exit with 1 when any file was quarantined."""
    json: bool = False
    """Print the counts as JSON."""


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0 when files were de-identified, 1 when none was, or one was quarantined under ``--strict``.

    Raises:
        CoreMRIError: As `load_key`, `find_files` and `deidentify_files`; CONFIG-05 when OUT lies
            inside IN.
    """
    flags = tyro.cli(Arguments, prog="core-mri data deidentify", args=arguments)
    key = load_key(flags.key_file, create=False)
    files = find_files(flags.source)
    if flags.source.resolve() in (flags.out.resolve(), *flags.out.resolve().parents):
        raise ConfigError(
            "CONFIG-05", f"the output {flags.out} lies inside the input {flags.source}."
        )
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages quote header values
    console = Console(stderr=True)
    outcomes = track(
        deidentify_files(files, flags.out, key),
        description="de-identify",
        total=len(files),
        console=console,
        disable=not console.is_terminal,
    )
    num_done, num_repeated = 0, 0
    quarantined: Counter[str] = Counter()
    for outcome in outcomes:
        num_repeated += outcome.repeated
        if outcome.status == "done":
            num_done += 1
        else:
            quarantined[outcome.code] += 1
    if flags.json:
        counts = {
            "files": len(files),
            "deidentified": num_done,
            "from_earlier_runs": num_repeated,
            "quarantined": dict(sorted(quarantined.items())),
        }
        print(json.dumps(counts))
    else:
        reasons = ", ".join(f"{code}: {n}" for code, n in sorted(quarantined.items()))
        print(
            f"{num_done} of {len(files)} files de-identified, {quarantined.total()} quarantined"
            f"{f' ({reasons})' if reasons else ''}; {num_repeated} known from earlier runs.\n"
            "Pixel data were not inspected: burned-in text and faces stay.\n"
            f"Every file with its keyed id: {flags.out / AUDIT}"
        )
    return 1 if num_done == 0 or (flags.strict and quarantined) else 0

"""The command `core-mri data verify`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data_registry.deidentify.verify_folder import verify_folder


@dataclass(frozen=True, kw_only=True)
class VerifyArguments:
    """Search what identified the originals in every byte of the outputs, and veto what holds it.

    It needs no key, and works on the output of any tool. Findings are shown by keyed file name,
    attribute and kind, never by value.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """The originals."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """What was made of them."""
    jobs: int = 0
    """Worker processes; 0 takes all cores."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run `core-mri data verify`.

    Returns:
        0 when every output passed, 1 when one was vetoed or has no original.

    Raises:
        CoreMRIError: As `verify_folder`.
    """
    flags = tyro.cli(VerifyArguments, prog="core-mri data verify", args=arguments)
    passed, kinds = 0, Counter[str]()
    vetoed: dict[str, list[str]] = {}
    unpaired: list[str] = []
    for checked in verify_folder(
        flags.source, flags.out, jobs=flags.jobs or len(os.sched_getaffinity(0))
    ):
        if not checked.paired:
            unpaired.append(checked.output)
        elif checked.findings:
            vetoed[checked.output] = [f"{f.where} {f.kind}" for f in checked.findings]
            kinds.update({f"{f.where} {f.kind}" for f in checked.findings})
        else:
            passed += 1
    if flags.json:
        print(json.dumps({"passed": passed, "vetoed": vetoed, "without_original": unpaired}))
    else:
        print(f"{passed} outputs passed, {len(vetoed)} vetoed, {len(unpaired)} without original.")
        for kind, count in kinds.most_common(20):
            print(f"  {count} x {kind}")
        for name in [*vetoed, *unpaired][:10]:
            print(f"  {name}")
    return 1 if vetoed or unpaired else 0

"""The command `core-mri data review`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from core_mri.errors import ConfigError
from data_registry.deidentify.folder import find_files
from data_registry.deidentify.identifiers import file_id, load_key
from data_registry.deidentify.ledger import VERDICTS, Draw, Ledger
from data_registry.deidentify.review_items import Item, held_items, items_of
from data_registry.deidentify.review_server import ReviewServer


@dataclass(frozen=True, kw_only=True)
class ReviewArguments:
    """Look at de-identified volumes in a browser on this machine, and record what was seen.

    Shown are all volumes in which text was found and blanked, and a random sample of the others:
    pictures and header side by side; P, F, U and the arrow keys. Each verdict becomes a line of
    DIR/review.jsonl with initials and time. Ctrl-C ends it; the next run goes on.

    With --originals, what was held back for text or a face is shown too, as it was. What is passed
    there, the next run of the same `core-mri data deidentify` lets out.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Output folder of `core-mri data deidentify`."""
    sample: int = 30
    """Volumes taken by chance, beside the flagged ones; a public release needs 30."""
    seed: int = 0
    """Of the sample: the same seed shows the same volumes."""
    originals: Path | None = None
    """Input folder of that command: shows what was held back, with names and faces."""
    key_file: Path | None = None
    """The key that the folder was made with; only for --originals."""
    port: int = 0
    """Of the page; 0 takes a free one."""
    status: bool = False
    """Only say what was looked at; exit with 1 unless every item passed."""
    json: bool = False
    """Print a JSON object (with --status)."""


def main(arguments: Sequence[str]) -> int:
    """Run `core-mri data review`.

    Returns:
        0 when the page was closed, or with ``--status`` when every item passed; else 1.

    Raises:
        CoreMRIError: As `items_of` and `Ledger.open`; CONFIG-05 when only one of ``--originals``
            and ``--key-file`` is given.
    """
    flags = tyro.cli(ReviewArguments, prog="core-mri data review", args=arguments)
    draw = Draw(flags.sample, flags.seed)
    items = [*_held(flags), *items_of(flags.folder, draw)]
    ledger = Ledger.open(flags.folder)
    if not flags.status:
        with ReviewServer(items, ledger, draw, port=flags.port) as server:
            print(
                f"{len(items)} volumes to look at: {server.url}\nCtrl-C ends the review.",
                flush=True,
            )
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
    lines = [ledger.verdict_on(item.name, item.seen) for item in items]
    said = Counter(line.verdict for line in lines if line)
    told = {"items": len(items), **{str(verdict): said[verdict] for verdict in VERDICTS}}
    told["open"] = lines.count(None)
    if flags.json:
        print(json.dumps(told))
    else:
        print(
            f"{told['items']} items: {told['pass']} passed, {told['fail']} failed, "
            f"{told['unsure']} unsure, {told['open']} not looked at."
        )
    return 0 if not flags.status or (items and told["pass"] == told["items"]) else 1


def _held(flags: ReviewArguments) -> list[Item]:
    if flags.originals is None and flags.key_file is None:
        return []
    if flags.originals is None or flags.key_file is None:
        raise ConfigError("CONFIG-05", "--originals and --key-file belong together.")
    key = load_key(flags.key_file, create=False)
    paths = [path.absolute() for path in find_files(flags.originals)]
    return held_items(flags.folder, {file_id(key, path): path for path in paths})

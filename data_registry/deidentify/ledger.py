"""The ledger of a review: append-only, a line for every verdict that a person gave.

A line has initials, time, the item, the hash of what was seen, and how the sample was drawn. A
later verdict on the same item counts, the earlier one stays.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, get_args

from core_mri.errors import ConfigError, DataError

LEDGER = "review.jsonl"
Verdict = Literal["pass", "fail", "unsure"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_INITIALS = re.compile(r"[A-Za-z]{2,4}")


@dataclass(frozen=True)
class Draw:
    """Which volumes are looked at beside the flagged ones: the same ones for the same draw."""

    sample: int = 30
    """How many; of a larger draw with the same seed, the first."""
    seed: int = 0


@dataclass(frozen=True)
class Line:
    """A line of the ledger."""

    time: str
    initials: str
    item: str
    seen: str
    verdict: Verdict
    sample: int
    seed: int


@dataclass
class Ledger:
    """The verdicts on a folder.

    Args:
        path: Its file; made by the first verdict.
        lines: As written so far.
    """

    path: Path
    lines: list[Line] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of `folder`; empty when nobody has reviewed it.

        Raises:
            DataError: DATA-08 when a line is no verdict.
        """
        path = folder / LEDGER
        if not path.exists():
            return cls(path)
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return cls(path, [Line(**record) for record in records])
        except (ValueError, TypeError):
            raise DataError("DATA-08", f"{path}: a line that is no verdict.") from None

    def add(self, item: str, seen: str, verdict: str, initials: str, draw: Draw) -> Line:
        """Write what a person said of an item, to the disk before it returns.

        Args:
            item: Its name.
            seen: Hash of what was seen.
            verdict: One of `VERDICTS`.
            initials: Of the person.
            draw: Under which the item was shown.

        Raises:
            ConfigError: CONFIG-01 for an unknown verdict, or for other initials than two to four
                letters.
            DataError: DATA-07 when it cannot be written.
        """
        if verdict not in VERDICTS:
            raise ConfigError(
                "CONFIG-01", f"no verdict {verdict!r}; there are {', '.join(VERDICTS)}."
            )
        if not _INITIALS.fullmatch(initials):
            raise ConfigError("CONFIG-01", "initials are two to four letters.")
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        line = Line(now, initials.upper(), item, seen, verdict, draw.sample, draw.seed)
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(vars(line)) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise DataError("DATA-07", f"cannot write {self.path}: {error.strerror}.") from None
        self.lines.append(line)
        return line

    def verdict_on(self, item: str, seen: str) -> Line | None:
        """The last verdict on an item, if it is on what the item is now."""
        for line in reversed(self.lines):
            if line.item == item:
                return line if line.seen == seen else None
        return None

"""`core-mri data audit`: who changed or released what, and whether the log of it is whole."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core_mri.errors import CODES
from data_registry.catalogue import Registry
from data_registry.governance.audit_log import verify
from data_registry.terminal import parse, table


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """Show who changed or released what, and check the chain of hashes.

    The last line printed is the head of the log. Keep a copy elsewhere: only --expect with it finds
    entries that were cut off, or a log written anew, by someone who may write the registry.
    """

    registry: Path
    """Folder of the registry."""
    verify: bool = False
    """Exit with 1 when entries were altered, deleted, moved or cut off."""
    expect: str = ""
    """A head NUMBER:HASH that was kept elsewhere; implies --verify."""
    limit: int = 20
    """Newest entries shown at most; 0 for all."""
    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: Words after ``core-mri data audit``.

    Returns:
        The exit code.
    """
    options = parse(_Audit, arguments, "audit")
    registry = Registry.open(options.registry)
    check = verify(registry.path, expect=options.expect)
    shown = check.entries[-options.limit :] if options.limit else check.entries
    if options.json:
        found = {"head": check.head, "broken": check.broken, "notes": check.notes}
        entries = [dataclasses.asdict(entry) for entry in shown]
        print(json.dumps({"entries": entries, "total": len(check.entries), **found}, indent=2))
    else:
        lines = [
            (str(e.number), e.when, e.who, e.verb, json.dumps(e.what, sort_keys=True))
            for e in shown
        ]
        title = f"{len(shown)} of {len(check.entries)} entries of {options.registry}"
        print(table(title, ("number", "when (UTC)", "who", "verb", "what"), lines))
        for note in check.notes:
            print(f"note: {note}")
        print(f"head {check.head}")
    if check.broken:
        print(f"core-mri: DATA-26: {CODES['DATA-26']}:", file=sys.stderr)
        for line in check.broken:
            print(f"  {line}", file=sys.stderr)
    return 1 if check.broken and (options.verify or options.expect) else 0

"""What all verbs of `core-mri data` share on the terminal: flags, tables and a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import tyro

T = TypeVar("T")


def parse(options: type[T], arguments: Sequence[str], verb: str) -> T:
    """The flags of a verb, as the dataclass that describes them."""
    return tyro.cli(
        options,
        args=list(arguments),
        prog=f"core-mri data {verb}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


@contextmanager
def progress(what: str = "reading scans") -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing in files."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as text: drawn for a terminal, aligned plain text for anything else."""
    if not lines:
        return title
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*columns, box=None)
        for line in lines:
            drawn.add_row(*map(Text, line))
        console = Console()
        with console.capture() as captured:
            console.print(drawn)
        return f"{title}\n{captured.get().rstrip()}"
    widths = [max(len(row[i]) for row in (columns, *lines)) for i in range(len(columns))]
    rows = [
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in (columns, *lines)
    ]
    return "\n".join([title, *rows])

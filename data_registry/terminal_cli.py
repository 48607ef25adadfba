"""What all verbs of `core-mri data` share on the terminal: reading options, progress, tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import tyro

T = TypeVar("T")


def parse(cls: type[T], arguments: Sequence[str], verb: str) -> T:
    """The words after ``core-mri data VERB`` as options; tyro answers wrong ones (exit code 2)."""
    return tyro.cli(
        cls,
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


def show_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table: drawn on a terminal, aligned plain text elsewhere."""
    print(title)
    if not lines:
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=None)
        for line in lines:
            table.add_row(*map(Text, line))
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in (columns, *lines)) for i in range(len(columns))]
    for row in (columns, *lines):
        print("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())

"""Large files through memory maps, piece by piece, so that memory stays flat."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

PIECE = 1 << 22


def map_file(path: Path) -> memoryview:
    """A view of the file's bytes, which are read where they are looked at."""
    with path.open("rb") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def pieces(*views: memoryview) -> Iterator[tuple[memoryview, ...]]:
    """Views of one length cut into pieces of 4 MiB; pages of maps are given back behind each."""
    for start in range(0, len(views[0]), PIECE):
        yield tuple(view[start : start + PIECE] for view in views)
        for view in views:
            if isinstance(view.obj, mmap.mmap):
                view.obj.madvise(mmap.MADV_DONTNEED)

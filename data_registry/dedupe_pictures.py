"""Duplicates side by side, so that a person can judge them."""

from __future__ import annotations

from pathlib import Path

from data_registry.catalogue import Registry
from data_registry.shards import cannot_write
from data_registry.slices import windowed

_MOST = 24


def write_pairs(registry: Registry, path: Path) -> int:
    """Draw the middle slices of the pairs that are noted, least alike first.

    Args:
        registry: The registry.
        path: A picture file; its suffix says which kind.

    Returns:
        The number of pairs drawn, 24 at most; without any, no file is written.

    Raises:
        DataError: DATA-07 when it cannot be written, DATA-08 when a shard is damaged.
    """
    from core_mri.pictures import contact_sheet

    pairs = list(
        registry.rows(
            "SELECT volume_id, other_id, kind, shared, compared, correlation FROM duplicates "
            f"ORDER BY correlation, volume_id, other_id LIMIT {_MOST}"
        )
    )
    images, titles = [], []
    for first, second, kind, shared, compared, correlation in pairs:
        for name, title in (
            (first, f"{kind}, {shared}/{compared} slices"),
            (second, f"correlation {correlation:.3f}"),
        ):
            row = registry.volume(name)
            middle = registry.read_slice(row, row.num_slices // 2)
            images.append(windowed(middle, row.window_low, row.window_high))
            titles.append(title)
    if not images:
        return 0
    figure = contact_sheet(images, titles, columns=4)
    try:
        figure.savefig(path)
    except OSError as error:
        raise cannot_write(error, f"picture {path}") from error
    return len(pairs)

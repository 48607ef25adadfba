"""Whether patients of a test set are among the patients a model is to be trained on.

A patient is recognized by pseudonym (one project key), by volumes with the same voxels, and by
volumes that look the same: so also when the scans came through another archive under another name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_registry.catalogue import Registry
from data_registry.deny_list import DenyList
from data_registry.duplicates import Look, near_duplicates, pictures_of
from data_registry.fingerprints import joined, load_fingerprints
from data_registry.schema import VolumeRow

_DENIED = "test:"


@dataclass(frozen=True)
class Overlap:
    """Training subjects that are test patients of one deny list, by how they were recognized."""

    name: str
    """Of the deny list."""
    tested: int
    """Its patients."""
    by_subject: tuple[str, ...]
    by_voxels: tuple[str, ...]
    by_look: tuple[str, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(sorted({*self.by_subject, *self.by_voxels, *self.by_look}))


def find_overlap(registry: Registry, rows: Sequence[VolumeRow], deny: DenyList) -> Overlap:
    """Compare image volumes that are to be trained on with a deny list.

    Voxels confirm what looks the same where both sides have them; of a file there are hashes only.

    Args:
        registry: Holds the volumes.
        rows: The volumes.
        deny: The test patients.

    Raises:
        DataError: DATA-08 when a shard is missing or damaged.
    """
    tested, pixels = set(deny.subjects.values()), set(deny.pixels.values())
    known = {row.volume_id: row for row in rows}
    own = load_fingerprints(registry, list(known))
    denied = dataclasses.replace(
        deny.prints, volumes=tuple(_DENIED + name for name in deny.prints.volumes)
    )
    found = near_duplicates(
        joined(own, denied),
        {name: row.subject_id for name, row in known.items()}
        | {_DENIED + name: _DENIED + subject for name, subject in deny.subjects.items()},
        _both(registry, known, deny),
        side=np.arange(len(own.volumes) + len(denied.volumes)) < len(own.volumes),
    )
    alike = {name for row in found.rows for name in (row.volume_id, row.other_id)} & known.keys()
    return Overlap(
        deny.name,
        len(tested),
        tuple(sorted({row.subject_id for row in rows} & tested)),
        tuple(sorted({row.subject_id for row in rows if row.pixel_hash in pixels})),
        tuple(sorted({known[name].subject_id for name in alike})),
    )


def _both(registry: Registry, known: dict[str, VolumeRow], deny: DenyList) -> Look | None:
    """Pictures of the own volumes, and of the denied ones by their longer names."""
    if deny.registry is None:
        return None
    own = pictures_of(registry, known)
    tests = {row.volume_id: row for row in deny.registry.volumes("split = 'test'")}
    other = pictures_of(deny.registry, tests)

    def look(name: str, index: int) -> npt.NDArray[np.float64]:
        if name.startswith(_DENIED):
            return other(name.removeprefix(_DENIED), index)
        return own(name, index)

    return look

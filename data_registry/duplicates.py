"""Scans that are in a registry twice, under two subjects: the same voxels, or the same pictures.

Exact: equal `pixel_hash` (voxels, type and shape; not the file, which de-identification changes).
Near: slices whose perceptual hashes differ in four bits at most, mirrored or not. Empty slices have
no say, nor have pictures that many subjects share; then the slices of a volume vote, and what is
left is confirmed by looking at the voxels. A further opinion, such as distances of embeddings, can
be given as `confirm`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_registry.catalogue import Registry
from data_registry.fingerprints import Fingerprints
from data_registry.near_search import near_pairs
from data_registry.perceptual_hash import MIN_DETAIL
from data_registry.schema import DuplicateRow, VolumeRow
from data_registry.slices import windowed

MIN_SHARE = 0.5
"""Part of the slices of the smaller volume that must be in the other one."""
MAX_SUBJECTS = 50
"""A picture in more subjects than this tells nothing about any two of them."""
MIN_CORRELATION = 0.95
"""Of the voxels of shared slices, on 64 x 64 cells."""
_CONFIRM_SLICES = 5
_SIDE = 64

Confirm = Callable[[VolumeRow, int, VolumeRow, int], float]
"""Two volumes and a slice of each to how alike they are, 1 for the same."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search for near duplicates found, and what it left out."""

    rows: list[DuplicateRow]
    empty: int = 0
    """Slices with too little detail to compare."""
    common: int = 0
    """Distinct pictures that more than `MAX_SUBJECTS` subjects share."""
    skipped: int = 0
    """Distinct pictures in crowds too large to compare pair by pair."""
    rejected: int = 0
    """Pairs of volumes whose slices have like hashes, but not like voxels."""


@dataclass
class _Shared:
    """Slices that two volumes share."""

    pairs: list[tuple[int, int]] = field(default_factory=list)

    def number(self) -> int:
        return min(len({a for a, _ in self.pairs}), len({b for _, b in self.pairs}))


def exact_duplicates(rows: Sequence[VolumeRow]) -> list[DuplicateRow]:
    """Image volumes of different subjects with the same voxels: each with the first of its kind."""
    groups: dict[str, list[VolumeRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.volume_id):
        if row.role == "image":
            groups[row.pixel_hash].append(row)
    return [
        DuplicateRow(
            volume_id=group[0].volume_id, other_id=row.volume_id, kind="exact",
            shared=row.num_slices, compared=row.num_slices, correlation=1.0,
        )
        for group in groups.values()
        for row in group[1:]
        if row.subject_id != group[0].subject_id
    ]  # fmt: skip


def near_duplicates(
    prints: Fingerprints,
    rows: Mapping[str, VolumeRow],
    confirm: Confirm,
    *,
    across: Callable[[VolumeRow, VolumeRow], bool] | None = None,
) -> Search:
    """Image volumes of different subjects that look the same.

    Args:
        prints: Hashes of their slices.
        rows: Volume id to row, for all of `prints`.
        confirm: Compares the slices that were found; `voxel_correlation` for a registry.
        across: Which pairs of volumes matter besides those of different subjects; None takes all.
    """
    told = prints.detail >= MIN_DETAIL
    hashes, where = np.unique(prints.hashes[told], return_inverse=True)
    volume, index = prints.volume[told], prints.index[told]
    volumes = [rows[name] for name in prints.volumes]
    numbers: dict[str, int] = {}
    subject = np.array(
        [numbers.setdefault(row.subject_id, len(numbers)) for row in volumes], dtype=np.int64
    )
    members = _Members(where, len(hashes))
    by_picture = np.unique(np.stack([where, subject[volume]], axis=1), axis=0)[:, 0]
    common = np.bincount(by_picture, minlength=len(hashes)) > MAX_SUBJECTS
    found = near_pairs(hashes)
    shared: dict[tuple[int, int], _Shared] = defaultdict(_Shared)
    same = np.flatnonzero(~common & (np.bincount(by_picture, minlength=len(hashes)) > 1))
    near = found.pairs[~common[found.pairs].any(axis=1)]
    for one, other in [*((h, h) for h in same), *near.tolist()]:
        for a in members[one]:
            for b in members[other]:
                first, second = sorted(((volume[a], index[a]), (volume[b], index[b])))
                if subject[first[0]] != subject[second[0]]:
                    shared[first[0], second[0]].pairs.append((first[1], second[1]))
    informative = np.bincount(volume, minlength=len(volumes))
    result: list[DuplicateRow] = []
    rejected = 0
    for (a, b), slices in sorted(shared.items()):
        compared = int(min(informative[a], informative[b]))
        if slices.number() < MIN_SHARE * compared:
            continue
        if across is not None and not across(volumes[a], volumes[b]):
            continue
        likeness = _likeness(volumes[a], volumes[b], slices.pairs, confirm)
        if likeness < MIN_CORRELATION:
            rejected += 1
            continue
        names = sorted((volumes[a].volume_id, volumes[b].volume_id))
        result.append(
            DuplicateRow(
                volume_id=names[0], other_id=names[1], kind="near", shared=slices.number(),
                compared=compared, correlation=round(likeness, 4),
            )
        )  # fmt: skip
    return Search(
        rows=result,
        empty=int((~told).sum()),
        common=int(common.sum()),
        skipped=len(found.skipped),
        rejected=rejected,
    )


def voxel_correlation(registry: Registry, other: Registry | None = None) -> Confirm:
    """Largest correlation of two slices over the four ways to mirror one, on 64 x 64 cells.

    Args:
        registry: Holds the first volume.
        other: Holds the second one; None for the same registry.
    """

    def correlation(a: VolumeRow, i: int, b: VolumeRow, j: int) -> float:
        first = _thumbnail(registry, a, i)
        second = _thumbnail(other or registry, b, j)
        ways = (second, second[::-1], second[:, ::-1], second[::-1, ::-1])
        return float(max(np.corrcoef(first.ravel(), way.ravel())[0, 1] for way in ways))

    return correlation


def groups_of_subjects(rows: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Subjects that pairs link, directly or through others; each group sorted, largest first."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name] = leader[leader[name]]
        return name

    for one, other in rows:
        leader[find(one)] = find(other)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(leader):
        groups[find(name)].append(name)
    return sorted(groups.values(), key=lambda group: (-len(group), group))


class _Members:
    """Which slices have each distinct hash."""

    def __init__(self, where: npt.NDArray[np.int64], count: int) -> None:
        self._order = np.argsort(where, kind="stable")
        self._ends = np.concatenate([[0], np.cumsum(np.bincount(where, minlength=count))])

    def __getitem__(self, number: int) -> Iterator[int]:
        return iter(self._order[self._ends[number] : self._ends[number + 1]].tolist())


def _likeness(
    a: VolumeRow, b: VolumeRow, pairs: Sequence[tuple[int, int]], confirm: Confirm
) -> float:
    """Median over a few of the shared slices, spread over the volume."""
    chosen = sorted(set(pairs))
    step = max(1, len(chosen) // _CONFIRM_SLICES)
    return float(np.median([confirm(a, i, b, j) for i, j in chosen[::step][:_CONFIRM_SLICES]]))


def _thumbnail(registry: Registry, row: VolumeRow, index: int) -> npt.NDArray[np.float64]:
    from skimage.transform import resize

    image = windowed(registry.read_slice(row, index), row.window_low, row.window_high)
    small: npt.NDArray[np.float64] = resize(image, (_SIDE, _SIDE), order=1, anti_aliasing=True)
    return small

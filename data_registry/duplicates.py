"""Scans that are there twice, under two subjects: the same voxels, or the same pictures.

Exact: equal `pixel_hash` (voxels, type and shape; not the file, which de-identification changes).
Near: slices whose perceptual hashes differ in four bits at most, mirrored or not. Empty slices have
no say, nor have pictures that many subjects share; then the slices of a volume vote, and the voxels
of some of them must agree. Whatever else finds like slices, such as neighbors among embeddings, can
be asked as well (`Finder`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_registry.catalogue import Registry
from data_registry.fingerprints import Fingerprints
from data_registry.near_search import Indices, near_pairs
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

Finder = Callable[[Fingerprints], Indices]
"""Slices to further pairs that look alike: ``[P, 2]``, positions among them."""
Look = Callable[[str, int], npt.NDArray[np.float64]]
"""Volume id and slice to a small picture of it."""


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


def exact_duplicates(rows: Sequence[VolumeRow]) -> list[DuplicateRow]:
    """Image volumes of different subjects with the same voxels: each with the first of its kind."""
    groups: dict[str, list[VolumeRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.volume_id):
        if row.role == "image":
            groups[row.pixel_hash].append(row)
    return [
        DuplicateRow(
            volume_id=first.volume_id, other_id=row.volume_id, kind="exact",
            shared=row.num_slices, compared=row.num_slices, correlation=1.0,
        )
        for first, *others in groups.values()
        for row in others
        if row.subject_id != first.subject_id
    ]  # fmt: skip


def near_duplicates(
    prints: Fingerprints,
    subjects: Mapping[str, str],
    look: Look | None,
    *,
    side: npt.NDArray[np.bool_] | None = None,
    finders: Sequence[Finder] = (),
) -> Search:
    """Image volumes of different subjects that look the same.

    Args:
        prints: Hashes of their slices.
        subjects: Of each volume id in `prints`.
        look: Gives the pictures that confirm what the hashes found; None believes the hashes.
        side: One value for each of `prints.volumes`; only volumes of different sides are compared.
        finders: Further opinions, whose pairs of slices count like those of the hashes.
    """
    told = np.flatnonzero(prints.detail >= MIN_DETAIL)
    volume, index = prints.volume[told], prints.index[told]
    _, subject = np.unique([subjects[name] for name in prints.volumes], return_inverse=True)
    hashes, picture = np.unique(prints.hashes[told], return_inverse=True)
    slices_of = _Members(picture, len(hashes))
    owned = np.unique(np.stack([picture, subject[volume]], axis=1), axis=0)
    owners = np.bincount(owned[:, 0], minlength=len(hashes))
    found = near_pairs(hashes)
    rare = owners <= MAX_SUBJECTS
    alike = [(number, number) for number in np.flatnonzero(rare & (owners > 1)).tolist()]
    alike += found.pairs[rare[found.pairs].all(axis=1) & ~_one_owner(found.pairs, owned)].tolist()
    apart = np.arange(len(prints.volumes)) if side is None else side
    shared: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)

    def note(v: int, i: int, w: int, j: int) -> None:
        if subject[v] != subject[w] and apart[v] != apart[w]:
            (v, i), (w, j) = sorted(((v, i), (w, j)))
            shared[v, w].add((i, j))

    for one, other in alike:
        for a in slices_of[one]:
            for b in slices_of[other]:
                note(int(volume[a]), int(index[a]), int(volume[b]), int(index[b]))
    for finder in finders:
        for a, b in finder(prints).tolist():
            note(
                int(prints.volume[a]), int(prints.index[a]),
                int(prints.volume[b]), int(prints.index[b]),
            )  # fmt: skip
    informative = np.bincount(volume, minlength=len(prints.volumes))
    rows: list[DuplicateRow] = []
    rejected = 0
    for (v, w), pairs in sorted(shared.items()):
        number = min(len({i for i, _ in pairs}), len({j for _, j in pairs}))
        compared = max(1, int(min(informative[v], informative[w])))
        if number < MIN_SHARE * compared:
            continue
        first, second = prints.volumes[v], prints.volumes[w]
        likeness = _likeness(first, second, sorted(pairs), look) if look else 0.0
        if look and likeness < MIN_CORRELATION:
            rejected += 1
            continue
        names = sorted((first, second))
        rows.append(
            DuplicateRow(
                volume_id=names[0], other_id=names[1], kind="near",
                shared=number, compared=compared, correlation=round(likeness, 4),
            )
        )  # fmt: skip
    return Search(
        rows=rows,
        empty=len(prints.hashes) - len(told),
        common=int((~rare).sum()),
        skipped=len(found.skipped),
        rejected=rejected,
    )


def pictures_of(registry: Registry, rows: Mapping[str, VolumeRow]) -> Look:
    """Slices of a registry on 64 x 64 cells.

    Args:
        registry: Holds the voxels.
        rows: Volume id to row.
    """

    def look(name: str, index: int) -> npt.NDArray[np.float64]:
        from skimage.transform import resize

        row = rows[name]
        image = windowed(registry.read_slice(row, index), row.window_low, row.window_high)
        small: npt.NDArray[np.float64] = resize(image, (_SIDE, _SIDE), order=1, anti_aliasing=True)
        return small

    return look


def groups_of_subjects(pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Subjects that pairs link, directly or through others; each group sorted, largest first."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name] = leader[leader[name]]
        return name

    for one, other in pairs:
        leader[find(one)] = find(other)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(leader):
        groups[find(name)].append(name)
    return sorted(groups.values(), key=lambda group: (-len(group), group))


class _Members:
    """Which slices have each distinct hash."""

    def __init__(self, picture: npt.NDArray[np.int64], count: int) -> None:
        self._order = np.argsort(picture, kind="stable")
        self._ends = np.concatenate([[0], np.cumsum(np.bincount(picture, minlength=count))])

    def __getitem__(self, number: int) -> Iterator[int]:
        return iter(self._order[self._ends[number] : self._ends[number + 1]].tolist())


def _one_owner(pairs: Indices, owned: Indices) -> npt.NDArray[np.bool_]:
    """Whether both pictures of a pair belong to the same subject alone, like neighboring slices.

    Args:
        pairs: ``[P, 2]`` pictures.
        owned: ``[N, 2]`` picture and subject, sorted.
    """
    first = np.searchsorted(owned[:, 0], pairs)
    last = np.searchsorted(owned[:, 0], pairs, side="right") - 1
    same: npt.NDArray[np.bool_] = (owned[first[:, 0], 1] == owned[last[:, 1], 1]) & (
        first == last
    ).all(axis=1)
    return same


def _likeness(first: str, second: str, pairs: Sequence[tuple[int, int]], look: Look) -> float:
    """Median correlation of some shared slices, spread over the volume, mirrored if need be."""
    step = max(1, len(pairs) // _CONFIRM_SLICES)
    return float(
        np.median(
            [
                _correlation(look(first, i), look(second, j))
                for i, j in pairs[::step][:_CONFIRM_SLICES]
            ]
        )
    )


def _correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Pearson's, the largest over the four ways to mirror one; 0 for a picture of one gray."""
    a, b = one - one.mean(), other - other.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    ways = (b, b[::-1], b[:, ::-1], b[::-1, ::-1])
    return float(max((a * way).sum() for way in ways) / scale) if scale > 0 else 0.0

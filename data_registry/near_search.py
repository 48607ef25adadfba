"""All pairs of 64-bit hashes that differ in at most four bits, mirrored or not, among millions.

Pigeonhole: cut 64 bits into six bands; four changed bits spoil at most four of them, so two bands
stay whole. Sorting by each of the 15 pairs of bands (21 or 22 bits) therefore brings every pair
that is sought side by side: recall is exact by construction. A key is the smallest of the four
that the mirrored hashes have, so mirrored pairs meet as well. Whatever meets is compared in full:
precision, in bits, is exact too.

With n hashes spread evenly, about ``15 n (n - 1) / 2 * 4 / 2^21.3`` pairs meet: 1.1e9 for
ten million, instead of 5e13. Real hashes are not spread evenly; see `max_bucket`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from data_registry.perceptual_hash import FLIPS, Hashes, distance

MAX_BITS = 4
_BANDS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))
"""First bit and number of bits."""
_INDEX_BITS = np.uint64(40)
_BLOCK = 1 << 22

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NearPairs:
    """What was found, and what was not looked at."""

    pairs: Indices
    """``[P, 2]``, indices with the first smaller; each pair once."""
    bits: npt.NDArray[np.uint8]
    """``[P]``, bits in which they differ."""
    skipped: Indices
    """Indices of hashes in buckets above `max_bucket`: pairs of two of them may be missing."""


def near_pairs(hashes: Hashes, *, max_bits: int = MAX_BITS, max_bucket: int = 20_000) -> NearPairs:
    """Find all pairs of distinct hashes that are close.

    Args:
        hashes: ``[N]``, each value once (`numpy.unique`): equal ones are no work for this search.
        max_bits: Largest difference, at most 4.
        max_bucket: More hashes than this under one key are left out and reported, since their
            comparison costs the square. Two of them still meet under any smaller key they share.

    Raises:
        ValueError: When `max_bits` is not 0 to 4.
    """
    if not 0 <= max_bits <= MAX_BITS:
        raise ValueError(f"max_bits must be 0 to {MAX_BITS}, got {max_bits}")
    found: list[Indices] = []
    skipped: list[Indices] = []
    for one, other in combinations(_BANDS, 2):
        order, starts, lengths = _buckets(hashes, one, other)
        large = lengths > max_bucket
        skipped += [order[s : s + n] for s, n in zip(starts[large], lengths[large], strict=True)]
        for first, second in _meetings(order, starts[~large], lengths[~large]):
            close = distance(hashes[first], hashes[second]) <= max_bits
            found.append(np.stack([first[close], second[close]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1) if found else np.empty((0, 2), np.int64)
    pairs = np.unique(pairs, axis=0)
    return NearPairs(
        pairs,
        distance(hashes[pairs[:, 0]], hashes[pairs[:, 1]]),
        np.unique(np.concatenate(skipped)) if skipped else np.empty(0, np.int64),
    )


def _buckets(
    hashes: Hashes, one: tuple[int, int], other: tuple[int, int]
) -> tuple[Indices, Indices, Indices]:
    """Indices ordered by key, and start and length of each run of one key with two or more."""
    keys = np.full(len(hashes), np.iinfo(np.uint64).max, dtype=np.uint64)
    for flip in FLIPS:
        mirrored = hashes ^ flip
        key = _bits(mirrored, *one) << np.uint64(other[1]) | _bits(mirrored, *other)
        np.minimum(keys, key, out=keys)
    packed = keys << _INDEX_BITS | np.arange(len(hashes), dtype=np.uint64)
    packed.sort()
    keys = packed >> _INDEX_BITS
    order = (packed & ((np.uint64(1) << _INDEX_BITS) - np.uint64(1))).astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    lengths = np.diff(np.append(starts, len(keys)))
    several = lengths > 1
    return order, starts[several], lengths[several]


def _bits(hashes: Hashes, first: int, number: int) -> Hashes:
    return hashes >> np.uint64(first) & np.uint64((1 << number) - 1)


def _meetings(
    order: Indices, starts: Indices, lengths: Indices
) -> Iterator[tuple[Indices, Indices]]:
    """Every pair inside each run, in blocks: neighbors at distance 1, then 2, ..."""
    members = np.repeat(starts + lengths, lengths)  # end of the run of each member
    ends = members
    offsets = np.arange(len(ends)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    positions = np.repeat(starts, lengths) + offsets
    step = 1
    while len(positions):
        inside = positions + step < ends
        positions, ends = positions[inside], ends[inside]
        for block in range(0, len(positions), _BLOCK):
            here = positions[block : block + _BLOCK]
            yield order[here], order[here + step]
        step += 1

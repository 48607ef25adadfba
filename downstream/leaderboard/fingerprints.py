"""Telling copies: of submissions by a hash and a sketch that is kept, of references by themselves.

A hash of the values finds equal content whatever the files are called and however they are packed.
A hash of rounded values would find no more: one voxel that falls on the other side of a rounding
is enough to pass it. So the distance itself is estimated, from a count sketch (Charikar, Chen and
Farach-Colton, Finding frequent items in data streams, ICALP 2002): every voxel is added to one of
`SKETCH` sums with a random sign, and the squared distance of two sketches has the squared distance
of the volumes as its mean, with a relative standard deviation of sqrt(2 / SKETCH), 2 %. Places and
signs come from the secret key of the board, so that nobody can aim at them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from downstream.leaderboard.board import Array
from downstream.leaderboard.task import Kind
from downstream.reconstruction.scores import square

SKETCH = 4096
_SMALL = 1000
"""Labelled voxels below which a mask may meet the reference by chance."""
Sketch = npt.NDArray[np.float32]


def content_hash(arrays: Iterable[Array], kind: Kind) -> str:
    """SHA-256 of what is scored of the arrays, in the order of the cases."""
    digest = hashlib.sha256()
    for array in arrays:
        what = judged(array, kind)
        digest.update(f"{what.shape}".encode() + np.ascontiguousarray(what).tobytes())
    return digest.hexdigest()


def judged(array: Array, kind: Kind) -> Array:
    """The part of an array that is scored."""
    if kind == "segmentation":
        return array
    images: Array = square(array.astype(np.float32, copy=False), min(array.shape[1:]))
    return images + np.float32(0)  # -0 becomes 0


def sketch(array: Array, kind: Kind, key: bytes, case: int) -> tuple[Sketch, float]:
    """The sums of a case, and its size.

    Args:
        array: As `judged`.
        kind: Reconstructions are taken without offset and scale.
        key: Of the board.
        case: Its number.

    Returns:
        ``[SKETCH]``, and labelled voxels of a mask, 1 of images, 0 of constant ones.
    """
    seed = hashlib.sha256(key + case.to_bytes(4, "little")).digest()
    if kind == "reconstruction":
        values, size = _standard(array)
        index = np.arange(values.size, dtype=np.uint64)
    else:
        index = np.flatnonzero(array).astype(np.uint64)
        labels = array.ravel()[index.astype(np.int64)].astype(np.uint64)
        index = index * np.uint64(256) + labels  # another label is another place
        values, size = np.ones(index.size), float(index.size)
    mixed = _mix(index ^ np.uint64(int.from_bytes(seed[:8], "little")))
    place = (mixed % np.uint64(SKETCH)).astype(np.int64)
    signed = np.where(mixed >> np.uint64(63), values, -values)
    sums = np.bincount(place, weights=signed, minlength=SKETCH)
    return sums.astype(np.float32), size


def are_copies(
    one: Sequence[tuple[Sketch, float]], other: Sequence[tuple[Sketch, float]], kind: Kind,
    near: float,
) -> bool:  # fmt: skip
    """Whether two submissions are near in most cases that show anything in either of them."""
    counted, close = 0, 0
    for (a, size_a), (b, size_b) in zip(one, other, strict=True):
        if not size_a and not size_b:
            continue
        counted += 1
        squared = float(((a.astype(np.float64) - b) ** 2).sum())
        distance = squared**0.5 if kind == "reconstruction" else squared / max(size_a, size_b)
        close += distance <= near
    return close > counted / 2


def repeats_references(distances: Iterable[tuple[float, bool]], near: float) -> bool:
    """Whether a submission repeats hidden references, by `distance` of all cases.

    A single image that is near its reference is enough, and so is a single mask of `_SMALL` or more
    labelled voxels; smaller structures can be met by chance, so all of them have to be near.
    """
    found = list(distances)
    return any(tells and far <= near for far, tells in found) or all(
        far <= near for far, _ in found
    )


def distance(reference: Array, estimate: Array, kind: Kind) -> tuple[float, bool]:
    """How far an estimate is from its reference, both as `judged`, as `TaskConfig.near` says.

    Returns:
        The distance, and whether this case alone can tell of a copy.
    """
    if kind == "segmentation":
        size, wrong = (int(np.count_nonzero(x)) for x in (reference, reference != estimate))
        if not size:  # an empty mask is met by whoever finds nothing
            return (float("inf") if wrong else 0.0), False
        return wrong / size, size >= _SMALL
    return float(np.linalg.norm(_standard(reference)[0] - _standard(estimate)[0])), True


def _standard(array: Array) -> tuple[npt.NDArray[np.float64], float]:
    """Values without offset and scale: mean 0, Euclidean norm 1; and 1, or 0 of a constant."""
    values = array.astype(np.float64).ravel()
    values -= values.mean()
    norm = float(np.linalg.norm(values))
    return (values / norm, 1.0) if norm > 0 else (values, 0.0)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014): every bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

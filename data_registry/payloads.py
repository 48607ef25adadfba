"""Voxels in the smallest type that gives them back exactly: what is stored, and the way back.

``voxel = float32(payload * scale)``, computed in float64. A payload is taken only when this
gives every voxel back bit by bit: scanners measure 12 to 16 bits, and readers that apply a rescale
slope turn them into twice as many. Integers become narrower integers, float32 becomes uint8, int16,
uint16 or float16 where it can; complex64 stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_INTEGERS = (np.uint8, np.int16, np.uint16)
_FEW = 4096
"""Voxels by which a volume is judged before all of them are."""


@dataclass(frozen=True, eq=False)
class Payload:
    """What is stored of an array."""

    array: Array
    scale: float = 1.0


def pack(voxels: Array) -> Payload:
    """The smallest payload of a volume.

    Args:
        voxels: Any shape; integers, float32 or complex64.
    """
    if voxels.dtype.kind in "iu":
        return Payload(voxels.astype(_narrowest(voxels), copy=False))
    if voxels.dtype != np.float32 or voxels.size == 0:
        return Payload(voxels)
    # A few voxels rule most candidates out, and cheaply; the slice in the middle is no air.
    few = voxels[len(voxels) // 2].ravel()[:: max(1, voxels[0].size // _FEW)]
    for encode in (_as_integers, _as_half):
        if encode(few) is not None and (payload := encode(voxels)) is not None:
            return payload
    return Payload(voxels)


def unpack(payload: Array, dtype: np.dtype[Any] | str, scale: float = 1.0) -> Array:
    """The voxels of a payload.

    Args:
        payload: As `pack` gave it, or a part of it.
        dtype: Type of the voxels.
        scale: As `pack` gave it.
    """
    if scale == 1.0:
        return payload.astype(dtype, copy=False)
    return np.multiply(payload, scale, dtype=np.float64).astype(dtype)


def _narrowest(voxels: Array) -> np.dtype[Any]:
    low, high = (int(voxels.min()), int(voxels.max())) if voxels.size else (0, 0)
    for dtype in _INTEGERS:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            narrow: np.dtype[Any] = np.dtype(dtype)
            return narrow if narrow.itemsize < voxels.dtype.itemsize else voxels.dtype
    return voxels.dtype


def _as_integers(voxels: Array) -> Payload | None:
    """Multiples of one factor, in at most 16 bits, or None."""
    low, high = float(voxels.min()), float(voxels.max())
    if low == high or not np.isfinite(high - low):
        return None
    scale = _scale(voxels, low, high)
    if scale is None:
        return None
    steps = np.rint(voxels.astype(np.float64) / scale)
    start, stop = steps.min(), steps.max()
    for dtype in _INTEGERS:
        if np.iinfo(dtype).min <= start and stop <= np.iinfo(dtype).max:
            payload = steps.astype(dtype)
            return (
                Payload(payload, scale)
                if _same(unpack(payload, voxels.dtype, scale), voxels)
                else None
            )
    return None


def _scale(voxels: Array, low: float, high: float) -> float | None:
    """The one factor that may turn whole numbers into all voxels."""
    if np.array_equal(voxels, np.rint(voxels)):
        return 1.0
    found = np.unique(voxels)
    values, halves = found.astype(np.float64), np.spacing(np.abs(found)) / 2.0
    if len(values) > 65536 or (step := _step(values)) is None or (high - low) / step > 65536:
        return None
    # float32(steps * scale) is the voxel for every scale within half a unit of its last place;
    # where these intervals of all values meet, one scale serves them all.
    steps = np.rint(values / step)
    used = steps != 0
    middle = values[used] / steps[used]
    reach = halves[used] / np.abs(steps[used])
    lowest, highest = (middle - reach).max(), (middle + reach).min()
    return float((lowest + highest) / 2) if 0 < lowest <= highest else None


def _step(values: npt.NDArray[np.float64]) -> float | None:
    """The common divisor of the distances of ascending values that float32 has rounded."""
    rounding = np.abs(values).max() * 2.0**-23
    gaps = np.diff(values)
    step = gaps.min()
    while step > 8 * rounding:
        rest = np.abs(gaps - np.rint(gaps / step) * step)
        foreign = rest > 2 * rounding * (1 + gaps / step)
        if not foreign.any():
            # The error of a step is divided by ever longer distances.
            for end in (2 ** np.arange(1, 17)).clip(max=len(values)) - 1:
                step = (values[end] - values[0]) / np.rint((values[end] - values[0]) / step)
            return float(step)
        step = rest[foreign].min()
    return None


def _as_half(voxels: Array) -> Payload | None:
    with np.errstate(over="ignore"):
        half = voxels.astype(np.float16)
    return Payload(half) if _same(half.astype(np.float32), voxels) else None


def _same(first: Array, second: Array) -> bool:
    """Bit by bit: -0 is not 0, and NaN is itself."""
    return np.array_equal(first.view(np.uint32), second.view(np.uint32))

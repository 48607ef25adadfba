"""From a volume to the grid and range a model sees, and exactly back.

Steps: orientation (permute and flip), spacing (resample), intensity window, size (center crop or
pad). `Prepared.restore` walks them backwards, so a mask made on prepared slices lands on the voxels
of the original scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError, GeometryError
from core_mri.volume import SLICE_ORIENTATION, Volume


def percentile_window(
    array: npt.NDArray[np.generic], low: float = 0.5, high: float = 99.5
) -> tuple[float, float]:
    """Intensities at two percentiles, between which an image is shown and read.

    Where the percentiles coincide (an image that is nearly all background) it is the whole range.

    Args:
        array: Voxels of any shape.
        low: Percent, 0 to 100, less than `high`.
        high: Percent.

    Raises:
        DataError: DATA-04 when a voxel is not finite, DATA-05 when all voxels are equal.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise DataError("DATA-04", f"{count} of {array.size} voxels are not finite.")
    start, stop = percentiles(array, (low, high))
    if start >= stop:
        start, stop = float(array.min()), float(array.max())
    if start == stop:
        raise DataError("DATA-05", f"all {array.size} voxels have the value {start:g}.")
    return start, stop


def percentiles(
    array: npt.NDArray[np.generic],
    percents: Sequence[float],
    decode: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.generic]] = lambda values: values,
) -> list[float]:
    """Percentiles, interpolated linearly between neighbors as `numpy.percentile` does.

    Integers of 8 and 16 bits are counted, not sorted: ten times as fast, and no large copy.

    Args:
        array: Voxels of any shape, at least one.
        percents: 0 to 100.
        decode: Increasing function from what `array` holds to intensities.
    """
    ranks = np.asarray(percents) / 100 * (array.size - 1)
    below = np.floor(ranks).astype(np.int64)
    above = np.ceil(ranks).astype(np.int64)
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2:
        low = np.iinfo(array.dtype).min  # type: ignore[type-var]
        counts = np.zeros(1 << 8 * array.dtype.itemsize, dtype=np.int64)
        for part in array if array.ndim > 1 else [array]:
            counts += np.bincount(part.ravel().astype(np.int64) - low, minlength=len(counts))
        reached = np.cumsum(counts)
        first, second = (
            (np.searchsorted(reached, rank, side="right") + low).astype(array.dtype)
            for rank in (below, above)
        )
    else:
        ordered = np.partition(array, np.unique([below, above]), axis=None)
        first, second = ordered[below], ordered[above]
    start, stop = (decode(values).astype(np.float64) for values in (first, second))
    return (start + (stop - start) * (ranks - below)).tolist()


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What is done to a volume before a model sees it."""

    orientation: str = "slices"
    """Axis codes of the prepared array such as ``"RAS"``; ``"slices"`` takes slice, row and column
    of the volume's own plane as displayed (`core_mri.volume.SLICE_ORIENTATION`)."""
    spacing_mm: tuple[float | None, float | None, float | None] | None = None
    """Voxel size along the prepared axes in mm; None, for all or for one, keeps what is there."""
    window: tuple[float, float] = (0.5, 99.5)
    """Percentiles that become 0 and 1; values beyond are clipped."""
    size: tuple[int, int] | None = None
    """Rows and columns after center crop or zero padding; None keeps them."""

    def __post_init__(self) -> None:
        problems = []
        if self.orientation != "slices":
            axes = sorted("RLAPSI".find(code) // 2 for code in self.orientation)
            if axes != [0, 1, 2]:
                problems.append(f"orientation {self.orientation!r} is neither 'slices' nor codes")
        if not all(mm is None or mm > 0 for mm in self.spacing_mm or ()):
            problems.append(f"spacing_mm must be positive, got {self.spacing_mm}")
        if not 0 <= self.window[0] < self.window[1] <= 100:
            problems.append(f"window must be two rising percentiles, got {self.window}")
        if self.size is not None and min(self.size) < 1:
            problems.append(f"size must be positive, got {self.size}")
        if problems:
            raise ConfigError("CONFIG-05", f"preprocess: {'; '.join(problems)}.")

    def apply(self, volume: Volume) -> Prepared:
        """Prepare an image, or bring a label map to the same grid without making new values.

        Raises:
            DataError: DATA-04 or DATA-05 as :func:`percentile_window`.
            GeometryError: GEOMETRY-02 when the volume has a fourth dimension.
        """
        if volume.array.ndim != 3:
            raise GeometryError(
                "GEOMETRY-02", f"expected three dimensions, got shape {volume.array.shape}."
            )
        codes = self.orientation
        if codes == "slices":
            codes = SLICE_ORIENTATION[volume.plane]
        turned = volume.reorient(codes)
        array: npt.NDArray[np.generic] = turned.array
        if volume.kind == "image":
            low, high = percentile_window(array, *self.window)
            array = ((array.astype(np.float32) - low) / (high - low)).clip(0, 1)
        shape, affine = _resampled_grid(turned, self.spacing_mm or (None, None, None))
        array = _resample(array, shape, turned.spacing_mm, _spacing(affine), volume.kind == "label")
        rows_columns = self.size or (shape[1], shape[2])
        offsets = (0, (shape[1] - rows_columns[0]) // 2, (shape[2] - rows_columns[1]) // 2)
        final = (shape[0], *rows_columns)
        affine[:3, 3] += affine[:3, :3] @ offsets
        return Prepared(
            array=np.ascontiguousarray(_crop_or_pad(array, offsets, final)),
            affine=affine,
            source=volume,
            _resampled_shape=shape,
            _turned=turned,
            _offsets=offsets,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """A volume as a model sees it, and the way back."""

    array: npt.NDArray[np.generic]
    """``[S, H, W]``: float32 in [0, 1] of an image, the own integer type of a label map."""
    affine: npt.NDArray[np.float64]
    """``(4, 4)``, index of `array` to RAS+ mm."""
    source: Volume
    """The volume that was prepared."""
    _turned: Volume
    _resampled_shape: tuple[int, int, int]
    _offsets: tuple[int, int, int]

    def restore(self, array: npt.NDArray[np.generic]) -> Volume:
        """Put an array of the prepared grid back on the voxels of the source.

        Exact where nothing was resampled or cropped. Resampled integers and booleans take the
        nearest value, floating point is interpolated; voxels that were cropped away become 0.

        Args:
            array: ``[S, H, W]`` of the shape of :attr:`array`: integer or boolean for a mask (comes
                back as kind ``"label"``), floating point for an image.

        Raises:
            GeometryError: GEOMETRY-03 when the shape differs.
        """
        if array.shape != self.array.shape:
            raise GeometryError(
                "GEOMETRY-03", f"expected shape {self.array.shape}, got {array.shape}."
            )
        is_label = array.dtype.kind in "bui"
        if array.dtype.kind == "b":
            array = array.astype(np.uint8)
        back = tuple(-offset for offset in self._offsets)
        array = _crop_or_pad(array, back, self._resampled_shape)
        turned = self._turned
        own = turned.spacing_mm
        array = _resample(array, turned.array.shape, _spacing(self.affine), own, is_label)
        placed = Volume(
            array, turned.affine, "label" if is_label else "image", facts=self.source.facts
        ).reorient(self.source.orientation)
        # Flipping twice rounds the origin twice; the result lies exactly on the source's grid.
        return self.source.with_array(placed.array, kind=placed.kind)


def _spacing(affine: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def _resampled_grid(
    volume: Volume, spacing_mm: Sequence[float | None]
) -> tuple[tuple[int, int, int], npt.NDArray[np.float64]]:
    """Shape and affine of the grid with other spacing and the same center."""
    shape = np.array(volume.array.shape[:3])
    own = np.array(volume.spacing_mm)
    wanted = np.array(
        [have if want is None else want for have, want in zip(own, spacing_mm, strict=True)]
    )
    new_shape = np.maximum(np.rint(shape * own / wanted), 1).astype(int)
    affine = np.array(volume.affine)
    center = affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3]
    affine[:3, :3] *= wanted / own
    affine[:3, 3] = center - affine[:3, :3] @ ((new_shape - 1) / 2)
    i, j, k = (int(n) for n in new_shape)
    return (i, j, k), affine


def _resample(
    array: npt.NDArray[np.generic],
    shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    nearest: bool,
) -> npt.NDArray[np.generic]:
    """Resample axis by axis onto a grid with the same center."""
    for axis, (num, have, want) in enumerate(zip(shape, spacing, new_spacing, strict=True)):
        old_num = array.shape[axis]
        if num == old_num and np.isclose(have, want, rtol=1e-6, atol=0):
            continue
        # Where the new voxel centers lie on the old index axis.
        at = (np.arange(num) - (num - 1) / 2) * (want / have) + (old_num - 1) / 2
        if nearest:
            picked = np.clip(np.floor(at + 0.5), 0, old_num - 1).astype(int)
            array = np.take(array, picked, axis=axis)
            continue
        # A triangle as wide as the larger voxel: linear interpolation when the grid gets finer, an
        # average against aliasing when it gets coarser.
        width = max(1.0, want / have)
        weights = np.clip(1 - np.abs(np.arange(old_num) - at[:, None]) / width, 0, None)
        outside = weights.sum(axis=1) == 0
        weights[outside, np.clip(np.rint(at[outside]), 0, old_num - 1).astype(int)] = 1
        weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        array = np.moveaxis(np.tensordot(weights, array, axes=(1, axis)), 0, axis)
    return array


def _crop_or_pad(
    array: npt.NDArray[np.generic], offsets: Sequence[int], shape: Sequence[int]
) -> npt.NDArray[np.generic]:
    """The window of `shape` that starts at `offsets`; zero where it lies outside of `array`."""
    if tuple(shape) == array.shape and not any(offsets):
        return array
    result = np.zeros(shape, dtype=array.dtype)
    into, out_of = [], []
    for offset, num, have in zip(offsets, shape, array.shape, strict=True):
        into.append(slice(max(-offset, 0), max(min(have - offset, num), 0)))
        out_of.append(slice(max(offset, 0), max(min(offset + num, have), 0)))
    result[tuple(into)] = array[tuple(out_of)]
    return result

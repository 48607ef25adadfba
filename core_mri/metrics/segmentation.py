"""Overlap and surface agreement of two binary masks on one grid.

Masks are boolean, or numbers of which only 0 and 1 occur, with 2 or 3 axes. What an empty mask
scores is a convention, and this is ours:

==================  ======  ==============  =============
case                `dice`  `surface_dice`  `hausdorff95`
==================  ======  ==============  =============
both masks empty    1.0     1.0             nan
only one is empty   0.0     0.0             inf
==================  ======  ==============  =============

The surface of a mask is the set of its voxels that touch, across a face, a voxel outside it or the
border of the image, and every such voxel weighs the same, as in MONAI's `get_mask_edges`.
DeepMind's `surface-distance` places the surface between voxels and weighs it by area: its numbers
differ a little. An axis of one voxel makes every voxel a surface voxel: pass single slices as 2D
masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SLACK_MM = 1e-6  # three voxels of 0.1 mm are 0.3 mm, whatever their binary fractions add up to


def dice(
    reference: npt.ArrayLike,
    estimate: npt.ArrayLike,
    *,
    spacing_mm: Sequence[float] | None = None,  # noqa: ARG001
) -> float:
    """Dice's coefficient ``2 |R and E| / (|R| + |E|)``.

    Source: Dice, Measures of the amount of ecologic association between species, Ecology 26 (1945).

    Args:
        reference: Mask ``[H, W]`` or ``[S, H, W]``.
        estimate: Mask of the same shape.
        spacing_mm: Accepted so that all three scores can be called alike; all voxels of one grid
            have the same size, so it does not change the result.

    Returns:
        A number in [0, 1]; 1.0 when both masks are empty, 0.0 when only one is.

    Raises:
        ValueError: The shapes differ, or a mask holds something else than 0 and 1.
    """
    reference, estimate = _masks(reference, estimate)
    total = int(reference.sum()) + int(estimate.sum())
    return 2 * int((reference & estimate).sum()) / total if total else 1.0


def surface_dice(
    reference: npt.ArrayLike,
    estimate: npt.ArrayLike,
    *,
    spacing_mm: Sequence[float],
    tolerance_mm: float = 1.0,
) -> float:
    """Share of both surfaces that lies within `tolerance_mm` of the other surface.

    ``(|{r in dR: d(r, dE) <= t}| + |{e in dE: d(e, dR) <= t}|) / (|dR| + |dE|)`` with dR, dE the
    surfaces and d the Euclidean distance in millimeters. Source: Nikolov et al., Deep learning to
    achieve clinically applicable segmentation of head and neck anatomy for radiotherapy,
    arXiv:1809.04430 (2018); surface voxels as in MONAI's `SurfaceDiceMetric(use_subvoxels=False)`.

    Args:
        reference: Mask ``[H, W]`` or ``[S, H, W]``.
        estimate: Mask of the same shape.
        spacing_mm: Voxel size along each axis of the masks, millimeters.
        tolerance_mm: Deviation t that counts as agreement, millimeters, 0 or more.

    Returns:
        A number in [0, 1]; 1.0 when both masks are empty, 0.0 when only one is.

    Raises:
        ValueError: As `dice`, or `spacing_mm` or `tolerance_mm` is out of its range.
    """
    if not 0 <= tolerance_mm < np.inf:
        raise ValueError(f"tolerance_mm must be 0 or more and finite, got {tolerance_mm}")
    distances = _surface_distances(*_masks(reference, estimate), spacing_mm)
    both = np.concatenate(distances)
    return float((both <= tolerance_mm + _SLACK_MM).mean()) if both.size else 1.0


def hausdorff95(
    reference: npt.ArrayLike, estimate: npt.ArrayLike, *, spacing_mm: Sequence[float]
) -> float:
    """The 95th percentile of the distance to the other surface, the worse of both directions.

    ``max(P95{d(r, dE): r in dR}, P95{d(e, dR): e in dE})``, percentiles linearly interpolated.
    Source: Huttenlocher et al., Comparing images using the Hausdorff distance, IEEE TPAMI 15
    (1993), whose ranked distance this is; as MONAI's `HausdorffDistanceMetric(percentile=95)`.

    Args:
        reference: Mask ``[H, W]`` or ``[S, H, W]``.
        estimate: Mask of the same shape.
        spacing_mm: Voxel size along each axis of the masks, millimeters.

    Returns:
        Millimeters, 0 or more; nan when both masks are empty (there is nothing to measure), inf
        when only one is.

    Raises:
        ValueError: As `dice`, or `spacing_mm` is out of its range.
    """
    from_reference, from_estimate = _surface_distances(*_masks(reference, estimate), spacing_mm)
    if not from_reference.size or not from_estimate.size:
        return float("inf") if from_reference.size or from_estimate.size else float("nan")
    return float(max(np.quantile(from_reference, 0.95), np.quantile(from_estimate, 0.95)))


def _masks(
    reference: npt.ArrayLike, estimate: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    arrays = np.asarray(reference), np.asarray(estimate)
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(f"masks differ in shape: {arrays[0].shape} and {arrays[1].shape}")
    for array in arrays:
        if array.dtype != np.bool_ and not ((array == 0) | (array == 1)).all():
            raise ValueError("a mask holds 0 and 1 only; compare label maps one label at a time")
    return arrays[0].astype(np.bool_), arrays[1].astype(np.bool_)


def _surface_distances(
    reference: npt.NDArray[np.bool_], estimate: npt.NDArray[np.bool_], spacing_mm: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Millimeters from each surface voxel of either mask to the other's surface: ([r], [e])."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (reference.ndim,) or not ((spacing > 0) & np.isfinite(spacing)).all():
        raise ValueError(
            f"spacing_mm must be {reference.ndim} positive numbers, one per axis, got {spacing_mm}"
        )
    inside = np.argwhere(reference | estimate)
    if not inside.size:
        return np.empty(0), np.empty(0)
    # The box of both masks holds both surfaces, so nothing outside it can change a distance.
    box = tuple(
        slice(int(low), int(high) + 1)
        for low, high in zip(inside.min(axis=0), inside.max(axis=0), strict=True)
    )
    surfaces = [mask[box] & ~binary_erosion(mask[box]) for mask in (reference, estimate)]
    to_surface = [
        distance_transform_edt(~surface, sampling=spacing)
        if surface.any()
        else np.full(surface.shape, np.inf)  # the transform has no meaning without a surface
        for surface in surfaces
    ]
    return to_surface[1][surfaces[0]], to_surface[0][surfaces[1]]

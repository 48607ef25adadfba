"""Edits of label maps: a lesion inserted, grown, shrunk, moved or mirrored where anatomy allows it.

A lesion is the voxels that lie deepest in its posed shape, reached from its center through allowed
tissue alone, as many as the volume asked for has. So it is exact in volume, in one piece, inside
the tissue, and never jumps across a ventricle or the skull.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError
from core_mri.volume import Volume
from downstream.synthesis.lesions import (
    Floats,
    Mask,
    Pose,
    Shape,
    ball_radius_mm,
    depth_mm,
    find_lesions,
    voxel_ml,
)

Labels = npt.NDArray[np.integer[Any]]
TOLERANCE = 0.02
"""Largest deviation from the volume asked for, as a share."""
_TRIES = 12
_LEAST_OF_SHAPE = 0.75
"""Part of a lesion that must lie within its posed shape: with less it did not fit there."""
_PUSHED_RADII = 6
"""Beyond it tissue moves less than a hundredth of the radius."""
_NEIGHBOURS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is asked for; with a seed it says all."""

    seed: int = 0
    """Of the place, the turn and the bending."""
    volume_ml: float = 0.0
    """Volume of the lesion afterwards, met within 2 %; 0 keeps that of the shape."""
    place_mm: tuple[float, float, float] | None = None
    """Where its center goes, RAS+ mm; drawn among the allowed places when None."""
    mirror: bool = False
    """Left and right of the shape exchanged."""
    turn: bool = True
    """Rotate the shape at random."""
    bend: float = 0.25
    """Largest random bending over the radius of the lesion; 0 keeps the shape."""
    mass_effect: float = 0.0
    """Part of the lesion's volume by which it pushes the tissue around it aside, 0 to 1."""

    def __post_init__(self) -> None:
        if self.volume_ml < 0 or not 0 <= self.bend <= 0.5 or not 0 <= self.mass_effect <= 1:
            raise ConfigError(
                "CONFIG-05",
                f"volume_ml must be 0 or more, bend in [0, 0.5], mass_effect in [0, 1]; got "
                f"{self.volume_ml}, {self.bend}, {self.mass_effect}.",
            )


@dataclass(frozen=True, eq=False)
class Edited:
    """An edited label map."""

    labels: Volume
    """Values as before, and the lesion."""
    lesion: Mask
    """The voxels that the edit made lesion; exactly those of `labels`."""
    provenance: dict[str, Any]
    """What was asked for and what was done; JSON-able."""


def check_values(labels: Volume, names: Mapping[int, str]) -> None:
    """Refuse a label map with values that nobody named.

    Raises:
        DataError: SYNTH-01 naming them.
    """
    strange = sorted(set(np.unique(labels.array).tolist()) - {0, *names})
    if strange:
        raise DataError(
            "SYNTH-01",
            f"the label map holds the values {strange[:10]}; known are 0 and {dict(names)}.",
            fix="Name every value of the label map.",
        )


def insert(
    labels: Volume, shape: Shape, edit: Edit, *, value: int, inside: Sequence[int]
) -> Edited:
    """Put a lesion into a label map.

    Args:
        labels: Anatomy; 0 is outside of the head, or unlabelled.
        shape: The lesion.
        edit: What is asked for.
        value: Of the lesion in the label map.
        inside: Values of the tissues it may lie in.

    Raises:
        DataError: SYNTH-02 when the lesion is larger than the tissue, SYNTH-03 when there is no
            healthy tissue at the place or nowhere room enough, SYNTH-04 when voxels are too
            coarse for the volume.
    """
    rng = np.random.default_rng(edit.seed)
    allowed = np.isin(labels.array, list(inside))
    unit = voxel_ml(labels.affine[:3, :3])
    wanted_ml = edit.volume_ml or max(1, round(shape.volume_ml / unit)) * unit
    count = _count(wanted_ml, unit, allowed)
    pose = Pose(
        scale=ball_radius_mm(wanted_ml) / shape.radius_mm,
        angles=tuple(rng.uniform(-math.pi, math.pi, 3)) if edit.turn else (0.0, 0.0, 0.0),
        mirror=edit.mirror,
        bend=edit.bend,
        seed=int(rng.integers(2**31)),
    )
    lesion, place = _placed(labels, allowed, shape, pose, count, edit, rng)
    array = np.array(labels.array)
    if edit.mass_effect:
        array = _pushed(array, labels, place, ball_radius_mm(count * unit), edit.mass_effect)
    array[lesion] = value
    facts = {
        "asked": asdict(edit),
        "shape_of": shape.subject,
        "shape_ml": round(shape.volume_ml, 4),
        "volume_ml": round(count * unit, 4),
        "voxels": count,
        "value": value,
        "inside": sorted(int(v) for v in inside),
        "place_mm": [round(float(x), 2) for x in place],
        "pose": {key: part for key, part in asdict(pose).items() if key != "seed"},
    }
    return Edited(labels.with_array(array), lesion, facts)


def change(
    labels: Volume,
    which: int,
    edit: Edit,
    *,
    value: int,
    inside: Sequence[int],
    subject: str = "",
) -> Edited:
    """Grow, shrink, move, mirror or bend a lesion that is there.

    Without a place it stays where it is. What it leaves becomes the tissue nearest to it.

    Args:
        labels: Anatomy with lesions.
        which: Number of the lesion, from 0 for the largest.
        edit: What is asked for.
        value: Of the lesions.
        inside: Values of the tissues it may lie in.
        subject: Whose labels these are.

    Raises:
        DataError: SYNTH-05 when there is no such lesion; SYNTH-02 to SYNTH-04 as `insert`.
    """
    found = find_lesions(labels, [value], subject, min_voxels=1)
    if not 0 <= which < len(found):
        raise DataError(
            "SYNTH-05",
            f"there is no lesion {which}: the label map shows {len(found)} of value {value}.",
            fix="Lesions are numbered from 0, the largest first.",
        )
    shape = found[which]
    healed = heal(labels, shape, inside)
    asked = replace(edit, place_mm=edit.place_mm or shape.center_mm)
    edited = insert(healed, shape, asked, value=value, inside=inside)
    return replace(edited, provenance=edited.provenance | {"changed_lesion": which})


def heal(labels: Volume, shape: Shape, inside: Sequence[int]) -> Volume:
    """The label map with one of its own lesions replaced by the nearest allowed tissue."""
    from scipy import ndimage

    array = np.array(labels.array)
    own = np.argwhere(shape.mask)
    middle = own.mean(0)
    center = np.linalg.inv(labels.affine)[:3] @ [*shape.center_mm, 1]
    lesion = tuple((own + np.rint(center - middle).astype(int)).T)
    nearest = ndimage.distance_transform_edt(
        ~np.isin(array, list(inside)), labels.spacing_mm, return_distances=False,
        return_indices=True,
    )  # fmt: skip
    array[lesion] = array[tuple(nearest[(slice(None), *lesion)])]
    return labels.with_array(array)


def _count(wanted_ml: float, unit: float, allowed: Mask) -> int:
    """Voxels of the lesion.

    Raises:
        DataError: SYNTH-02, SYNTH-04.
    """
    room = float(allowed.sum()) * unit
    if wanted_ml > room:
        raise DataError(
            "SYNTH-02",
            f"a lesion of {wanted_ml:g} ml is larger than all tissue it may lie in, {room:.3g} ml.",
            fix="Ask for a smaller lesion, or allow more tissues.",
        )
    count = round(wanted_ml / unit)
    if abs(count * unit - wanted_ml) > TOLERANCE * wanted_ml:
        raise DataError(
            "SYNTH-04",
            f"a lesion of {wanted_ml:g} ml is {wanted_ml / unit:.1f} voxels of {unit:.2g} ml: no "
            "whole number of voxels is within 2 % of it.",
            fix=f"Ask for a multiple of the voxel, or for {25 * unit:.3g} ml or more.",
        )
    return count


def _placed(
    labels: Volume, allowed: Mask, shape: Shape, pose: Pose, count: int, edit: Edit,
    rng: np.random.Generator,
) -> tuple[Mask, Floats]:  # fmt: skip
    """The lesion at the place asked for, or at the first drawn one where it fits.

    Raises:
        DataError: SYNTH-03.
    """
    affine = labels.affine
    if edit.place_mm is not None:
        place = np.array(edit.place_mm)
        index = np.rint(np.linalg.inv(affine)[:3] @ [*place, 1]).astype(int)
        within = bool((index >= 0).all() and (index < labels.shape).all())
        if not within or not _touches(allowed, index):
            there = int(labels.array[tuple(index)]) if within else "outside of the volume"
            raise DataError(
                "SYNTH-03",
                f"no healthy tissue at {tuple(round(float(x), 1) for x in place)} mm: the label "
                f"there is {there}.",
                fix="Choose a place in one of the tissues allowed, or leave the place out.",
            )
        places = [place]
    else:
        places = _candidates(labels, allowed, pose.scale * shape.radius_mm, rng)
    for place in places:
        lesion = _grown(labels, allowed, shape, pose, place, count)
        if lesion is not None:
            return lesion, place
    where = "there" if edit.place_mm is not None else f"at any of {len(places)} places tried"
    raise DataError(
        "SYNTH-03",
        f"a lesion of {count} voxels does not fit into healthy tissue {where} without crossing "
        "a border of it.",
        fix="Ask for a smaller lesion, another place or another seed, or allow more tissues.",
    )


def _touches(allowed: Mask, index: npt.NDArray[np.int64]) -> bool:
    """Whether a voxel or one beside it is allowed: a healed center may lie on a border."""
    low = np.maximum(index - 1, 0)
    return bool(allowed[tuple(slice(a, b + 2) for a, b in zip(low, index, strict=True))].any())


def _candidates(
    labels: Volume, allowed: Mask, radius_mm: float, rng: np.random.Generator
) -> list[Floats]:
    """Places for a center: deep enough in the tissue for a third of the radius, if any are."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(allowed, labels.spacing_mm)
    flat = np.flatnonzero(depth >= min(radius_mm / 3, float(depth.max())))
    drawn = rng.choice(flat, min(_TRIES, len(flat)), replace=False)
    found = np.stack(np.unravel_index(drawn, allowed.shape), 1)
    return list(found @ labels.affine[:3, :3].T + labels.affine[:3, 3])


def _grown(
    labels: Volume, allowed: Mask, shape: Shape, pose: Pose, place: Floats, count: int
) -> Mask | None:
    """The `count` deepest voxels of the posed shape that can be reached; None: no room."""
    radius = pose.scale * shape.radius_mm
    # The farthest voxel of the shape, and room for what tissue pushes outwards.
    corners = (np.argwhere(shape.mask) - np.argwhere(shape.mask).mean(0)) @ shape.axes.T
    reach = pose.scale * float(np.linalg.norm(corners, axis=1).max()) + 1.5 * radius
    center = np.linalg.inv(labels.affine)[:3] @ [*place, 1]
    half = reach / np.array(labels.spacing_mm) + 1
    low = np.maximum(np.floor(center - half).astype(int), 0)
    high = np.minimum(np.ceil(center + half).astype(int) + 1, labels.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)),
                                 indexing="ij"))  # fmt: skip
    points = np.tensordot(labels.affine[:3, :3], index - center[:, None, None, None], 1)
    depth = depth_mm(shape, pose, points)
    own = allowed[box]
    if not own.any():
        return None
    found = _flood(np.where(own, depth, np.inf), points, count)
    border = 0.5 * max(labels.spacing_mm)
    if found is None or (depth[found] <= border).mean() < _LEAST_OF_SHAPE:
        return None
    lesion = np.zeros(labels.shape, dtype=bool)
    lesion[box] = found
    return lesion


def _flood(depth: Floats, points: Floats, count: int) -> Mask | None:
    """Grow from the deepest voxel near the center, always to the deepest neighbour."""
    distance = np.square(points).sum(0)
    near = distance <= np.sort(distance.ravel())[min(27, distance.size - 1)]
    start = np.unravel_index(int(np.argmin(np.where(near, depth, np.inf))), depth.shape)
    if not np.isfinite(depth[start]):
        return None
    taken = np.zeros(depth.shape, dtype=bool)
    seen = np.zeros(depth.shape, dtype=bool)
    heap = [(float(depth[start]), tuple(int(i) for i in start))]
    seen[start] = True
    for _ in range(count):
        if not heap or heap[0][0] == np.inf:
            return None
        _, voxel = heapq.heappop(heap)
        taken[voxel] = True
        for step in _NEIGHBOURS:
            other = tuple(a + b for a, b in zip(voxel, step, strict=True))
            if all(0 <= i < n for i, n in zip(other, depth.shape, strict=True)) and not seen[other]:
                seen[other] = True
                heapq.heappush(heap, (float(depth[other]), other))
    return taken


def _pushed(
    array: Labels, labels: Volume, place: Floats, radius_mm: float, strength: float
) -> Labels:
    """Tissue moved away from the center of a lesion, less and less with the distance.

    A shell at r came from ``r' = (r^3 - m R^3 exp(1 - r / R))^(1/3)``: near the surface the volume
    m that the lesion took is found again outside of it. What is outside of the head stays, and the
    head keeps its outline, as bone does.
    """
    from scipy import ndimage

    matrix = labels.affine[:3, :3]
    center = np.linalg.solve(matrix, place - labels.affine[:3, 3])
    half = _PUSHED_RADII * radius_mm / np.array(labels.spacing_mm)
    low = np.maximum(np.floor(center - half).astype(int), 0)
    high = np.minimum(np.ceil(center + half).astype(int) + 1, array.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    index = np.indices([b - a for a, b in zip(low, high, strict=True)]).reshape(3, -1)
    offset = index + (low - center)[:, None]
    distance = np.maximum(np.linalg.norm(matrix @ offset, axis=0), 1e-6)
    inner = distance**3 - strength * radius_mm**3 * np.exp(1 - distance / radius_mm)
    source = offset * (np.cbrt(np.maximum(inner, 0)) / distance) + center[:, None]
    old = array[box]
    moved = ndimage.map_coordinates(array, source, order=0, mode="nearest").reshape(old.shape)
    array[box] = np.where((old == 0) | (moved == 0), old, moved)
    return array

"""Shapes of lesions: cut out of label maps, turned, bent and scaled, and asked how deep a point is.

Axes: voxel indices (i, j, k) of a label volume, and RAS+ mm by its affine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.volume import Volume

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
MIN_VOXELS = 5
"""Smaller parts are not taken for shapes."""
_WAVES = 4


@dataclass(frozen=True, eq=False)
class Shape:
    """One connected lesion of a patient."""

    mask: Mask
    """Its voxels, cut out with one empty voxel around."""
    axes: Floats
    """[3, 3], steps of the indices in RAS+ mm."""
    center_mm: tuple[float, float, float]
    """Center of mass in the patient it comes from, RAS+ mm."""
    subject: str
    """Whose it is: a pseudonym of the registry, or the name of a file."""

    @property
    def volume_ml(self) -> float:
        """Its volume."""
        return float(self.mask.sum() * voxel_ml(self.axes))

    @property
    def radius_mm(self) -> float:
        """Of a ball of the same volume."""
        return ball_radius_mm(self.volume_ml)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How a shape is laid into an anatomy."""

    scale: float = 1.0
    """Factor on lengths."""
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Rotation about x, y and z, radians."""
    mirror: bool = False
    """Left and right exchanged."""
    bend: float = 0.0
    """Largest displacement over the radius."""
    seed: int = 0
    """Of the bending."""


def find_lesions(
    labels: Volume, values: Iterable[int], subject: str, *, min_voxels: int = MIN_VOXELS
) -> list[Shape]:
    """The connected parts of a structure, largest first.

    Args:
        labels: Label volume.
        values: Values of the structure.
        subject: Whose labels these are.
        min_voxels: Smaller parts are left out.
    """
    from scipy import ndimage

    # Voxels that share a corner belong together (26 neighbours), as lesions are often counted.
    parts, count = ndimage.label(np.isin(labels.array, list(values)), np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    found = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        if sizes[number] < min_voxels:
            continue
        own = parts[box] == number
        middle = np.argwhere(own).mean(0) + [part.start for part in box]
        x, y, z = (labels.affine[:3] @ [*middle, 1]).tolist()
        axes = np.array(labels.affine[:3, :3])
        found.append(Shape(np.pad(own, 1), axes, (x, y, z), subject))
    return sorted(found, key=lambda shape: -shape.volume_ml)


def draw_shape(shapes: Sequence[Shape], rng: np.random.Generator) -> Shape:
    """One of them; every patient is as likely as the next, however many lesions each has.

    Raises:
        DataError: SYNTH-05 when there is none.
    """
    if not shapes:
        raise DataError(
            "SYNTH-05",
            "the label maps show no lesion to take a shape from.",
            fix="Name the structure as the label maps do, or give more training patients.",
        )
    subjects = sorted({shape.subject for shape in shapes})
    chosen = subjects[rng.integers(len(subjects))]
    own = [shape for shape in shapes if shape.subject == chosen]
    return own[rng.integers(len(own))]


def depth_mm(shape: Shape, pose: Pose, points_mm: Floats) -> Floats:
    """Signed distance of points to the surface of a posed shape; negative inside.

    The distance of the shape's own grid is scaled with it; bending makes it approximate, which
    changes where the surface is taken and not how much lies within.

    Args:
        shape: The shape.
        pose: How it lies.
        points_mm: [3, ...], RAS+ mm from the place of its center.

    Returns:
        [...], mm.
    """
    from scipy import ndimage

    spacing = np.linalg.norm(shape.axes, axis=0)
    margin = [math.ceil(0.8 * shape.radius_mm / step) + 2 for step in spacing]
    mask = np.pad(shape.mask, [(m, m) for m in margin])
    outside = ndimage.distance_transform_edt(~mask, spacing)
    inside = ndimage.distance_transform_edt(mask, spacing)
    signed = outside - inside
    flat = points_mm.reshape(3, -1)
    local = _rotation(pose.angles).T @ flat / pose.scale
    if pose.mirror:
        local[0] *= -1
    if pose.bend:
        local = local + _bending(local, pose, shape.radius_mm)
    middle = np.argwhere(mask).mean(0)
    index = np.linalg.inv(shape.axes) @ local + middle[:, None]
    far = float(signed.max())
    found = ndimage.map_coordinates(signed, index, order=1, cval=far) * pose.scale
    return np.asarray(found.reshape(points_mm.shape[1:]), dtype=np.float64)


def voxel_ml(axes: Floats) -> float:
    """Volume of a voxel."""
    return float(abs(np.linalg.det(axes)) / 1000)


def ball_radius_mm(volume_ml: float) -> float:
    """``(3 V / 4 pi)^(1/3)``."""
    return float((3 * 1000 * volume_ml / (4 * math.pi)) ** (1 / 3))


def _bending(points: Floats, pose: Pose, radius_mm: float) -> Floats:
    """A few plane waves, two to four radii long: smooth, and a function of the seed."""
    rng = np.random.default_rng(pose.seed)
    moved = np.zeros_like(points)
    for axis in range(3):
        for _ in range(_WAVES):
            direction = rng.normal(size=3)
            direction *= 2 * math.pi / (rng.uniform(2, 4) * radius_mm * np.linalg.norm(direction))
            moved[axis] += np.sin(direction @ points + rng.uniform(0, 2 * math.pi))
    return moved * (pose.bend * radius_mm / _WAVES)


def _rotation(angles: Sequence[float]) -> Floats:
    """About x, then y, then z."""
    (a, b, c), (u, v, w) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -u], [0, u, a]])
    about_y = np.array([[b, 0, v], [0, 1, 0], [-v, 0, b]])
    about_z = np.array([[c, -w, 0], [w, c, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)

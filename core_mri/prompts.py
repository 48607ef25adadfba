"""Prompts of objects, in voxels of a volume, as pixels of its prepared slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, GeometryError
from core_mri.preprocess import Prepared, Preprocess
from core_mri.volume import Volume

Point = Sequence[int]
"""(i, j, k, 1 inside or 0 outside), 0-based voxel indices of the array of the volume."""
Box = Sequence[int]
"""(i0, j0, k0, i1, j1, k1), half-open."""
Points = Sequence[Point] | Mapping[int, Sequence[Point]]
"""All of object 1, or by the number of the object."""
Boxes = Sequence[Box] | Mapping[int, Sequence[Box]]
"""One object each, from 1, or by the number of the object."""

MAX_OBJECTS = 255
"""A label volume is of 8 bits."""


@dataclass
class SlicePrompt:
    """What is asked of one slice: pixel indices (x, y) of the prepared slice."""

    points: list[tuple[int, int, int]] = field(default_factory=list)
    """(x, y, label)."""
    box: tuple[int, int, int, int] | None = None
    """(x0, y0, x1, y1), first and last pixel."""
    mask: npt.NDArray[np.bool_] | None = None
    """[H, W], an earlier answer."""

    @property
    def says_where(self) -> bool:
        """Whether it shows the object, and not only what is outside of it."""
        inside = any(label for *_, label in self.points)
        return inside or self.box is not None or self.mask is not None


@dataclass
class ObjectPrompt:
    """What is asked about one object."""

    slices: dict[int, SlicePrompt] = field(default_factory=dict)
    bounded: bool = False
    """A box or mask over several slices says where the object ends."""


def prompts_of_objects(
    prepared: Prepared, boxes: Boxes, points: Points, mask: Volume | None = None
) -> dict[int, ObjectPrompt]:
    """The prompts of each object, by its number.

    Raises:
        ConfigError: CONFIG-05 when there is no prompt, one lies outside the volume, an object has
            only points outside of it, or a number is not in 1 to 255.
        GeometryError: GEOMETRY-03 when `mask` is on another grid.
    """
    if not isinstance(boxes, Mapping):
        boxes = {number: [box] for number, box in enumerate(boxes, start=1)}
    if not isinstance(points, Mapping):
        if len(boxes) > 1 and len(points):
            raise ConfigError(
                "CONFIG-05",
                f"{len(points)} points with {len(boxes)} boxes: which object they mean is not "
                "said.",
                fix="Give points by object: points={1: [(i, j, k, 1)]}, --point i,j,k,1,OBJECT.",
            )
        points = {next(iter(boxes), 1): points} if len(points) else {}
    objects = _objects_of_mask(prepared, mask)
    for number, group in boxes.items():
        found = objects.setdefault(number, ObjectPrompt())
        for box in group:
            _add_box(prepared, found, box)
    for number, clicks in points.items():
        _add_points(prepared, objects.setdefault(number, ObjectPrompt()), clicks)
    _check_objects(objects)
    return objects


def to_prepared(prepared: Prepared, indices: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Voxel indices (i, j, k) of the source to [slice, row, column] of the prepared array."""
    matrix = np.linalg.inv(prepared.affine) @ prepared.source.affine
    return np.rint(np.asarray(indices) @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.int64)


def _objects_of_mask(prepared: Prepared, mask: Volume | None) -> dict[int, ObjectPrompt]:
    if mask is None:
        return {}
    if not mask.same_grid(prepared.source):
        raise GeometryError(
            "GEOMETRY-03",
            f"the mask has shape {mask.shape}, the volume {prepared.source.shape}, or they lie "
            "elsewhere in the patient.",
            fix="Give a mask on the grid of the volume, such as an earlier answer.",
        )
    values = np.unique(mask.array)
    wrong = values[(values != np.rint(values)) | (values < 0) | (values > MAX_OBJECTS)]
    if len(wrong):
        raise ConfigError(
            "CONFIG-05",
            f"a mask holds the numbers of objects, 0 to {MAX_OBJECTS}, got {wrong[0]:g}.",
        )
    labels = mask.with_array(mask.array.astype(np.uint8), kind="label")
    array = Preprocess().apply(labels).array
    objects = {}
    for number in np.unique(array[array != 0]).tolist():
        found = array == number
        slices = {
            int(s): SlicePrompt(mask=found[s]) for s in np.flatnonzero(found.any(axis=(1, 2)))
        }
        objects[number] = ObjectPrompt(slices, bounded=len(slices) > 1)
    return objects


def _add_box(prepared: Prepared, found: ObjectPrompt, box: Box) -> None:
    shape = prepared.source.shape
    if len(box) != 6:
        raise ConfigError("CONFIG-05", f"a box is i0,j0,k0,i1,j1,k1, got {tuple(box)}.")
    _check("box", box, box[:3], [0, 0, 0], [n - 1 for n in shape])
    _check("box", box, box[3:], [start + 1 for start in box[:3]], list(shape))
    ends = to_prepared(prepared, [box[:3], [stop - 1 for stop in box[3:]]])
    (s0, y0, x0), (s1, y1, x1) = ends.min(0).tolist(), ends.max(0).tolist()
    found.bounded |= s1 > s0
    for s in range(s0, s1 + 1):
        prompt = found.slices.setdefault(s, SlicePrompt())
        if prompt.box is not None:
            raise ConfigError(
                "CONFIG-05", f"box {tuple(box)}: another box of its object crosses the same slice."
            )
        prompt.box = (x0, y0, x1, y1)


def _add_points(prepared: Prepared, found: ObjectPrompt, points: Sequence[Point]) -> None:
    for point in points:
        if len(point) != 4 or point[3] not in (0, 1):
            raise ConfigError("CONFIG-05", f"a point is i,j,k,1 or i,j,k,0, got {tuple(point)}.")
        top = [n - 1 for n in prepared.source.shape]
        _check("point", point, point[:3], [0, 0, 0], top)
        s, y, x = to_prepared(prepared, [point[:3]])[0].tolist()
        found.slices.setdefault(s, SlicePrompt()).points.append((x, y, int(point[3])))


def _check(
    what: str, whole: Sequence[int], got: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> None:
    for axis, value, least, most in zip("ijk", got, low, high, strict=True):
        if value != int(value):
            raise ConfigError(
                "CONFIG-05",
                f"{what} {tuple(whole)}: {axis} is {value}; voxel indices are whole numbers.",
            )
        if not least <= value <= most:
            raise ConfigError(
                "CONFIG-05",
                f"{what} {tuple(whole)}: {axis} is {value}, allowed is {least} to {most}.",
                fix="Prompts are 0-based voxel indices; the end of a box is not in it.",
            )


def _check_objects(objects: Mapping[int, ObjectPrompt]) -> None:
    if not any(found.slices for found in objects.values()):
        raise ConfigError("CONFIG-05", "no prompt: give a box or a point.")
    for number, found in objects.items():
        if not 1 <= number <= MAX_OBJECTS:
            raise ConfigError(
                "CONFIG-05",
                f"object {number}: allowed is 1 to {MAX_OBJECTS}, at most {MAX_OBJECTS} objects.",
            )
        if not any(prompt.says_where for prompt in found.slices.values()):
            raise ConfigError(
                "CONFIG-05",
                f"object {number} has no point inside: all are outside of it.",
                fix="Add a point i,j,k,1, a box or a mask.",
            )

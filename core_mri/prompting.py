"""Prompts in voxels of a volume, answered slice by slice by a `PromptableSegmenter`.

A box is the prompt of every slice it crosses. An object that is prompted on one slice alone is
followed both ways: the box around its mask is the prompt of the next slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from core_mri.errors import ConfigError
from core_mri.models.promptable import PromptableSegmenter
from core_mri.preprocess import Prepared, Preprocess
from core_mri.slice_grid import image_to_square
from core_mri.volume import Volume

Point = Sequence[int]
"""(i, j, k, 1 inside or 0 outside), 0-based voxel indices of the array of the volume."""
Box = Sequence[int]
"""(i0, j0, k0, i1, j1, k1), half-open."""

MAX_GROWTH = 2.0
"""Following stops where the area changes by more than this factor from slice to slice."""


@dataclass
class SlicePrompt:
    """What is asked of one slice: pixel indices (x, y) of the prepared slice."""

    points: list[tuple[int, int, int]] = field(default_factory=list)
    """(x, y, label)."""
    box: tuple[int, int, int, int] | None = None
    """(x0, y0, x1, y1), first and last pixel."""


def prompts_of_objects(
    prepared: Prepared, boxes: Sequence[Box], points: Sequence[Point]
) -> list[dict[int, SlicePrompt]]:
    """For each object its prompts by slice: each box is an object; points belong to the only one.

    Raises:
        ConfigError: CONFIG-05 when there is no prompt, a prompt lies outside the volume, or points
            come with several boxes.
    """
    if not len(boxes) and not len(points):
        raise ConfigError("CONFIG-05", "no prompt: give a box or a point.")
    if len(boxes) > 1 and len(points):
        raise ConfigError(
            "CONFIG-05",
            f"{len(points)} points with {len(boxes)} boxes: which object they mean is not said.",
            fix="Give points with at most one box, and segment object by object.",
        )
    shape = prepared.source.shape
    for point in points:
        if len(point) != 4 or point[3] not in (0, 1):
            raise ConfigError("CONFIG-05", f"a point is i,j,k,1 or i,j,k,0, got {tuple(point)}.")
        _check("point", point, point[:3], [0, 0, 0], [n - 1 for n in shape])
    for box in boxes:
        if len(box) != 6:
            raise ConfigError("CONFIG-05", f"a box is i0,j0,k0,i1,j1,k1, got {tuple(box)}.")
        _check("box", box, box[:3], [0, 0, 0], [n - 1 for n in shape])
        _check("box", box, box[3:], [start + 1 for start in box[:3]], list(shape))
    objects: list[dict[int, SlicePrompt]] = []
    for box in boxes:
        ends = to_prepared(prepared, [box[:3], [stop - 1 for stop in box[3:]]])
        (s0, y0, x0), (s1, y1, x1) = ends.min(0).tolist(), ends.max(0).tolist()
        objects.append({s: SlicePrompt(box=(x0, y0, x1, y1)) for s in range(s0, s1 + 1)})
    if points:
        objects = objects or [{}]
        for point, (s, y, x) in zip(
            points, to_prepared(prepared, [p[:3] for p in points]).tolist(), strict=True
        ):
            objects[0].setdefault(s, SlicePrompt()).points.append((x, y, point[3]))
    return objects


def to_prepared(prepared: Prepared, indices: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Voxel indices (i, j, k) of the source to [slice, row, column] of the prepared array."""
    matrix = np.linalg.inv(prepared.affine) @ prepared.source.affine
    return np.rint(np.asarray(indices) @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.int64)


def _check(
    what: str, whole: Sequence[int], got: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> None:
    for axis, value, least, most in zip("ijk", got, low, high, strict=True):
        if not least <= value <= most:
            raise ConfigError(
                "CONFIG-05",
                f"{what} {tuple(whole)}: {axis} is {value}, allowed is {least} to {most}.",
                fix="Prompts are 0-based voxel indices; the end of a box is not in it.",
            )


class PromptedVolume:
    """A volume whose slices are embedded once, when first asked about.

    Args:
        model: In evaluation mode.
        volume: Three-dimensional image.
        image_size: Side of the square each slice is resized to, pixels.
    """

    def __init__(self, model: PromptableSegmenter, volume: Volume, image_size: int) -> None:
        self.model, self.volume, self.image_size = model, volume, image_size
        self.prepared = Preprocess().apply(volume)
        self._embeddings: dict[int, Tensor] = {}

    def segment(self, boxes: Sequence[Box], points: Sequence[Point]) -> Volume:
        """Label volume, uint8: object n (from 1) where its mask is; the first object wins."""
        objects = prompts_of_objects(self.prepared, boxes, points)
        if len(objects) > 255:
            raise ConfigError("CONFIG-05", f"at most 255 objects, got {len(objects)}.")
        classes = np.zeros(self.prepared.array.shape, dtype=np.uint8)
        for value, prompts in enumerate(objects, start=1):
            for index, mask in self._object(prompts).items():
                classes[index][mask & (classes[index] == 0)] = value
        return self.prepared.restore(classes)

    def _object(self, prompts: dict[int, SlicePrompt]) -> dict[int, npt.NDArray[np.bool_]]:
        masks = {index: self._slice(index, prompt) for index, prompt in prompts.items()}
        if len(prompts) == 1:
            ((start, first),) = list(masks.items())
            for step in (-1, 1):
                index, mask = start + step, first
                while 0 <= index < len(self.prepared.array) and mask.any():
                    following = self._slice(index, SlicePrompt(box=_bounds(mask)))
                    ratio = following.sum() / mask.sum()
                    if not 1 / MAX_GROWTH <= ratio <= MAX_GROWTH:
                        break
                    masks[index], mask, index = following, following, index + step
        return masks

    def _slice(self, index: int, prompt: SlicePrompt) -> npt.NDArray[np.bool_]:
        """The mask [H, W] of one prompted slice."""
        rows, columns = self.prepared.array.shape[1:]
        side = max(rows, columns)
        top, left = (side - rows) // 2, (side - columns) // 2
        scale = self.image_size / side
        device = next(self.model.parameters()).device
        points = box = None
        if prompt.points:
            x, y, label = np.array(prompt.points, dtype=np.float32).T
            xy = (np.stack([x + left, y + top], -1) + 0.5) * scale - 0.5
            points = (
                torch.from_numpy(xy)[None].to(device),
                torch.from_numpy(label)[None].to(device),
            )
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            # From the outer edge of the first pixel to that of the last.
            edges = np.array([x0 + left, y0 + top, x1 + 1 + left, y1 + 1 + top], dtype=np.float32)
            box = torch.from_numpy(edges * scale - [0, 0, 1, 1]).float()[None].to(device)
        logits = self.model.decode(self._embedding(index), points, box).logits
        logits = functional.interpolate(
            logits.float(), (side, side), mode="bilinear", align_corners=False
        )
        found: npt.NDArray[np.bool_] = (
            (logits[0, 0, top : top + rows, left : left + columns] > 0).cpu().numpy()
        )
        return found

    def _embedding(self, index: int) -> Tensor:
        if index not in self._embeddings:
            array = self.prepared.array[index : index + 1].astype(np.float32)
            image = image_to_square(array, self.image_size)
            device = next(self.model.parameters()).device
            self._embeddings[index] = self.model.embed_image(image.to(device))
        return self._embeddings[index]


def _bounds(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the first and last pixel of a mask that is not empty."""
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()), int(y.max())

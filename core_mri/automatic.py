"""Everything in a volume without a prompt: a grid of points a slice, linked to 3-D objects.

The masks of a slice are those of segment-anything's `SamAutomaticMaskGenerator` (Kirillov et al.,
arXiv 2304.02643, section 4 and appendix B) on the whole image. Masks of neighboring slices become
one object where they overlap: the matching of largest total overlap of every two neighbors, so that
the direction does not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError
from core_mri.prompts import MAX_OBJECTS

if TYPE_CHECKING:
    from torch import Tensor

    from core_mri.models.promptable import PromptableSegmenter

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AutomaticMasks:
    """Which masks are kept; the defaults are segment-anything's."""

    points_per_side: int = 32
    """Points of the grid along each side of the padded square of a slice."""
    points_per_batch: int = 64
    """Points whose masks are held at a time; bounds the memory."""
    min_iou: float = 0.88
    """The decoder's own estimate of a mask's intersection over union must be above this."""
    min_stability: float = 0.95
    """Overlap of the masks at logit +1 and -1."""
    max_box_overlap: float = 0.7
    """Of masks whose boxes overlap more (intersection over union) the best estimate stays."""
    min_area: int = 0
    """Islands and holes of fewer pixels are removed."""
    min_link: float = 0.5
    """Masks of neighboring slices that overlap this much (intersection over union) are linked."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least {least}, got {getattr(self, name)}"
            for name, least in (("points_per_side", 1), ("points_per_batch", 1), ("min_area", 0))
            if getattr(self, name) < least
        ]
        problems += [
            f"{name} must be in [0, 1], got {getattr(self, name)}"
            for name in ("min_iou", "min_stability", "max_box_overlap", "min_link")
            if not 0 <= getattr(self, name) <= 1
        ]
        if problems:
            raise ConfigError("CONFIG-05", f"automatic masks: {'; '.join(problems)}.")


class Mask(NamedTuple):
    """One mask of a slice."""

    bits: npt.NDArray[np.uint8]
    """`numpy.packbits` of its pixels, row after row."""
    iou: float
    """The decoder's own estimate of its intersection over union."""
    box: tuple[int, int, int, int]
    """(x0, y0, x1, y1), first and last pixel."""


def masks_of_slice(
    model: PromptableSegmenter,
    embedding: Tensor,
    image_size: int,
    shape: tuple[int, int],
    settings: AutomaticMasks,
) -> list[Mask]:
    """The masks of one slice, best estimate first.

    Args:
        model: In evaluation mode.
        embedding: [1, channels, h, w] of the padded square of the slice.
        image_size: Side of that square, pixels.
        shape: Rows and columns of the slice.
        settings: Thresholds.
    """
    import torch

    count = settings.points_per_side
    line = torch.linspace(0.5 / count, 1 - 0.5 / count, count, device=embedding.device) * image_size
    # As segment-anything passes them: half a pixel to the right of the centers of the grid.
    grid = torch.cartesian_prod(line, line).flip(-1)[:, None]
    masks: list[Mask] = []
    for points in grid.split(settings.points_per_batch):
        labels = torch.ones(points.shape[:2], device=points.device)
        answer = model.decode(embedding, (points, labels), multimask=True)
        good = answer.iou > settings.min_iou
        masks += _stable(answer.logits[good].float(), answer.iou[good].float(), shape, settings)
    masks = _without_duplicates(masks, [mask.iou for mask in masks], settings.max_box_overlap)
    if settings.min_area:
        tidied = [_tidy(mask, shape, settings.min_area) for mask in masks]
        # Of duplicates, one that needed no change is the better.
        untouched = [float(a is b) for a, b in zip(tidied, masks, strict=True)]
        masks = _without_duplicates(tidied, untouched, settings.max_box_overlap)
    return masks


def label_volume(
    slices: Sequence[Sequence[Mask]], shape: tuple[int, int], settings: AutomaticMasks
) -> npt.NDArray[np.uint8]:
    """[S, H, W]: the linked objects by decreasing visible volume from 1; small ones lie on top.

    The 255 largest are kept; how many were dropped is logged.
    """
    objects = link(slices, shape, settings.min_link)
    volumes = [sum(_area(mask) for mask in one.values()) for one in objects]
    order = sorted(range(len(objects)), key=lambda n: -volumes[n])
    if len(order) > MAX_OBJECTS:
        log.warning(
            "%d objects: the %d largest are kept, %d dropped (8-bit labels); raise min_iou, "
            "min_stability or min_area",
            *(len(order), MAX_OBJECTS, len(order) - MAX_OBJECTS),
        )
    painted = np.zeros((len(slices), *shape), dtype=np.uint8)
    for value, n in enumerate(order[:MAX_OBJECTS], start=1):
        for index, mask in objects[n].items():
            painted[index][_pixels(mask, shape)] = value
    seen = np.bincount(painted.ravel(), minlength=MAX_OBJECTS + 1)
    seen[0] = 0
    numbers = np.zeros(MAX_OBJECTS + 1, dtype=np.uint8)
    visible = [value for value in np.argsort(-seen, kind="stable") if seen[value]]
    numbers[visible] = np.arange(1, len(visible) + 1)
    return numbers[painted]


def link(
    slices: Sequence[Sequence[Mask]], shape: tuple[int, int], min_link: float
) -> list[dict[int, Mask]]:
    """Objects: one mask a slice, by slice, over neighboring slices."""
    from scipy.optimize import linear_sum_assignment

    objects: list[dict[int, Mask]] = []
    before: list[dict[int, Mask]] = []  # the objects of the last slice, in the order of its masks
    for index, masks in enumerate(slices):
        now: list[dict[int, Mask]] = [{} for _ in masks]
        if masks and before:
            overlap = _overlaps([one[index - 1] for one in before], masks, shape)
            overlap[overlap < max(min_link, np.finfo(float).tiny)] = 0
            for old, new in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
                if overlap[old, new]:
                    now[new] = before[old]
        for one, mask in zip(now, masks, strict=True):
            if not one:
                objects.append(one)
            one[index] = mask
        before = now
    return objects


def _stable(
    logits: Tensor, iou: Tensor, shape: tuple[int, int], settings: AutomaticMasks
) -> list[Mask]:
    """The masks of logits [M, 4 h, 4 w] that hardly change with the threshold."""
    from core_mri.slice_grid import square_to_slices

    masks = []
    for low, estimate in zip(logits, iou, strict=True):
        full = square_to_slices(low[None, None], *shape)[0, 0]
        inside = (full > 0).cpu().numpy()
        stability = (full > 1).sum() / (full > -1).sum()
        if inside.any() and stability >= settings.min_stability:
            masks.append(_mask(inside, float(estimate)))
    return masks


def _without_duplicates(
    masks: list[Mask], scores: list[float], max_box_overlap: float
) -> list[Mask]:
    import torch
    from torchvision.ops import nms

    if not masks:
        return []
    boxes = torch.tensor([mask.box for mask in masks], dtype=torch.float32)
    return [masks[n] for n in nms(boxes, torch.tensor(scores), max_box_overlap).tolist()]


def _tidy(mask: Mask, shape: tuple[int, int], min_area: int) -> Mask:
    """Without holes and islands of fewer than `min_area` pixels; the same object if it has none."""
    from scipy import ndimage

    pixels = _pixels(mask, shape)
    around = np.ones((3, 3))
    holes, _ = ndimage.label(~pixels, around)
    small = np.bincount(holes.ravel()) < min_area
    small[0] = False
    filled = pixels | small[holes]
    islands, _ = ndimage.label(filled, around)
    sizes = np.bincount(islands.ravel())[1:]
    if not small.any() and sizes.min() >= min_area:
        return mask
    kept = np.append(False, sizes >= min_area)
    kept[1 + sizes.argmax()] = True  # however small
    return _mask(kept[islands], mask.iou)


def _mask(pixels: npt.NDArray[np.bool_], iou: float) -> Mask:
    y, x = np.nonzero(pixels)
    box = int(x.min()), int(y.min()), int(x.max()), int(y.max())
    return Mask(np.packbits(pixels), iou, box)


def _pixels(mask: Mask, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    flat = np.unpackbits(mask.bits, count=shape[0] * shape[1])
    return flat.reshape(shape).astype(bool)


def _area(mask: Mask) -> int:
    return int(np.unpackbits(mask.bits).sum(dtype=np.int64))


def _overlaps(
    first: Sequence[Mask], second: Sequence[Mask], shape: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Intersection over union of every two masks."""
    one, two = (
        np.stack([_pixels(mask, shape).ravel() for mask in masks]).astype(np.float32)
        for masks in (first, second)
    )
    both = (one @ two.T).astype(np.float64)
    return both / (one.sum(1)[:, None] + two.sum(1) - both)

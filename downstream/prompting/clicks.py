"""Boxes and clicks that a user might have given, made from a reference mask.

In training as SAM was (Kirillov et al., "Segment Anything", arXiv 2304.02643, appendix A): first
prompts at random, then clicks into the error of the last answer. In tests all depends on the mask
alone: a click is the place farthest from the border of what it names (as in Sofiiuk et al.,
"Reviving Iterative Training with Mask Guidance", arXiv 2102.06583).

Masks are bool [H, W]; x is a column, y a row, 0-based; a click is (x, y, 1 inside or 0 outside); a
box (x0, y0, x1, y1) names its first and last pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Click = tuple[int, int, int]

JITTER, MAX_JITTER = 0.1, 20.0
"""Standard deviation of the noise on a box, as a share of its side, and its bound, pixels."""


def random_target(classes: npt.NDArray[np.integer], rng: np.random.Generator) -> Mask:
    """One structure of a slice that shows some, whole or (half of the time) one connected part.

    Args:
        classes: [H, W], 0 for background.
        rng: Draws; larger parts are drawn more often.
    """
    from scipy import ndimage

    mask: Mask = classes == rng.choice(np.unique(classes[classes > 0]))
    if rng.random() < 0.5:
        return mask
    parts, _ = ndimage.label(mask)
    x, y = _random_pixel(mask, rng)
    part: Mask = parts == parts[y, x]
    return part


def box_of(mask: Mask) -> npt.NDArray[np.float32]:
    """The box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float32)


def jittered(
    box: npt.NDArray[np.float32], shape: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A carelessly drawn box: noise on each side, inside the image of `shape` (H, W)."""
    sides = np.tile(box[2:] - box[:2] + 1, 2)
    noise = (rng.standard_normal(4) * JITTER * sides).clip(-MAX_JITTER, MAX_JITTER)
    moved = (box + noise).reshape(2, 2)
    moved = np.sort(moved, 0).clip(0, [shape[1] - 1, shape[0] - 1])
    return moved.reshape(4).astype(np.float32)


def careless_box(mask: Mask) -> npt.NDArray[np.float32]:
    """`jittered` `box_of` a mask, always the same one for the same box."""
    box = box_of(mask)
    return jittered(box, mask.shape, np.random.default_rng(box.astype(np.int64)))


def random_click(target: Mask, estimate: Mask, rng: np.random.Generator) -> Click:
    """A click anywhere in the error of `estimate`, or in the target when there is no error.

    The first click is the one after an empty estimate.
    """
    error = target ^ estimate
    x, y = _random_pixel(error if error.any() else target, rng)
    return x, y, int(target[y, x])


def central_click(target: Mask, estimate: Mask) -> Click:
    """The pixel farthest from the border of what is missed or of what is wrongly added.

    In the deeper one of the two regions; in the target when there is no error.
    """
    from scipy import ndimage

    error = target ^ estimate
    regions = [target & error, error & ~target] if error.any() else [target]
    # A border of zeros: the edge of the image is one too.
    depths = [ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] for region in regions]
    deepest = max(depths, key=np.max)
    y, x = np.unravel_index(int(deepest.argmax()), deepest.shape)
    return int(x), int(y), int(target[y, x])


def _random_pixel(region: Mask, rng: np.random.Generator) -> tuple[int, int]:
    y, x = np.unravel_index(int(rng.choice(np.flatnonzero(region))), region.shape)
    return int(x), int(y)

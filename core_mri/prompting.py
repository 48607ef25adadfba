"""Prompted objects of a volume, answered slice by slice by a `PromptableSegmenter`.

Slices without a prompt are answered by following: the box around the mask of a slice is the prompt
of its neighbor. An object is followed both ways from every prompted slice; two fronts that meet ask
for the box around both. It ends where the answer is empty or its area changes more than
`MAX_GROWTH`. A box or mask over several slices says where the object ends: it is not followed.
"""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.automatic import AutomaticMasks, label_volume, masks_of_slice
from core_mri.models.promptable import PromptableSegmenter
from core_mri.preprocess import Preprocess
from core_mri.prompts import Boxes, ObjectPrompt, Points, SlicePrompt, prompts_of_objects
from core_mri.slice_grid import image_to_square, square_to_slices
from core_mri.volume import Volume

log = logging.getLogger(__name__)

MAX_GROWTH = 2.0
"""Following stops where the area changes by more than this factor from slice to slice."""
MASK_LOGIT = 10.0
"""Logit inside a mask that is a prompt, minus this outside; SAM learned from its own logits."""

Masks = dict[int, npt.NDArray[np.bool_]]
"""[H, W] by slice."""


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
        rows, columns = self.prepared.array.shape[1:]
        self._side = max(rows, columns)
        self._top, self._left = (self._side - rows) // 2, (self._side - columns) // 2
        self._embeddings: dict[int, Tensor] = {}

    def segment(self, boxes: Boxes, points: Points, mask: Volume | None = None) -> Volume:
        """Label volume, uint8: the number of the object where its mask is; the lower number wins.

        Where `mask` is given with points or boxes, slices without them keep the mask as it is.
        """
        objects = prompts_of_objects(self.prepared, boxes, points, mask)
        classes = np.zeros(self.prepared.array.shape, dtype=np.uint8)
        for number, prompt in sorted(objects.items()):
            for index, found in self._object(prompt).items():
                classes[index][found & (classes[index] == 0)] = number
        hidden = sorted(set(objects) - set(np.unique(classes).tolist()))
        if hidden and len(objects) > 1:
            log.warning("no voxel of object %s: nothing found, or all in lower numbers", hidden)
        return self.prepared.restore(classes)

    def segment_all(self, settings: AutomaticMasks) -> Volume:
        """Label volume, uint8: every object that a grid of points finds, 1 the largest."""
        _, rows, columns = self.prepared.array.shape
        slices = [
            masks_of_slice(
                self.model, self._embed(index), self.image_size, (rows, columns), settings
            )
            for index in range(len(self.prepared.array))
        ]
        return self.prepared.restore(label_volume(slices, (rows, columns), settings))

    def _object(self, prompt: ObjectPrompt) -> Masks:
        given = {index: one for index, one in prompt.slices.items() if one.says_where}
        clicked = any(one.points or one.box for one in given.values())
        masks: Masks = {}
        for index, one in sorted(given.items()):
            keeps = clicked and one.mask is not None and not one.points and one.box is None
            masks[index] = one.mask if keeps and one.mask is not None else self._slice(index, one)
        if not prompt.bounded:
            ends = [-1, *sorted(given), len(self.prepared.array)]
            for low, high in pairwise(ends):
                self._follow(prompt, masks, low, high)
        return masks

    def _follow(self, prompt: ObjectPrompt, masks: Masks, low: int, high: int) -> None:
        """Fill the slices between two, of which at least one has a mask, from both."""
        rising, falling = low in masks, high in masks
        while (rising or falling) and high - low > 1:
            if rising and falling and high - low == 2:
                meeting = self._next(prompt, low + 1, masks[low] | masks[high])
                if meeting is not None:
                    masks[low + 1] = meeting
                return
            if rising:
                found = self._next(prompt, low + 1, masks[low])
                rising = found is not None
                if found is not None:
                    low += 1
                    masks[low] = found
            if falling and high - low > 1:
                found = self._next(prompt, high - 1, masks[high])
                falling = found is not None
                if found is not None:
                    high -= 1
                    masks[high] = found

    def _next(
        self, prompt: ObjectPrompt, index: int, near: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_] | None:
        """The mask of a slice beside one with the mask `near`, None where the object ends."""
        if not near.any():
            return None
        outside = prompt.slices.get(index, SlicePrompt()).points
        found = self._slice(index, SlicePrompt(points=outside, box=_bounds(near)))
        ratio = found.sum() / near.sum()
        return found if 1 / MAX_GROWTH <= ratio <= MAX_GROWTH else None

    def _slice(self, index: int, prompt: SlicePrompt) -> npt.NDArray[np.bool_]:
        """The mask [H, W] of one prompted slice."""
        scale = self.image_size / self._side
        points = box = mask = None
        if prompt.points:
            x, y, label = np.array(prompt.points, dtype=np.float32).T
            xy = (np.stack([x + self._left, y + self._top], -1) + 0.5) * scale - 0.5
            points = self._one(torch.from_numpy(xy)), self._one(torch.from_numpy(label))
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            # From the outer edge of the first pixel to that of the last.
            edges = np.array([x0, y0, x1 + 1, y1 + 1], dtype=np.float32)
            edges += np.array([self._left, self._top] * 2, dtype=np.float32)
            box = self._one(torch.from_numpy(edges * scale - [0, 0, 1, 1]).float())
        embedding = self._embed(index)
        if prompt.mask is not None:
            # Four logits a patch and axis, as the decoder answers.
            share = image_to_square(prompt.mask[None].astype(np.float32), 4 * embedding.shape[-1])
            mask = self._one((2 * share[0] - 1) * MASK_LOGIT)
        logits = self.model.decode(embedding, points, box, mask).logits.float()
        found: npt.NDArray[np.bool_] = (
            (square_to_slices(logits, *self.prepared.array.shape[1:])[0, 0] > 0).cpu().numpy()
        )
        return found

    def _one(self, tensor: Tensor) -> Tensor:
        """A batch of one on the device of the model."""
        return tensor[None].to(next(self.model.parameters()).device)

    def _embed(self, index: int) -> Tensor:
        if index not in self._embeddings:
            array = self.prepared.array[index : index + 1].astype(np.float32)
            image = image_to_square(array, self.image_size)
            self._embeddings[index] = self.model.embed_image(self._one(image[0]))
        return self._embeddings[index]


def _bounds(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the first and last pixel of a mask that is not empty."""
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()), int(y.max())

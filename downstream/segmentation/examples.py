"""Labelled slices as the encoder sees them, with the neighbours that the decoder may look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.slice_grid import SliceGrid
from core_mri.slice_inference import neighbour_windows, windows
from downstream.recipe import Recipe
from downstream.segmentation.augment import STRENGTHS, Augmentation


@dataclass(frozen=True)
class LabelledSlices:
    """Slices of one example on the encoder's grid."""

    images: Tensor
    """[M, C, S, S] in [0, 1]: the labelled slices and those they look at, C sequences each."""
    masks: Tensor
    """[N, S, S] int64 class indices of the labelled ones."""
    looks_at: Tensor | None = None
    """[N, W] index into `images`: each labelled slice with its neighbours, the middle one itself.
    None: every image is labelled and looked at alone."""
    gap_mm: float | None = None
    """Distance of the slices, when they are a whole volume in order."""

    @property
    def windows(self) -> Tensor:
        """`looks_at`, written out."""
        return torch.arange(len(self.masks))[:, None] if self.looks_at is None else self.looks_at


def labelled_slices(
    channels: npt.NDArray[np.float32],
    masks: npt.NDArray[np.uint8],
    spacing_mm: Sequence[float],
    recipe: Recipe,
    slices: Sequence[int] | None = None,
) -> list[LabelledSlices]:
    """An example; several where slices are larger than the encoder's window.

    Args:
        channels: [C, S, H, W] in [0, 1], a channel a sequence.
        masks: [S, H, W] class indices.
        spacing_mm: Distance of slices, rows and columns.
        recipe: Size, pixel, neighbours.
        slices: Those that count as labelled; None: all.
    """
    count, rows, columns = masks.shape
    chosen = list(range(count)) if slices is None else list(slices)
    used, looks_at = torch.unique(
        neighbour_windows(chosen, recipe.neighbours, count), return_inverse=True
    )
    grid = SliceGrid(
        rows=rows,
        columns=columns,
        size=recipe.image_size,
        pixel_mm=recipe.pixel_mm,
        spacing_mm=(spacing_mm[1], spacing_mm[2]),
    )
    seen = torch.cat([grid.images(channel[used.numpy()]) for channel in channels], 1)
    classes = grid.masks(masks[chosen])
    size = recipe.image_size
    return [
        LabelledSlices(
            seen[..., y : y + size, x : x + size],
            classes[:, y : y + size, x : x + size],
            looks_at,
            spacing_mm[0] if slices is None else None,
        )
        for y, x in windows(grid.shape, size, recipe.overlap)
    ]


class StackedSlices:
    """Labelled slices on the device, their planes one by one.

    Args:
        examples: Of one size and number of sequences.
        device: Where to.
    """

    def __init__(self, examples: Sequence[LabelledSlices], device: torch.device) -> None:
        channels = examples[0].images.shape[1]
        self.images = torch.cat([e.images.flatten(0, 1)[:, None] for e in examples]).to(device)
        self.masks = torch.cat([e.masks for e in examples]).to(device)
        planes, groups, start = [], [], 0
        for number, example in enumerate(examples):
            own = example.windows[..., None] * channels + torch.arange(channels)
            planes.append(own.flatten(1) + start * channels)
            groups.append(torch.full((len(example.images) * channels,), number))
            start += len(example.images)
        self.planes = torch.cat(planes).to(device)
        """[N, P] index into `images` [M, 1, S, S]."""
        self.changes = torch.arange(start).repeat_interleave(channels)
        """[M], which change of an augmentation an image gets; neighbours must move together."""
        if self.planes.shape[1] > channels:
            self.changes = torch.cat(groups)
        self.gap_mm = examples[0].gap_mm

    def __len__(self) -> int:
        return len(self.masks)

    def batch(self, index: Tensor) -> Tensor:
        """Images [B, P, S, S]."""
        return self.images[self.planes[index]].flatten(1, 2)

    def tokens_at(self, index: Tensor) -> Tensor:
        """Index into tokens of `images`: [B, P], or [B] of single planes."""
        planes = self.planes[index]
        return planes[:, 0] if planes.shape[1] == 1 else planes

    def add_copies(self, seed: int, recipe: Recipe) -> None:
        """Append changed copies of everything, ``recipe.augmented_copies`` of them."""
        images, masks, planes = [self.images], [self.masks], [self.planes]
        own = self.changes[self.planes[:, 0].cpu()]
        for copy_index in range(recipe.augmented_copies):
            count = int(self.changes.max()) + 1
            drawn = Augmentation(
                count,
                mixed(seed, copy_index),
                mirror=recipe.mirror,
                strength=STRENGTHS[recipe.augmentation],
            )
            images.append(drawn.images(self.images, self.changes))
            masks.append(drawn.masks(self.masks, own))
            planes.append(self.planes + (copy_index + 1) * len(self.images))
        self.images, self.masks = torch.cat(images), torch.cat(masks)
        self.planes = torch.cat(planes)


def mixed(seed: int, number: int) -> int:
    """One seed from two numbers."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])

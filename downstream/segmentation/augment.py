"""Random changes of labelled slices that keep anatomy plausible: small moves and contrast."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

MAX_ROTATION = math.radians(15)
MAX_SCALE = 0.1
MAX_SHIFT = 0.06
"""Share of the side of the image."""
MAX_LOG_GAMMA = 0.4
MAX_CONTRAST = 0.25


class Augmentation:
    """Random affine moves and intensity curves, drawn once and applied to images and masks.

    Intensity: ``clip((x^gamma - 0.5) c + 0.5)`` with log gamma and c - 1 uniform around 0.

    Args:
        count: How many changes to draw.
        seed: Determines everything.
        mirror: Mirror every second one on average (columns turned round).
    """

    def __init__(self, count: int, seed: int, *, mirror: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(6, count, generator=generator).mul(2).sub(1)  # uniform in [-1, 1]
        turned = torch.rand(count, generator=generator) < 0.5 * mirror
        side = 1 - 2 * turned.float()
        angle, scale = draws[0] * MAX_ROTATION, 1 + draws[1] * MAX_SCALE
        shift = draws[2:4] * 2 * MAX_SHIFT  # the sampling grid spans [-1, 1]
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        rows = [cos * side, -sin * side, shift[0], sin, cos, shift[1]]
        self.matrix = torch.stack(rows, 1).view(count, 2, 3)
        self.gamma = torch.exp(draws[4] * MAX_LOG_GAMMA)
        self.contrast = 1 + draws[5] * MAX_CONTRAST

    def images(self, images: Tensor, which: Tensor) -> Tensor:
        """Change images [B, P, H, H] in [0, 1], all planes of one alike.

        Args:
            images: What to change.
            which: [B], the number of each one's change.
        """
        moved = self._move(images, which, "bilinear")
        gamma = self.gamma[which].to(images.device)[:, None, None, None]
        contrast = self.contrast[which].to(images.device)[:, None, None, None]
        curved = (moved.clamp(0, 1) ** gamma - 0.5) * contrast + 0.5
        return curved.clamp(0, 1)

    def masks(self, masks: Tensor, which: Tensor) -> Tensor:
        """Move class indices [B, H, H] likewise, nearest."""
        return self._move(masks[:, None].float(), which, "nearest")[:, 0].long()

    def _move(self, images: Tensor, which: Tensor, mode: str) -> Tensor:
        points = functional.affine_grid(
            self.matrix[which].to(images.device), list(images.shape), align_corners=False
        )
        return functional.grid_sample(images, points, mode=mode, align_corners=False)


def augment(
    images: Tensor, masks: Tensor, seed: int, *, mirror: bool = False
) -> tuple[Tensor, Tensor]:
    """A change of its own for every image [B, P, H, H] and its mask [B, H, H]."""
    drawn = Augmentation(len(images), seed, mirror=mirror)
    which = torch.arange(len(images))
    return drawn.images(images, which), drawn.masks(masks, which)

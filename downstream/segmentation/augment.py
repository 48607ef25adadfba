"""Random changes of labelled slices that keep anatomy plausible: moves, contrast, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FIELD_NODES = 6
"""Nodes along a side of the grid of random displacements."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How far slices are changed; draws are uniform around no change unless said otherwise."""

    rotation: float
    """Largest angle in radians."""
    scale: float
    """Largest change of size, as a share."""
    shift: float
    """Largest shift, as a share of the side of the image."""
    log_gamma: float
    contrast: float
    noise: float = 0.0
    """Standard deviation of Gaussian noise is uniform up to this; images lie in [0, 1]."""
    displacement: float = 0.0
    """Standard deviation of normal displacements at nodes, as a share of the side, bicubic between
    them."""


STRENGTHS: dict[str, Strength] = {
    "mild": Strength(
        rotation=math.radians(15), scale=0.1, shift=0.06, log_gamma=0.4, contrast=0.25
    ),
    "strong": Strength(
        rotation=math.radians(20),
        scale=0.2,
        shift=0.1,
        log_gamma=0.5,
        contrast=0.3,
        noise=0.05,
        displacement=0.015,
    ),
}
"""By the name used in recipes."""


class Augmentation:
    """Random moves and intensity curves, drawn once and applied to images and masks.

    Intensity: ``clip((x^gamma - 0.5) c + 0.5 + noise)`` with log gamma and c - 1 uniform around 0.

    Args:
        count: How many changes to draw.
        seed: Determines everything.
        mirror: Mirror every second one on average (columns turned round).
        strength: How far.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        mirror: bool = False,
        strength: Strength = STRENGTHS["mild"],
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(6, count, generator=generator).mul(2).sub(1)  # uniform in [-1, 1]
        turned = torch.rand(count, generator=generator) < 0.5 * mirror
        side = 1 - 2 * turned.float()
        angle, scale = draws[0] * strength.rotation, 1 + draws[1] * strength.scale
        shift = draws[2:4] * 2 * strength.shift  # the sampling grid spans [-1, 1]
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        rows = [cos * side, -sin * side, shift[0], sin, cos, shift[1]]
        self.matrix = torch.stack(rows, 1).view(count, 2, 3)
        self.gamma = torch.exp(draws[4] * strength.log_gamma)
        self.contrast = 1 + draws[5] * strength.contrast
        self.noise: Tensor | None = None
        self.field: Tensor | None = None
        if strength.noise:
            self.noise = strength.noise * torch.rand(count, generator=generator)
            self.seeds = torch.randint(2**31, (count,), generator=generator)
        if strength.displacement:
            nodes = torch.randn(count, 2, FIELD_NODES, FIELD_NODES, generator=generator)
            self.field = 2 * strength.displacement * nodes

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
        if self.noise is not None:
            curved += self._noise(self.noise, which, curved.shape[1:]).to(images.device)
        return curved.clamp(0, 1)

    def masks(self, masks: Tensor, which: Tensor) -> Tensor:
        """Move class indices [B, H, H] likewise, nearest."""
        return self._move(masks[:, None].float(), which, "nearest")[:, 0].long()

    def _noise(self, spread: Tensor, which: Tensor, shape: torch.Size) -> Tensor:
        """Of each change its own, whatever else is in the batch."""
        drawn = [
            spread[i] * torch.randn(shape, generator=torch.Generator().manual_seed(int(seed)))
            for i, seed in zip(which, self.seeds[which], strict=True)
        ]
        return torch.stack(drawn)

    def _move(self, images: Tensor, which: Tensor, mode: str) -> Tensor:
        points = functional.affine_grid(
            self.matrix[which].to(images.device), list(images.shape), align_corners=False
        )
        if self.field is not None:
            field = functional.interpolate(self.field[which], images.shape[-2:], mode="bicubic")
            points = points + field.permute(0, 2, 3, 1).to(images.device)
        return functional.grid_sample(images, points, mode=mode, align_corners=False)


def augment(
    images: Tensor, masks: Tensor, seed: int, *, mirror: bool = False
) -> tuple[Tensor, Tensor]:
    """A change of its own for every image [B, P, H, H] and its mask [B, H, H]."""
    drawn = Augmentation(len(images), seed, mirror=mirror)
    which = torch.arange(len(images))
    return drawn.images(images, which), drawn.masks(masks, which)

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


def augment(images: Tensor, masks: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """One random affine move and one random intensity curve per slice.

    Intensity: ``clip((x^gamma - 0.5) c + 0.5)`` with log gamma and c - 1 uniform around 0.

    Args:
        images: [B, 1, H, H] in [0, 1].
        masks: [B, H, H] class indices.
        seed: Determines everything.

    Returns:
        Changed images and masks (nearest), same shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = len(images)
    draws = torch.rand(6, batch, generator=generator).mul(2).sub(1)  # uniform in [-1, 1]
    angle, scale = draws[0] * MAX_ROTATION, 1 + draws[1] * MAX_SCALE
    shift = draws[2:4] * 2 * MAX_SHIFT  # the sampling grid spans [-1, 1]
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], 1).view(batch, 2, 3)
    points = functional.affine_grid(
        matrix.to(images.device), list(images.shape), align_corners=False
    )
    moved = functional.grid_sample(images, points, mode="bilinear", align_corners=False)
    moved_masks = functional.grid_sample(
        masks[:, None].float(), points, mode="nearest", align_corners=False
    )
    gamma = torch.exp(draws[4] * MAX_LOG_GAMMA).to(images.device)[:, None, None, None]
    contrast = (1 + draws[5] * MAX_CONTRAST).to(images.device)[:, None, None, None]
    curved = (moved.clamp(0, 1) ** gamma - 0.5) * contrast + 0.5
    return curved.clamp(0, 1), moved_masks[:, 0].long()

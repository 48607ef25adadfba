"""Artefacts that arise while k-space is measured: a patient who moves, ghosts, spikes.

Shapes: N slices, S side in pixels; rows of k-space are measured one after the other.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MOST_POSES = 4


class Artefacts:
    """What goes wrong during one scan, drawn once.

    Args:
        rng: Where the draws come from; always as many of them, whatever is 0.
        motion_px: Largest shift between two poses; 0, with 0 degrees: nobody moves.
        motion_degrees: Largest rotation between two poses.
        ghost: Largest strength of ghosts; 0: none.
        spike: Largest strength of a spike, over the brightest signal; 0: none.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        motion_px: float = 0.0,
        motion_degrees: float = 0.0,
        ghost: float = 0.0,
        spike: float = 0.0,
    ) -> None:
        count = int(rng.integers(2, MOST_POSES + 1))
        poses = rng.uniform(-1, 1, (MOST_POSES, 3))
        starts = np.sort(rng.uniform(0.05, 0.95, MOST_POSES - 1))
        moves = bool(motion_px or motion_degrees)
        self.poses = poses[: count - 1] * (motion_px, motion_px, math.radians(motion_degrees))
        """[P, 3]: shift along rows and columns in pixels, angle; of the poses after the first."""
        self.starts = starts[: count - 1]
        """[P], the part of the measurement after which each is taken."""
        if not moves:
            self.poses, self.starts = self.poses[:0], self.starts[:0]
        self.ghost = ghost * rng.uniform(0.2, 1)
        self.period = int(rng.integers(2, 5))
        """Lines after which the ghosts' modulation repeats."""
        self.spike = spike * rng.uniform(0.3, 1)
        self.spike_at = rng.uniform(0.03, 0.3, 2) * rng.choice((-1, 1), 2)
        """Cycles per pixel."""


def corrupted(images: Tensor, artefacts: Artefacts) -> Tensor:
    """K-space of slices that were measured while things went wrong.

    Line k comes from the pose of its time; a modulation ``1 + g cos(2 pi k / p)`` of the lines puts
    copies of strength g / 2 at a p-th of the field of view to either side; a spike is one wrong
    sample, whose picture is a wave of its strength.

    Args:
        images: [N, S, S].
        artefacts: What goes wrong.

    Returns:
        Complex [N, S, S], orthonormal, in the order of `torch.fft`: k = 0 comes first.
    """
    size = images.shape[-1]
    kspace = torch.fft.fft2(images, norm="ortho")
    # Lines from the lowest frequency to the highest; line 0 of the centred order is measured first.
    order = torch.fft.ifftshift(torch.arange(size, device=images.device))
    for (down, right, angle), start in zip(artefacts.poses, artefacts.starts, strict=True):
        later = order >= start * size
        kspace[:, later] = _posed(images, down, right, angle)[:, later]
    if artefacts.ghost:
        lines = torch.arange(size, device=images.device)
        wave = 1 + artefacts.ghost * torch.cos(2 * math.pi * lines / artefacts.period)
        kspace = kspace * wave[:, None]
    if artefacts.spike:
        row, column = (round(f * size) % size for f in artefacts.spike_at)
        kspace[:, row, column] += artefacts.spike * images.amax((-2, -1)) * size
    return kspace


def _posed(images: Tensor, down: float, right: float, angle: float) -> Tensor:
    """K-space of slices turned by an angle and shifted: ``exp(-2 pi i (k . d))``."""
    size = images.shape[-1]
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = images.new_tensor([[[cos, -sin, 0], [sin, cos, 0]]])
    grid = functional.affine_grid(matrix, [1, 1, size, size], align_corners=False)
    turned = functional.grid_sample(images[None], grid, align_corners=False)[0]
    frequency = torch.fft.fftfreq(size, device=images.device)
    phase = torch.exp(-2j * math.pi * (down * frequency[:, None] + right * frequency[None, :]))
    return torch.fft.fft2(turned, norm="ortho") * phase

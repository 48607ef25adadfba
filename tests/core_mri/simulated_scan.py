"""Simulated k-space of a smooth-phase phantom, for tests."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from core_mri.physics import fft2c, undersampling_mask


def coil_profiles(num_coils: int, height: int, width: int) -> Tensor:
    """Gaussian coils around the image, each with a phase of its own, unit root sum of squares."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    coils = []
    for c in range(num_coils):
        angle = 2 * math.pi * c / num_coils
        v, u = y - 1.2 * math.sin(angle), x - 1.2 * math.cos(angle)
        coils.append(torch.polar(torch.exp(-(u**2 + v**2) / 1.5), angle + 0.7 * u - 0.5 * v))
    maps = torch.stack(coils)
    return maps / maps.abs().square().sum(0).sqrt()


def bodies(height: int, width: int) -> Tensor:
    """Ellipses of constant signal with a smooth phase, peak 1."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    image = 0.6 * ((x / 0.8) ** 2 + (y / 0.85) ** 2 < 1).float()
    image += 0.4 * (((x - 0.2) / 0.25) ** 2 + ((y + 0.2) / 0.4) ** 2 < 1)
    image -= 0.5 * (((x + 0.35) / 0.15) ** 2 + ((y - 0.3) / 0.2) ** 2 < 1)
    return torch.polar(image, 0.8 * x + 0.5 * y**2 - 0.6 * x * y)


def scan(
    num_coils: int = 6,
    height: int = 96,
    width: int = 80,
    acceleration: float = 3,
    center: float = 0.2,
    noise: float = 0.002,
    seed: int = 3,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K-space ``[C, H, W]``, mask ``[W]``, the image and the coil maps it was made from."""
    image, maps = bodies(height, width), coil_profiles(num_coils, height, width)
    rng = np.random.default_rng(seed)
    samples = fft2c(maps * image)
    grain = rng.normal(size=(2, *samples.shape)).astype(np.float32)
    samples = samples + noise * torch.complex(*torch.from_numpy(grain))
    mask = torch.ones(width, dtype=torch.bool)
    if acceleration > 1:
        mask = undersampling_mask(
            "random", (height, width), center_fractions=[center], accelerations=[acceleration],
            seed=seed,
        ).reshape(-1)  # fmt: skip
    return samples * mask, mask, image, maps

"""K-space that no scanner measured: a magnitude image with a made-up phase, coils and noise.

    y_c = F (S_c m exp(i p)) + n_c

m magnitude, p a smooth phase, S_c coil maps with ``sum_c |S_c|^2 = 1``, n white complex noise. What
is made here is called simulated wherever a number from it appears: phases of patients are rougher,
their noise is not white, and a magnitude image of a scanner was filtered before.

Shape letters: ``C`` coils, ``H W`` image. All draws come from a `numpy.random.Generator`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from core_mri.physics.coils import coil_expand, root_sum_of_squares
from core_mri.physics.fourier import fft2c, ifft2c


def smooth_phase(shape: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """``exp(i p)`` with p a polynomial of degree 2 over the image, coefficients standard normal.

    Returns:
        Complex64 ``[H, W]`` of magnitude 1.
    """
    y, x = _grid(shape)
    a, b, c, d, e = rng.normal(size=5)
    phase = a * x + b * y + c * x * y + d * x**2 + e * y**2
    return torch.polar(torch.ones_like(phase), phase)


def birdcage_maps(
    num_coils: int, shape: tuple[int, int], rng: np.random.Generator | None = None
) -> Tensor:
    """Coils on a ring around the image, as a birdcage array has them.

    The coil at r_c sees ``exp(i angle(r - r_c)) / |r - r_c|``, all of them scaled to
    ``sum_c |S_c|^2 = 1`` (the model of sigpy's ``mri.birdcage_maps``; it neglects loading).

    Args:
        num_coils: C.
        shape: H, W; the image spans [-1, 1] on both axes.
        rng: Draws radius (1.2 to 1.8), rotation, and shifts of each coil along the ring (a tenth of
            their distance); without it radius 1.5 and no rotation.

    Returns:
        Complex64 ``[C, H, W]``.
    """
    y, x = _grid(shape)
    angles = 2 * math.pi * np.arange(num_coils) / num_coils
    radius = 1.5
    if rng is not None:
        radius = rng.uniform(1.2, 1.8)
        step = 2 * math.pi / num_coils
        angles = angles + rng.uniform(0, 2 * math.pi) + rng.normal(size=num_coils) * step / 10
    coils = []
    for angle in angles.tolist():
        dx, dy = x - radius * math.cos(angle), y - radius * math.sin(angle)
        coils.append(torch.polar(1 / torch.hypot(dx, dy), torch.atan2(dy, dx)))
    maps = torch.stack(coils)
    return maps / root_sum_of_squares(maps, 0)


def simulate_kspace(
    magnitude: Tensor, maps: Tensor, phase: Tensor, noise: float, rng: np.random.Generator
) -> Tensor:
    """Fully sampled k-space of an image.

    Args:
        magnitude: ``[H, W]``, not negative.
        maps: ``[C, H, W]`` of `birdcage_maps`.
        phase: ``[H, W]`` of `smooth_phase`.
        noise: Standard deviation of complex noise in the units of the image, ``E |n|^2 = noise^2``.
        rng: Of the noise.

    Returns:
        Complex64 ``[C, H, W]``.
    """
    kspace = fft2c(coil_expand(magnitude * phase, maps))
    grain = rng.standard_normal((2, *kspace.shape), dtype=np.float32) * (noise / math.sqrt(2))
    return kspace + torch.complex(*torch.from_numpy(grain))


def resampled(image: Tensor, size: int) -> Tensor:
    """An image on a square grid of `size` pixels that shows all of it.

    It is padded to a square with zeros; where that is larger than asked, the outer k-space is cut
    away, as a scan at lower resolution does, and the magnitude taken. Smaller ones are padded.

    Args:
        image: Magnitude ``[h, w]``.
        size: Side in pixels.

    Returns:
        ``[size, size]``, not negative.
    """
    side = max(*image.shape, size)
    square = image.new_zeros(side, side)
    top, left = ((side - n) // 2 for n in image.shape)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    if side == size:
        return square
    start = side // 2 - size // 2
    low = fft2c(square)[start : start + size, start : start + size]
    return ifft2c(low).abs() * (size / side)


def _grid(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows ``[H, 1]`` and columns ``[1, W]`` from -1 to 1."""
    height, width = shape
    return torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]

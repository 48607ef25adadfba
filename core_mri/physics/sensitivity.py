"""Coil sensitivities from the fully sampled center of k-space.

`espirit_maps` solves ESPIRiT on a coarse grid. The field of matrices whose eigenvectors are the
maps,

    G(r)_cd = sum_k v_kc(r) conj(v_kd(r)) / w^2,

is a trigonometric polynomial of degree w - 1, w the width of the kernels v_k: its coefficients are
sums over the projection onto the row space of the calibration matrix, so it is evaluated on any
grid by two small matrix products. Its dominant eigenvector u is found there by powers of G, applied
to the low-resolution coil images x; ``u (u^H x)`` has no free phase, is as smooth as x, and is
interpolated. What is left of the phase makes the image of the maps nearly real.

Sources: Uecker et al., ESPIRiT, MRM 71 (2014); low-resolution maps: McKenzie et al., MRM 47 (2002).
Shape letters: ``C`` coils, ``h w`` calibration region, ``H W`` image, ``g`` coarse grid.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.physics.fourier import fft2c, ifft2c

MIN_LINES = 4
"""Fewer lines of center than this tell nothing about coils."""


class Region(NamedTuple):
    """A fully sampled box of k-space, half-open, around the center."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Readout and phase samples."""
        return self.bottom - self.top, self.right - self.left


class CoilMaps(NamedTuple):
    """Sensitivities and what came with them."""

    maps: Tensor
    """Complex ``[..., C, H, W]``, ``sum_c |S_c|^2`` 1 or, outside of the object, 0."""
    image: Tensor
    """Magnitude at low resolution ``[..., H, W]``."""


def calibration_region(mask: Tensor | npt.NDArray[np.bool_], height: int, size: int = 24) -> Region:
    """The largest fully sampled box around ``(H // 2, W // 2)``, at most `size` on a side.

    Args:
        mask: Bool ``[W]`` of lines, or ``[H, W]`` of points.
        height: H.
        size: Longest side.

    Raises:
        ValueError: The center is not sampled, or fewer than `MIN_LINES` lines around it are.
    """
    points = np.asarray(mask, dtype=bool)
    if points.ndim == 1:
        points = np.broadcast_to(points, (height, len(points)))
    row, column = points.shape[0] // 2, points.shape[1] // 2
    if not points[row, column]:
        raise ValueError(f"the center of k-space, line {column} of {points.shape[1]}, is missing")
    top, bottom, left, right = row, row + 1, column, column + 1
    growing = True
    while growing:
        growing = False
        if bottom - top < size and top > 0 and points[top - 1, left:right].all():
            top, growing = top - 1, True
        if bottom - top < size and bottom < len(points) and points[bottom, left:right].all():
            bottom, growing = bottom + 1, True
        if right - left < size and left > 0 and points[top:bottom, left - 1].all():
            left, growing = left - 1, True
        if right - left < size and right < points.shape[1] and points[top:bottom, right].all():
            right, growing = right + 1, True
    region = Region(top, bottom, left, right)
    if min(region.shape) < MIN_LINES:
        raise ValueError(
            f"the center of k-space holds {min(region.shape)} fully sampled lines, at least "
            f"{MIN_LINES} are needed"
        )
    return region


def low_resolution_maps(kspace: Tensor, region: Region, *, crop: float = 0.02) -> CoilMaps:
    """Coil images of the center of k-space over their root sum of squares.

    Args:
        kspace: Complex ``[..., C, H, W]``; only the region is read.
        region: Of `calibration_region`.
        crop: Maps are 0 where the image is below this part of its largest value.
    """
    window = _window(region.shape, kspace)
    padded = torch.zeros_like(kspace)
    rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
    padded[..., rows, columns] = kspace[..., rows, columns] * window
    coils = ifft2c(padded)
    image = _norm(coils)
    peak = image.amax((-2, -1), keepdim=True)
    inside = (image > crop * peak).unsqueeze(-3)
    return CoilMaps(torch.where(inside, coils, 0) / _positive(image).unsqueeze(-3), image)


def espirit_maps(
    kspace: Tensor,
    region: Region,
    *,
    kernel: int = 6,
    threshold: float = 0.01,
    crop: float = 0.7,
    grid: int = 80,
) -> CoilMaps:
    """ESPIRiT, one set of maps.

    Args:
        kspace: Complex ``[..., C, H, W]``; only the region is read.
        region: Of `calibration_region`; no side shorter than `kernel`.
        kernel: Width w of the kernels, samples.
        threshold: Singular values of the calibration matrix below this part of the largest are
            noise.
        crop: Maps are 0 where the eigenvalue is smaller (1 in the object, 0 in air).
        grid: Points of the coarse grid on a side; at least ``2 w`` plus the size of the region.

    Raises:
        ValueError: The region is smaller than the kernel.
    """
    if min(region.shape) < kernel:
        raise ValueError(
            f"a calibration region of {region.shape[0]}x{region.shape[1]} samples is smaller than "
            f"kernels of {kernel}x{kernel}"
        )
    batch, (num_coils, height, width) = kspace.shape[:-3], kspace.shape[-3:]
    rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
    center = kspace[..., rows, columns]
    points = [torch.arange(n, device=kspace.device) / n - (n // 2) / n for n in _grid(grid, kspace)]
    field = _eigen_field(center, points, kernel, threshold)
    samples = [
        torch.arange(region.top, region.bottom, device=kspace.device) - height // 2,
        torch.arange(region.left, region.right, device=kspace.device) - width // 2,
    ]
    coils = _evaluate(center * _window(region.shape, kspace), points, samples)
    coils = coils.flatten(-2).transpose(-2, -1).unsqueeze(-1)  # [..., g g, C, 1]
    powers = field @ field
    powers = powers @ powers
    powers = powers @ powers
    vectors = coils
    for _ in range(6):  # field^48 in all
        vectors = powers @ vectors
        vectors = vectors / _positive(_norm(vectors, -2)).unsqueeze(-2)
    value = (vectors.conj() * (field @ vectors)).sum((-2, -1)).real
    smooth = vectors * (vectors.conj() * coils).sum(-2, keepdim=True)
    size = (*batch, -1, len(points[0]), len(points[1]))
    both = torch.cat([smooth.squeeze(-1).transpose(-2, -1), value.unsqueeze(-2) + 0j], -2)
    fine = _interpolate(both.reshape(size), (height, width))
    smooth, inside = fine[..., :num_coils, :, :], fine[..., num_coils:, :, :].real > crop
    image = _norm(smooth)
    return CoilMaps(torch.where(inside, smooth, 0) / _positive(image).unsqueeze(-3), image)


def _grid(grid: int, kspace: Tensor) -> tuple[int, int]:
    return min(grid, kspace.shape[-2]), min(grid, kspace.shape[-1])


def _eigen_field(center: Tensor, points: list[Tensor], kernel: int, threshold: float) -> Tensor:
    """G on the grid, ``[..., g g, C, C]``."""
    num_coils = center.shape[-3]
    patches = center.unfold(-2, kernel, 1).unfold(-2, kernel, 1)  # [..., C, rows, columns, w, w]
    matrix = patches.movedim(-5, -3).flatten(-3).flatten(-3, -2)  # [..., positions, C w w]
    values, vectors = torch.linalg.eigh(matrix.mH @ matrix)
    kept = vectors * (values > threshold**2 * values[..., -1:]).unsqueeze(-2)
    projection = (kept.conj() @ kept.mT).unflatten(-1, (num_coils, kernel**2))
    projection = projection.unflatten(-3, (num_coils, kernel**2))  # [..., C, w w, C, w w]
    taps = torch.arange(kernel, device=center.device)
    lags = taps[:, None] - taps + kernel - 1  # [w, w], 0 to 2 w - 2
    lag = (lags[:, None, :, None] * (2 * kernel - 1) + lags[None, :, None, :]).flatten()
    pairs = projection.movedim(-3, -2).flatten(-2).flatten(-3, -2)  # [..., C C, w^4]
    sums = pairs.new_zeros((*pairs.shape[:-1], (2 * kernel - 1) ** 2))
    sums = sums.index_add(-1, lag, pairs) / kernel**2
    degrees = torch.arange(1 - kernel, kernel, device=center.device)
    field = _evaluate(sums.unflatten(-1, (2 * kernel - 1,) * 2), points, [degrees, degrees])
    # Many small matrices: each in one piece, or their products would copy every one.
    field = field.flatten(-2).transpose(-2, -1).contiguous()
    return field.unflatten(-1, (num_coils, num_coils))


def _evaluate(coefficients: Tensor, points: list[Tensor], degrees: list[Tensor]) -> Tensor:
    """``sum_ab c_ab exp(2 pi i (a x + b y))``, ``[..., a, b]`` to ``[..., x, y]``."""
    waves = [
        torch.exp(2j * math.pi * p[:, None] * d).to(coefficients.dtype)
        for p, d in zip(points, degrees, strict=True)
    ]
    return waves[0] @ coefficients @ waves[1].T


def _interpolate(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Fourier interpolation of ``[..., h, w]`` to a larger grid with the same center."""
    height, width = x.shape[-2:]
    padded = x.new_zeros((*x.shape[:-2], *shape))
    top, left = shape[0] // 2 - height // 2, shape[1] // 2 - width // 2
    padded[..., top : top + height, left : left + width] = fft2c(x)
    return ifft2c(padded) * math.sqrt(shape[0] * shape[1] / (height * width))


def _window(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Hann, without its zeros."""
    rows, columns = (
        torch.hann_window(n + 2, periodic=False, dtype=like.real.dtype, device=like.device)[1:-1]
        for n in shape
    )
    return rows[:, None] * columns


def _norm(x: Tensor, dim: int = -3) -> Tensor:
    return (x.real**2 + x.imag**2).sum(dim).sqrt()


def _positive(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)

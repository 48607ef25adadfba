"""Partial Fourier: lines of one side of k-space from the other, given a smooth phase.

An image whose phase is smooth is real once that phase is known from the symmetric band around the
center, and k-space of a real image mirrors itself. Both functions work on one coil, on coil images,
or, after a SENSE reconstruction, on the k-space of the combined image.
Shape letters: ``H`` readout, ``W`` phase encoding, the side that is short; ``...`` coils, batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.physics.fourier import fft2c, ifft2c


def line_extent(mask: Tensor | npt.NDArray[np.bool_]) -> tuple[int, int]:
    """First measured line and the one behind the last.

    Args:
        mask: Bool ``[W]``.

    Raises:
        ValueError: No line is measured.
    """
    lines = np.flatnonzero(np.asarray(mask))
    if not len(lines):
        raise ValueError("no line is measured")
    return int(lines[0]), int(lines[-1]) + 1


def homodyne(kspace: Tensor, extent: tuple[int, int]) -> Tensor:
    """One weighted transform; fast, but noise and phase errors stay.

        x = Re( exp(-i phase) F^-1 (w k) ),   w = 2 on lines whose mirror is missing, a ramp from 0
        to 2 over the symmetric band, 0 elsewhere

    Source: Noll, Nishimura, Macovski, Homodyne detection in MRI, IEEE TMI 10 (1991).

    Args:
        kspace: Complex ``[..., H, W]``.
        extent: `line_extent` of the mask.

    Returns:
        Real ``[..., H, W]``.

    Raises:
        ValueError: The center is not measured.
    """
    band, one_sided = _band(kspace.shape[-1], extent)
    width = kspace.shape[-1]
    lines = torch.arange(width, device=kspace.device, dtype=kspace.real.dtype)
    ramp = 1 + (lines - width // 2) / (band[1] - width // 2)
    if one_sided < 0:
        ramp = 2 - ramp
    measured = (lines >= extent[0]) & (lines < extent[1])
    weights = torch.where(measured, ramp.clamp(0, 2), 0)
    if one_sided == 0:
        weights = measured.to(ramp.dtype)
    image = ifft2c(kspace * weights)
    return (image * _unit(_low_resolution(kspace, band)).conj()).real


def pocs(kspace: Tensor, extent: tuple[int, int], *, num_iterations: int = 12) -> Tensor:
    """Missing lines by turns: the phase of the center in the image, measured lines in k-space.

    Source: Haacke, Lindskog, Lin, A fast, iterative, partial-Fourier technique, JMR 92 (1991).

    Args:
        kspace: Complex ``[..., H, W]``.
        extent: `line_extent` of the mask.
        num_iterations: Turns.

    Returns:
        Complex image ``[..., H, W]``, whose k-space holds the measured lines unchanged.

    Raises:
        ValueError: The center is not measured.
    """
    band, one_sided = _band(kspace.shape[-1], extent)
    if one_sided == 0:
        return ifft2c(kspace)
    lines = torch.arange(kspace.shape[-1], device=kspace.device)
    measured = (lines >= extent[0]) & (lines < extent[1])
    phase = _unit(_low_resolution(kspace, band))
    filled = kspace
    for _ in range(num_iterations):
        filled = torch.where(measured, kspace, fft2c(ifft2c(filled).abs() * phase))
    return ifft2c(filled)


def _band(width: int, extent: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """The symmetric band around the center, half-open, and the side that reaches farther."""
    center = width // 2
    left, right = center - extent[0], extent[1] - 1 - center
    half = min(left, right)
    if half < 0:
        raise ValueError(f"the center of k-space, line {center} of {width}, is not measured")
    whole = left >= center and right >= width - 1 - center
    side = 0 if whole else (right > left) - (left > right)
    return (center - half, center + half + 1), side


def _low_resolution(kspace: Tensor, band: tuple[int, int]) -> Tensor:
    """The image of the symmetric band, Hann filtered along the phase encoding."""
    window = torch.hann_window(
        band[1] - band[0] + 2, periodic=False, dtype=kspace.real.dtype, device=kspace.device
    )[1:-1]
    center = torch.zeros_like(kspace)
    center[..., band[0] : band[1]] = kspace[..., band[0] : band[1]] * window
    return ifft2c(center)


def _unit(x: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(x.real), x.angle())

"""Slices from undersampled k-space without training: maps, coil compression, solver, one setting.

The chain is: coils to at most `VIRTUAL_COILS` by singular values; ESPIRiT on a coarse grid; where
the mask is one of whole lines, at most `READOUT_COILS` combinations at every readout position; then
the solver on ``A^H A``, which needs 1-D transforms along the phase encoding only.

Weights are relative to the largest value of ``A^H y`` and are chosen from the noise (`weight_for`).
Shape letters: ``C`` coils, ``H`` readout, ``W`` phase encoding, ``...`` slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.compression import combine_coils, compress_readouts, compression_matrix
from core_mri.physics.fourier import ifft2c, ifftnc
from core_mri.physics.noise import noise_level
from core_mri.physics.operators import Sense
from core_mri.physics.preparation import center_crop
from core_mri.physics.sensitivity import (
    CoilMaps,
    calibration_region,
    espirit_maps,
    low_resolution_maps,
)
from core_mri.physics.solvers import admm_tv, conjugate_gradient, fista_haar

Method = Literal["zero-filled", "cg-sense", "tv", "wavelet"]
MapsKind = Literal["espirit", "low-resolution"]

VIRTUAL_COILS = 8
READOUT_COILS = 5
KERNEL = 6
ITERATIONS = {"zero-filled": 0, "cg-sense": 12, "tv": 30, "wavelet": 50}
"""Default iterations; of ``tv`` outer ones."""
_WEIGHTS = {"cg-sense": (0.01, 0.0), "tv": (0.0015, 0.4), "wavelet": (0.0015, 0.4)}
"""A floor, for the artifacts that undersampling leaves, and a factor of the noise. Chosen on the
tuning images of `tests/benchmarks/bench_reconstruction.py` at four levels of noise."""


class Encoded(NamedTuple):
    """A problem ready for a solver: ``A^H A``, ``A^H y`` and what it was made of."""

    sense: Sense
    data: Tensor
    """y, samples of virtual coils ``[..., V, H, W]``; where `sense` encodes along the lines alone,
    transformed along the readout."""
    right: Tensor
    """``A^H y``, complex ``[..., H, W]``."""
    scale: Tensor
    """Largest magnitude of `right`, ``[..., 1, 1]``."""
    noise: Tensor
    """Standard deviation of the noise in the real part of a sample, ``[..., 1, 1]``."""

    def residual(self, image: Tensor) -> Tensor:
        """``||A x - y|| / ||y||``, how badly an image explains the measured samples.

        Zero says that nothing measured contradicts the image, not that the image is right.

        Args:
            image: Complex ``[..., H, W]`` on the grid of the problem.

        Returns:
            ``[...]``; 0 where nothing was measured.
        """
        dims = (-3, -2, -1)
        difference = torch.linalg.vector_norm(self.sense.forward(image) - self.data, dim=dims)
        measured = torch.linalg.vector_norm(self.data, dim=dims)
        return difference / torch.where(measured > 0, measured, 1)


class Reconstruction(NamedTuple):
    """An image and how it was made."""

    image: Tensor
    """Complex ``[..., H, W]``; real and not negative for ``zero-filled``."""
    weight: Tensor | None
    """Regularization over the scale of the data, ``[...]``."""
    residual: Tensor | None
    """Of the measured samples, ``[...]``, as `Encoded.residual`; not of ``zero-filled``."""


def coil_maps(kspace: Tensor, mask: Tensor, kind: MapsKind = "espirit") -> CoilMaps:
    """Coil maps of the fully sampled center; low-resolution ones where it is too small for ESPIRiT.

    Args:
        kspace: Complex ``[..., C, H, W]``.
        mask: Bool ``[W]`` or ``[H, W]``.
        kind: Which; a single coil always gets its low-resolution phase.

    Raises:
        ValueError: As `calibration_region`.
    """
    region = calibration_region(mask.cpu(), kspace.shape[-2])
    if kspace.shape[-3] == 1:
        return low_resolution_maps(kspace, region, crop=0.0)
    if kind == "espirit" and min(region.shape) >= 2 * KERNEL:
        return espirit_maps(kspace, region, kernel=KERNEL)
    return low_resolution_maps(kspace, region)


def calibrate(
    kspace: Tensor, mask: Tensor, maps: MapsKind | Tensor = "espirit"
) -> tuple[Tensor, Tensor, CoilMaps]:
    """Compress the coils to at most `VIRTUAL_COILS`, and find their maps.

    Args:
        kspace: As `encode`.
        mask: As `encode`.
        maps: As `encode`.

    Returns:
        The matrix of virtual coils ``[..., V, C]``, their samples ``[..., V, H, W]`` and maps.

    Raises:
        ValueError: As `calibration_region`.
    """
    # The strongest combinations of coils are told by the center of k-space, where signal is.
    rows, columns = (slice(max(n // 2 - 12, 0), n // 2 + 12) for n in kspace.shape[-2:])
    matrix = compression_matrix(kspace[..., rows, columns], VIRTUAL_COILS)
    kspace = combine_coils(matrix, kspace)
    if isinstance(maps, Tensor):
        own = combine_coils(matrix, maps)
        return matrix, kspace, CoilMaps(own, root_sum_of_squares(ifft2c(kspace), -3))
    return matrix, kspace, coil_maps(kspace, mask, maps)


def encode(
    kspace: Tensor,
    mask: Tensor,
    *,
    maps: MapsKind | Tensor = "espirit",
    num_rows: int | None = None,
) -> Encoded:
    """Compress the coils, find their maps and set up the problem.

    Args:
        kspace: Complex ``[..., C, H, W]``, zero where not measured.
        mask: Bool ``[W]`` or ``[H, W]``, the same for all slices.
        maps: How to find the coil maps, or the maps ``[..., C, H, W]``, which then are compressed
            as the data is.
        num_rows: Rows of the image that are wanted, the middle of the readout (oversampling lies
            outside). With a mask of lines the others are left out of the problem, after maps were
            found from all; with single points nothing changes.

    Raises:
        ValueError: As `calibration_region`.
    """
    height, width = kspace.shape[-2:]
    noise = noise_level(kspace, mask if mask.ndim > 1 else mask[None])
    kspace, found = calibrate(kspace, mask, maps)[1:]
    if mask.ndim > 1:
        sense, data = Sense(found.maps, mask), kspace
    else:
        hybrid, energy = ifftnc(kspace, (-2,)), found.image**2
        weight = energy + 1e-3 * energy.amax((-2, -1), keepdim=True)
        size = (height if num_rows is None else num_rows, width)
        hybrid, cropped, weight = (center_crop(x, size) for x in (hybrid, found.maps, weight))
        data, virtual = compress_readouts(hybrid, cropped, weight, READOUT_COILS)
        sense = Sense(virtual, mask[None], axes=(-1,))
    right = sense.adjoint(data)
    return Encoded(sense, data, right, right.abs().amax((-2, -1), keepdim=True), noise)


def weight_for(method: Method, problem: Encoded) -> Tensor:
    """The weight of the penalty relative to the scale, from the noise of the data.

        weight = sqrt(floor^2 + (factor * noise / scale)^2)

    Returns:
        ``[..., 1, 1]``.
    """
    return penalty(method, problem.noise / problem.scale.clamp_min(1e-30))


def penalty(method: Method, noise: Tensor) -> Tensor:
    """`weight_for` of noise that is relative to the scale already."""
    floor, factor = _WEIGHTS[method]
    return ((factor * noise) ** 2 + floor**2).sqrt()


def reconstruct(
    kspace: Tensor,
    mask: Tensor,
    method: Method = "wavelet",
    *,
    weight: float | None = None,
    num_iterations: int | None = None,
    maps: MapsKind | Tensor = "espirit",
    num_rows: int | None = None,
) -> Reconstruction:
    """Slices of one scan, on the device of their samples.

    Args:
        kspace: Complex ``[..., C, H, W]``, zero where not measured.
        mask: Bool ``[W]`` or ``[H, W]``, measured points.
        method: ``zero-filled`` is the root sum of squares of all coils; ``cg-sense`` least squares
            with a ridge; ``tv`` isotropic total variation; ``wavelet`` shrinkage in the
            shift-invariant Haar frame, the best and fastest of them.
        weight: Of the penalty over the scale of the data (for ``cg-sense`` the ridge itself); from
            the noise by default.
        num_iterations: `ITERATIONS` by default.
        maps: As `encode`.
        num_rows: Rows of the image that are wanted, the middle of the readout; all by default.

    Returns:
        The image, ``[..., num_rows or H, W]``.

    Raises:
        ValueError: No center to find the coil maps from; not for ``zero-filled``.
    """
    size = (kspace.shape[-2] if num_rows is None else num_rows, kspace.shape[-1])
    if method == "zero-filled":
        coils = center_crop(ifft2c(kspace), size)
        return Reconstruction(root_sum_of_squares(coils, -3), None, None)
    problem = encode(kspace, mask, maps=maps, num_rows=num_rows)
    used = weight_for(method, problem) if weight is None else torch.full_like(problem.scale, weight)
    iterations = ITERATIONS[method] if num_iterations is None else num_iterations
    normal, right = problem.sense.normal, problem.right
    if method == "cg-sense":
        image = conjugate_gradient(normal, right, ridge=used, num_iterations=iterations)
    else:
        solve: Callable[..., Tensor] = admm_tv if method == "tv" else fista_haar
        image = solve(normal, right, used * problem.scale, num_iterations=iterations)
    return Reconstruction(center_crop(image, size), used[..., 0, 0], problem.residual(image))

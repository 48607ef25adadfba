"""Receive coils: combining them, spreading an image over them, and emulating a single one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core_mri.physics.fourier import ifft2c


def root_sum_of_squares(x: Tensor, dim: int) -> Tensor:
    """``sqrt(sum_c |x_c|^2)``, the magnitude of all coils together.

    Source: Roemer et al., The NMR phased array, MRM 16 (1990).

    Args:
        x: Complex or real coil images (or k-space), any shape.
        dim: The dimension of the coils, which goes.

    Returns:
        Real, not negative. Its gradient is zero where all coils are zero.
    """
    energy = (x.abs() ** 2).sum(dim)
    # sqrt has an infinite slope at zero, which would turn air into NaN in training.
    positive = energy > 0
    return torch.where(positive, torch.where(positive, energy, 1.0).sqrt(), 0.0)


def coil_expand(image: Tensor, maps: Tensor) -> Tensor:
    """What each coil sees of an image: ``x_c = S_c x``.

    Args:
        image: Complex ``[..., H, W]``.
        maps: Coil sensitivities ``[..., C, H, W]``.

    Returns:
        ``[..., C, H, W]``.
    """
    return image.unsqueeze(-3) * maps


def coil_combine(coil_images: Tensor, maps: Tensor) -> Tensor:
    """The adjoint of `coil_expand`: ``sum_c conj(S_c) x_c``.

    With ``sum_c |S_c|^2 = 1`` this is the least-squares image (SENSE with full sampling; Pruessmann
    et al., MRM 42 (1999)).

    Args:
        coil_images: Complex ``[..., C, H, W]``.
        maps: Coil sensitivities ``[..., C, H, W]``.

    Returns:
        ``[..., H, W]``.
    """
    return (maps.conj() * coil_images).sum(-3)


def emulated_single_coil_weights(
    read_slice: Callable[[int], Tensor], num_slices: int, *, num_iterations: int = 50
) -> Tensor:
    """Weights of the coils whose combination looks most like all coils together.

    One complex weight per coil and volume, as for the single-coil track of fastMRI:

        minimize over w:  sum over voxels ( |sum_c w_c x_c| - r )^2,   r = sqrt(sum_c |x_c|^2)

    Given the phase p of the combination this is linear least squares, ``(sum x x^H) w = sum conj(x)
    p r``; phase and weights take turns, which never increases the error. It starts from the
    principal direction of the coils, which makes the result the same for any order of them. All
    slices are read once per iteration, one at a time: a volume is never in memory whole.
    Source: Tygert and Zbontar, Simulating single-coil MRI from the responses of multiple coils,
    CAMCoS 15 (2020), arXiv:1811.08026.

    Args:
        read_slice: Index to k-space ``[C, H, W]``, complex.
        num_slices: How many there are.
        num_iterations: Turns; fewer when the weights no longer change (1e-6).

    Returns:
        Complex128 ``[C]``; the emulated k-space is ``sum_c w_c k_c``, of the phase that makes the
        weight of the strongest coil real and positive.

    Raises:
        ValueError: There is no slice, or nothing but zeros.
    """
    if num_slices < 1:
        raise ValueError("a volume has at least one slice")
    gram = sum(_gram(_flat(read_slice(index))) for index in range(num_slices))
    if not isinstance(gram, Tensor) or not bool(gram.diagonal().real.sum() > 0):
        raise ValueError("all samples are zero, no weights can be fitted")
    # gram_cd = sum conj(x_c) x_d, so that |A w|^2 = w^H gram w with rows of A the voxels.
    weights = torch.linalg.eigh(gram)[1][:, -1]
    solve = torch.linalg.pinv(gram, hermitian=True)
    for _ in range(num_iterations):
        right = torch.zeros_like(weights)
        for index in range(num_slices):
            coils = _flat(read_slice(index))
            combined = weights @ coils
            phase = torch.polar(torch.ones_like(combined.real), combined.angle())
            right += coils.conj() @ (phase * coils.abs().square().sum(0).sqrt())
        updated = solve @ right
        change = float((updated - weights).norm() / updated.norm())
        weights = updated
        if change < 1e-6:
            break
    strongest = weights[gram.diagonal().real.argmax()]
    return weights * (strongest.conj() / strongest.abs().clamp_min(1e-300))


def emulate_single_coil(kspace: Tensor, weights: Tensor) -> Tensor:
    """Combine the coils of k-space with one weight each: ``sum_c w_c k_c``.

    Args:
        kspace: Complex ``[..., C, H, W]``.
        weights: ``[C]`` of `emulated_single_coil_weights`.

    Returns:
        ``[..., H, W]`` of the type of `kspace`.
    """
    return torch.einsum("c,...chw->...hw", weights.to(kspace.dtype), kspace)


def _flat(kspace: Tensor) -> Tensor:
    """Coil images ``[C, voxels]`` in double precision."""
    return ifft2c(kspace.to(torch.complex128)).flatten(1)


def _gram(coils: Tensor) -> Tensor:
    return coils.conj() @ coils.T

"""Noise of the coils: its covariance, whitening, and its level when no noise scan exists."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_covariance(samples: Tensor) -> Tensor:
    """``sum n n^H / (count - 1)`` of a noise scan.

    Args:
        samples: Complex ``[C, count]``, measured without excitation.

    Returns:
        ``[C, C]``.

    Raises:
        ValueError: Fewer samples than twice the coils, of which no covariance can be told.
    """
    num_coils, count = samples.shape
    if count < 2 * num_coils:
        raise ValueError(
            f"{count} samples of noise for {num_coils} coils: at least {2 * num_coils} are needed"
        )
    return samples @ samples.conj().T / (count - 1)


def whitening_matrix(covariance: Tensor) -> Tensor:
    """``sqrt(2) L^-1`` with ``covariance = L L^H``.

    Whitened noise is independent between coils, of standard deviation 1 in the real and in the
    imaginary part. Source: Pruessmann et al., MRM 46 (2001); Kellman and McVeigh, MRM 54 (2005).

    Args:
        covariance: ``[C, C]``, Hermitian and positive definite.

    Returns:
        ``[C, C]``, for `core_mri.physics.compression.combine_coils`.

    Raises:
        ValueError: A covariance that cannot be inverted, as of a coil that is unplugged.
    """
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):
        raise ValueError("the noise covariance cannot be inverted; is a coil unplugged?")
    identity = torch.eye(len(covariance), dtype=lower.dtype, device=lower.device)
    return 2**0.5 * torch.linalg.solve_triangular(lower, identity, upper=False)


def noise_level(kspace: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation of the noise in the real part of a sample, guessed from the scan itself.

    The smallest eigenvalue of the covariance of coils over the outer eighths of the readout: signal
    spreads over few combinations of coils, noise over all. A bound from below where coils are not
    white or where signal fills every coil; with one coil the lower quartile of the power instead.

    Args:
        kspace: Complex ``[..., C, H, W]``.
        mask: Bool ``[..., H or 1, W]``, measured points.

    Returns:
        ``[..., 1, 1]``; 0 where nothing was measured there.
    """
    num_coils, height = kspace.shape[-3:-1]
    edge = max(height // 8, 1)
    rows = [*range(edge), *range(height - edge, height)]
    outer = kspace[..., rows, :]
    measured = (outer != 0).any(-3, keepdim=True) & mask.expand(
        *mask.shape[:-2], height, mask.shape[-1]
    )[..., rows, :].unsqueeze(-3)
    count = measured.sum((-2, -1)).clamp_min(1)
    if num_coils == 1:
        power = torch.where(measured, outer.abs() ** 2, torch.nan)
        # |n|^2 is exponential of mean 2 sigma^2: its quartile is 2 sigma^2 ln(4 / 3)
        quartile = power.flatten(-2).nanquantile(0.25, dim=-1)
        variance = quartile / (2 * torch.log(torch.tensor(4 / 3)))
    else:
        flat = (outer * measured).flatten(-2)
        covariance = flat @ flat.mH / count.unsqueeze(-1)
        variance = torch.linalg.eigvalsh(covariance)[..., :1] / 2
    return torch.nan_to_num(variance.clamp_min(0)).sqrt().unsqueeze(-1)

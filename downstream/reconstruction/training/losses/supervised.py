"""With a fully sampled reference: structural similarity of magnitudes, and the complex image.

    loss = 1 - SSIM(|x|, r) + mean |x - t| / peak

r magnitude, t complex image of all samples (``S^H F^-1 y``). SSIM alone leaves the phase free, L1
alone blurs. SSIM as fastMRI trains VarNet by it: Wang et al., IEEE TIP 13 (2004), windows of 7x7 of
equal weight, K1 0.01, K2 0.03, sample covariance; the data range is the peak of the volume.
Shape letters: ``S`` slices, ``H W`` image, ``h w`` image that is scored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, K1, K2 = 7, 0.01, 0.03


def supervised_loss(
    magnitude: Tensor,
    reference: Tensor,
    peak: Tensor,
    *,
    image: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """The loss of each slice, ``[S]``.

    Args:
        magnitude: Estimate ``[S, h, w]``.
        reference: ``[S, h, w]``.
        peak: Largest value of the reference volume of each slice, positive, ``[S]``.
        image: Complex estimate ``[S, H, W]``; with `target`, the second term.
        target: Complex image of all samples.
    """
    loss = 1 - ssim(magnitude, reference, peak)
    if image is None or target is None:
        difference = (magnitude - reference).abs().mean((-2, -1))
    else:
        difference = (image - target).abs().mean((-2, -1))
    return loss + difference / peak


def ssim(estimate: Tensor, reference: Tensor, peak: Tensor) -> Tensor:
    """Mean structural similarity of each slice, ``[S]``, with gradients.

    Equal to `core_mri.metrics.ssim` of a volume of these slices when all have its peak.

    Args:
        estimate: ``[S, h, w]``.
        reference: ``[S, h, w]``.
        peak: Data range, positive, ``[S]``.
    """
    c1 = (K1 * peak)[:, None, None] ** 2
    c2 = (K2 * peak)[:, None, None] ** 2
    products = torch.stack(
        [estimate, reference, estimate**2, reference**2, estimate * reference], 1
    )
    mean_e, mean_r, square_e, square_r, product = functional.avg_pool2d(products, WINDOW, 1).unbind(
        1
    )
    sample = WINDOW**2 / (WINDOW**2 - 1)
    variance_e = sample * (square_e - mean_e**2)
    variance_r = sample * (square_r - mean_r**2)
    covariance = sample * (product - mean_e * mean_r)
    luminance = (2 * mean_e * mean_r + c1) / (mean_e**2 + mean_r**2 + c1)
    structure = (2 * covariance + c2) / (variance_e + variance_r + c2)
    return (luminance * structure).mean((-2, -1))

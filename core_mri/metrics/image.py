"""How near a reconstruction is to its reference: NMSE, PSNR, SSIM, each over a whole volume.

As fastMRI scores (facebookresearch/fastMRI, `fastmri/evaluate.py`): the largest value of the
*reference volume* is the data range, and errors are summed over the volume. Averaging scores of
slices instead moves PSNR by several dB: nearly empty slices then weigh as much as full ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def nmse(reference: Any, estimate: Any) -> float:
    """Normalized mean squared error ``||r - e||^2 / ||r||^2``.

    Args:
        reference: Magnitudes ``[slices, H, W]``, numpy or torch.
        estimate: Of the same shape.

    Returns:
        0 or more; 0 is best.

    Raises:
        ValueError: Shapes differ or are no volume, a value is not finite, or the reference is zero.
    """
    r, e = _volumes(reference, estimate)
    return float(((r - e) ** 2).sum() / (r**2).sum())


def psnr(reference: Any, estimate: Any) -> float:
    """Peak signal-to-noise ratio ``10 log10(max(r)^2 / mean((r - e)^2))``.

    Args:
        reference: Magnitudes ``[slices, H, W]``, numpy or torch.
        estimate: Of the same shape.

    Returns:
        Decibels; inf when both are equal.

    Raises:
        ValueError: As `nmse`.
    """
    r, e = _volumes(reference, estimate)
    error = ((r - e) ** 2).mean()
    return float(10 * np.log10(r.max() ** 2 / error)) if error > 0 else float("inf")


def ssim(reference: Any, estimate: Any) -> float:
    """Structural similarity, the mean over slices, with the data range of the volume.

    Windows of 7x7 voxels of equal weight, K1 = 0.01, K2 = 0.03, sample covariance, a border of 3
    voxels left out: the defaults of `skimage.metrics.structural_similarity`, which computes it.
    Source: Wang et al., Image quality assessment, IEEE TIP 13 (2004).

    Args:
        reference: Magnitudes ``[slices, H, W]``, numpy or torch; H and W at least 7.
        estimate: Of the same shape.

    Returns:
        At most 1.

    Raises:
        ValueError: As `nmse`, or slices are smaller than the window.
    """
    from skimage.metrics import structural_similarity

    r, e = _volumes(reference, estimate)
    if min(r.shape[1:]) < 7:
        raise ValueError(f"slices must be at least 7x7, got {r.shape[1]}x{r.shape[2]}")
    peak = r.max()
    return float(
        np.mean([structural_similarity(a, b, data_range=peak) for a, b in zip(r, e, strict=True)])
    )


def _volumes(
    reference: Any, estimate: Any
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    first, second = (
        np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, dtype=np.float64)
        for x in (reference, estimate)
    )
    if first.shape != second.shape or first.ndim != 3:
        raise ValueError(
            f"expected two volumes [slices, H, W], got shapes {first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a volume holds values that are not finite")
    if not first.max() > 0:
        raise ValueError("the reference holds no positive value: there is nothing to compare with")
    return first, second

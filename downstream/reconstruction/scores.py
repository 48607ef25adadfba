"""Scores of reconstructed volumes as fastMRI takes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core_mri.metrics import nmse, psnr, ssim

Image = npt.NDArray[np.float32]


def volume_scores(reference: Image, estimate: Image) -> dict[str, float]:
    """NMSE, PSNR and SSIM of a volume, both cut to the square of the reference's width.

    Source: facebookresearch/fastMRI, `fastmri/evaluate.py`, which crops to (W, W) of the target.

    Args:
        reference: ``[slices, H, W]``.
        estimate: Of the same number of slices, at least as large after the crop.

    Raises:
        ValueError: Volumes that cannot be compared.
    """
    side = min(reference.shape[1:])
    r, e = square(reference, side), square(estimate, side)
    return {"NMSE": nmse(r, e), "PSNR": psnr(r, e), "SSIM": ssim(r, e)}


def square(images: Image, side: int) -> Image:
    """The middle ``[slices, side, side]``.

    Raises:
        ValueError: Images are smaller.
    """
    height, width = images.shape[1:]
    if side > min(height, width):
        raise ValueError(f"slices of {height}x{width} are smaller than {side}x{side}")
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]

"""Undersampled k-space with zeros in its gaps: ghosts or a noise-like haze."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.physics import undersampling_mask


def draw_lines(
    size: int,
    accelerations: npt.NDArray[np.float64],
    center: float,
    *,
    random: npt.NDArray[np.bool_],
    seeds: Sequence[int],
) -> Tensor:
    """Which lines are measured, by the masks of fastMRI (`core_mri.physics.undersampling_mask`).

    Args:
        size: S.
        accelerations: [N], at least 1.
        center: Part of the lines in the fully sampled center.
        random: [N], random lines; equally spaced ones elsewhere.
        seeds: [N].

    Returns:
        Bool [N, S], on the CPU.
    """
    masks = [
        undersampling_mask(
            "random" if chosen else "equispaced_fraction",
            (1, size),
            center_fractions=[center],
            accelerations=[acceleration],
            seed=seed,
        )
        for acceleration, chosen, seed in zip(accelerations.tolist(), random, seeds, strict=True)
    ]
    return torch.cat(masks)


def zero_filled(images: Tensor, lines: Tensor, along_rows: Tensor) -> Tensor:
    """``F^-1 (M F x)``; its magnitude is the picture.

    Args:
        images: [N, S, S].
        lines: Bool [N, S].
        along_rows: Bool [N, 1, 1]: the lines are rows of k-space, else columns.

    Returns:
        Complex [N, S, S].
    """
    # What is done along the lines undoes itself: only the phase direction is transformed. The
    # origin of the transform does not matter, as long as the mask has the same one.
    turned = torch.where(along_rows, images.mT, images)
    mask = torch.fft.ifftshift(lines, dim=-1)[:, None]
    filled = torch.fft.ifft(torch.fft.fft(turned) * mask)
    return torch.where(along_rows, filled.mT, filled)

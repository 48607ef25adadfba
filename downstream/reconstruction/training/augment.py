"""Images moved before they are measured, so that a few scans stand for more.

Flips, turns by 90 degrees, and half of the time a turn, scaling and shift of any amount: the
measurement is made of the moved image, as in MRAugment (Fabian, Heckel, Soltanolkotabi, Data
augmentation for deep learning based accelerated MRI reconstruction, ICML 2021, arXiv:2106.14947).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MAX_DEGREES = 20.0
MAX_SHIFT = 0.08
SCALES = (0.8, 1.2)


def moved(images: Tensor, rng: np.random.Generator) -> Tensor:
    """All images moved alike.

    Args:
        images: ``[N, H, W]``, real; the two parts of complex ones one after the other.
        rng: Draws the movement.

    Returns:
        Of the same size, zeros from outside; interpolation is bicubic and may overshoot.
    """
    for axis in (-2, -1):
        if rng.random() < 0.5:
            images = images.flip(axis)
    turns = int(rng.integers(4))
    square = images.shape[-1] == images.shape[-2]
    images = images.rot90(turns if square else 2 * (turns % 2), (-2, -1))
    if rng.random() < 0.5:
        return images
    angle = math.radians(rng.uniform(-MAX_DEGREES, MAX_DEGREES))
    scale = rng.uniform(*SCALES)
    shift = rng.uniform(-2 * MAX_SHIFT, 2 * MAX_SHIFT, size=2)  # the image spans [-1, 1]
    ratio = images.shape[-2] / images.shape[-1]
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = [[cosine, -sine * ratio, shift[0]], [sine / ratio, cosine, shift[1]]]
    theta = torch.tensor([matrix], dtype=images.dtype)
    grid = functional.affine_grid(theta, [1, 1, *images.shape[-2:]], align_corners=False)
    return functional.grid_sample(images[None], grid, mode="bicubic", align_corners=False)[0]

"""How badly a magnitude image explains the samples that were measured.

Shape letters: ``C`` coils, ``H`` readout, ``W`` phase encoding, ``h w`` image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core_mri.physics.classical import encode

ITERATIONS = 10
"""Of the phase."""


def magnitude_residual(kspace: Tensor, mask: Tensor, magnitude: Tensor) -> Tensor:
    """``||A x - y|| / ||y||`` of a magnitude, with the phase that explains the samples best.

    From the phase of ``A^H y`` on, ``x <- |x| exp(i arg(x + A^H (y - A x)))``: gradient steps
    projected onto images of this magnitude, which never increase the residual as ``||A|| <= 1``.
    Coil maps and virtual coils are those of `core_mri.physics.classical.encode`.

    Args:
        kspace: Complex ``[C, H, W]``, zero where not measured.
        mask: Bool ``[W]`` or ``[H, W]``.
        magnitude: ``[h, w]``, the middle of the field of view; what lies outside of it is free, and
            found by the same gradient steps.

    Returns:
        A number; see `core_mri.physics.classical.Encoded.residual`.

    Raises:
        ValueError: No center to find the coil maps from.
    """
    rows, columns = magnitude.shape
    problem = encode(kspace, mask, num_rows=rows)
    right = problem.right
    height, width = right.shape
    top, left = (height - rows) // 2, (width - columns) // 2
    inside = (slice(top, top + rows), slice(left, left + columns))
    image = right.clone()
    image[inside] = torch.polar(magnitude, right[inside].angle())
    for _ in range(ITERATIONS):
        image = image + right - problem.sense.normal(image)
        image[inside] = torch.polar(magnitude, image[inside].angle())
    return problem.residual(image)

"""Where an image may be wrong: two reconstructions from disjoint halves of what was measured.

Lines outside of the center are dealt in turn to two halves, the center to both. Where the two
images and the one of all lines disagree, the samples do not determine the image:

    e = sqrt( ((a - x)^2 + (b - x)^2) / 2 ),   smoothed

It grows where the true error grows, it is no bound of it: an error that all three share is not
seen.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import numpy.typing as npt

from core_mri.kspace_sampling import Bools
from core_mri.physics.masks import center_lines
from core_mri.physics.sensitivity import calibration_region

Image = npt.NDArray[np.float32]
SMOOTHING = 2.0
"""Standard deviation of the Gaussian, pixels."""


def halves(mask: Bools) -> tuple[Bools, Bools]:
    """Two masks whose union is `mask` and that share nothing but its fully sampled center.

    Args:
        mask: ``[phase]``, or ``[readout, phase]`` whose points are dealt out one by one.
    """
    center = _center(mask)
    first = np.zeros_like(mask)
    first.flat[np.flatnonzero(mask & ~center)[::2]] = True
    return first | center, mask & ~first


def _center(mask: Bools) -> Bools:
    """The fully sampled center, nothing where there is none."""
    center = np.zeros_like(mask)
    if mask.ndim == 1:
        number = center_lines(mask)
        start = (len(mask) - number + 1) // 2
        center[start : start + number] = True
        return center & mask
    with suppress(ValueError):
        top, bottom, left, right = calibration_region(mask, len(mask), max(mask.shape))
        center[top:bottom, left:right] = True
    return center


def error_map(image: Image, first: Image, second: Image) -> Image:
    """The estimate of errors, in the unit of the image."""
    from scipy.ndimage import gaussian_filter

    deviation = np.sqrt(((first - image) ** 2 + (second - image) ** 2) / 2)
    smooth: Image = gaussian_filter(deviation, SMOOTHING)
    return smooth

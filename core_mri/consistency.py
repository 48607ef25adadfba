"""From slices back to a volume: neighbours agree, and structures are in one piece."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def smooth_across(probabilities: Tensor, gap_mm: float, sigma_mm: float) -> Tensor:
    """Gaussian mean over neighbour slices: ``w(d) = exp(-(d gap)^2 / (2 sigma^2))``, sum 1.

    Slices far apart say little about each other: with a gap of three sigma they keep what they are.
    At the ends the mean is over the slices there are.

    Args:
        probabilities: [S, C, H, W].
        gap_mm: Distance of neighbour slices.
        sigma_mm: 0 changes nothing.
    """
    reach = min(len(probabilities) - 1, math.floor(3 * sigma_mm / gap_mm))
    if reach < 1:
        return probabilities
    total = probabilities.clone()
    weight = torch.ones(len(probabilities), 1, 1, 1, device=total.device)
    for distance in range(1, reach + 1):
        own = math.exp(-((distance * gap_mm) ** 2) / (2 * sigma_mm**2))
        total[distance:].add_(probabilities[:-distance], alpha=own)
        total[:-distance].add_(probabilities[distance:], alpha=own)
        weight[distance:] += own
        weight[:-distance] += own
    return total.div_(weight)


def remove_islands(classes: npt.NDArray[np.uint8], smallest: float) -> npt.NDArray[np.uint8]:
    """Parts of a structure with fewer voxels than a share of its largest part become background.

    Args:
        classes: [S, H, W]; voxels that touch at a corner belong together.
        smallest: Share in [0, 1]; 0 removes nothing, 1 all but the largest parts.
    """
    from scipy.ndimage import label

    if not smallest:
        return classes
    kept = classes.copy()
    for value in np.unique(classes[classes > 0]):
        parts, _ = label(classes == value, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        small = sizes < smallest * sizes.max()
        small[0] = False
        kept[small[parts]] = 0
    return kept

"""3D consistency that helps on validation patients, or none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from core_mri.consistency import remove_islands, smooth_across
from core_mri.metrics import dice
from core_mri.models.segmenter import Inference

SMOOTHING_MM = (0.0, 1.0, 2.0, 4.0)
ISLANDS = (0.0, 0.1, 1.0)
LEAST_GAIN = 0.002
"""Mean Dice by which a setting must beat doing nothing; less is chance."""


@dataclass(frozen=True)
class Validated:
    """A whole validation volume on the encoder's grid."""

    probabilities: Tensor
    """[S, C, H, W]."""
    masks: npt.NDArray[np.uint8]
    """[S, H, W]."""
    gap_mm: float


def choose_consistency(
    volumes: Sequence[Validated], inference: Inference, num_structures: int
) -> Inference:
    """`inference` with smoothing and islands of the best mean Dice; without volumes as it is."""
    if not volumes:
        return inference
    scores = {}
    for sigma, smallest in itertools.product(SMOOTHING_MM, ISLANDS):
        values = []
        for volume in volumes:
            smooth = smooth_across(volume.probabilities, volume.gap_mm, sigma)
            classes = smooth.argmax(1).cpu().numpy().astype(np.uint8)
            found = remove_islands(classes, smallest)
            values += [dice(volume.masks == c, found == c) for c in range(1, num_structures + 1)]
        scores[sigma, smallest] = float(np.mean(values))
    best = max(scores, key=lambda setting: scores[setting])
    if scores[best] < scores[0.0, 0.0] + LEAST_GAIN:
        return inference
    return replace(inference, smoothing_mm=best[0], smallest_island=best[1])

"""Scores of a whole volume, structure by structure, on its stored grid, empty slices included.

=========  ====================================  ============  ===========  =================
metric     formula                               unit          both absent  absent from one
=========  ====================================  ============  ===========  =================
``dice``   `core_mri.metrics.dice`               1             1            0
``nsd``    `core_mri.metrics.surface_dice`       1             1            0
``hd95``   `core_mri.metrics.hausdorff95`        mm, or px     0            diagonal of the grid
=========  ====================================  ============  ===========  =================

A structure that one of the masks lacks has no surface to measure to. Leaving such volumes out would
reward a model for finding nothing, and would compare models on different patients, so they get the
worst value there is (Maier-Hein et al., Metrics reloaded, Nat. Methods 21 (2024): a metric without
an upper bound needs one before failures can be averaged). For ``hd95`` that is the diagonal of the
grid, as in BraTS, where 240 x 240 x 155 voxels of 1 mm give 373.13 mm.

Where nobody knows the spacing (pictures), distances are counted in pixels, unit ``px``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.metrics import dice, hausdorff95, surface_dice

if TYPE_CHECKING:
    from data_registry.schema import VolumeRow

DEFAULT_TOLERANCE = 1.0
"""Deviation of a surface that ``nsd`` forgives, in mm, or in pixels without a spacing. 1 mm is the
value of the Medical Segmentation Decathlon for the hippocampus; larger organs have larger ones."""


@dataclass(frozen=True)
class Measured:
    """One number of one volume."""

    structure: str
    metric: str
    value: float
    unit: str
    """``1``, ``mm`` or ``px``."""


def distances_of(row: VolumeRow) -> tuple[tuple[float, ...], str]:
    """Spacing along slice, row, column, and its unit: millimeters, or pixels where unknown."""
    from data_registry.schema import UNKNOWN_SPACING

    if UNKNOWN_SPACING in json.loads(row.facts):
        return (1.0,) * len(row.spacing_mm), "px"
    return row.spacing_mm, "mm"


def measure(
    reference: npt.NDArray[np.uint8],
    estimate: npt.NDArray[np.uint8],
    structures: Sequence[str],
    *,
    spacing: Sequence[float],
    unit: str,
    tolerances: Mapping[str, float],
) -> Iterator[Measured]:
    """Every metric of every structure.

    Args:
        reference: Class indices ``[S, H, W]``, 0 the background.
        estimate: The same of the model.
        structures: Names of the classes from 1 on.
        spacing: Of slice, row, column, in `unit`; an axis of one voxel is left out of distances.
        unit: ``mm`` or ``px``.
        tolerances: Structure to the deviation that ``nsd`` forgives, in `unit`;
            `DEFAULT_TOLERANCE` for those not named.
    """
    sizes = [(n, s) for n, s in zip(reference.shape, spacing, strict=True) if n > 1]
    spacing = [s for _, s in sizes]
    diagonal = math.hypot(*(n * s for n, s in sizes))
    for index, name in enumerate(structures, start=1):
        masks = (reference == index).squeeze(), (estimate == index).squeeze()
        distance = hausdorff95(*masks, spacing_mm=spacing)
        if math.isnan(distance):
            distance = 0.0
        agreement = surface_dice(
            *masks, spacing_mm=spacing, tolerance_mm=tolerances.get(name, DEFAULT_TOLERANCE)
        )
        yield Measured(name, "dice", dice(*masks), "1")
        yield Measured(name, "nsd", agreement, "1")
        yield Measured(name, "hd95", min(distance, diagonal), unit)

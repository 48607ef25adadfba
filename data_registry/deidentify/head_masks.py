"""Where the head is in a scan, and how well a fit lays that of the template on it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from data_registry.deidentify.head_template import (
    Mask,
    Points,
    below_rim,
    coarse_template,
    directions,
    full_template,
)

if TYPE_CHECKING:
    import SimpleITK


def head_mask(image: SimpleITK.Image) -> Mask:
    """Voxels ``[z, y, x]`` of the largest body of tissue, its cavities filled.

    Tissue is brighter than half of Otsu's threshold, the brightest 0.5 % being clipped.
    """
    import SimpleITK

    array = SimpleITK.GetArrayFromImage(image)
    clipped = SimpleITK.Clamp(
        image, SimpleITK.sitkFloat32, float(array.min()), float(np.percentile(array, 99.5))
    )
    otsu = SimpleITK.OtsuThresholdImageFilter()
    otsu.Execute(clipped)
    low = float(array.min())
    tissue = clipped > low + (otsu.GetThreshold() - low) / 2
    whole = SimpleITK.BinaryFillhole(SimpleITK.BinaryMorphologicalClosing(tissue, [3] * 3))
    largest = SimpleITK.RelabelComponent(SimpleITK.ConnectedComponent(whole)) == 1
    return np.asarray(SimpleITK.GetArrayFromImage(largest), dtype=bool)


def agreement(image: SimpleITK.Image, matrix: Points) -> tuple[float, float]:
    """How the template, laid on a scan, agrees with it, inside what both show.

    Args:
        image: The scan on the coarse grid.
        matrix: ``[3, 4]``: patient coordinates to voxels of the template.

    Returns:
        Dice's coefficient of both heads, and the part of the template's tissue below the orbital
        rim that lies on tissue of the scan: small where the face has gone already, or where the
        template lies beside it.
    """
    head = head_mask(image).ravel()
    points = grid_points(image)
    voxels = points @ matrix[:, :3].T + matrix[:, 3]
    shown, template = _template_at(voxels)
    head = head & shown
    dice = 2 * np.count_nonzero(head & template) / max(1, head.sum() + template.sum())
    face = template & below_rim(voxels)
    return float(dice), float(np.count_nonzero(face & head) / max(1, face.sum()))


def grid_points(image: SimpleITK.Image) -> Points:
    """Patient coordinates (LPS, mm) of every voxel, in the order of its array ``[z, y, x]``."""
    voxels = np.indices(image.GetSize()[::-1]).reshape(3, -1)[::-1].T
    return np.asarray(voxels @ directions(image).T + np.array(image.GetOrigin()))


def _template_at(voxels: Points) -> tuple[Mask, Mask]:
    """Of voxels of the template: whether it shows them, and whether they are of its head."""
    full, coarse, mask = full_template(), coarse_template(), _template_mask()
    points = voxels @ directions(full).T + np.array(full.GetOrigin())
    inverse = np.linalg.inv(directions(coarse))
    nearest = np.rint((points - np.array(coarse.GetOrigin())) @ inverse.T).astype(int)
    shown = ((nearest >= 0) & (nearest < mask.shape[::-1])).all(axis=1)
    inside = np.zeros(len(voxels), dtype=bool)
    inside[shown] = mask[tuple(nearest[shown].T[::-1])]
    return shown, inside


@cache
def _template_mask() -> Mask:
    return head_mask(coarse_template())

"""Faces of heads: a whole-head template is laid over the scan, and what lies in its face goes.

A similarity transform, then an affine one, maximize Mattes' mutual information from the moments of
both heads (SimpleITK), so that the contrast does not matter. A fit that is not sure removes
nothing: the scan is held back.

Two ways, in the voxels of the template:

* ``crop``: all below the orbital rim in front, and all below the skull base further back. Nothing
  of eyes, nose, mouth and jaw stays, and no surface that could be rendered.
* ``deface``: pydeface's own mask, which follows the face and leaves most of the eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_registry.deidentify.head_masks import agreement
from data_registry.deidentify.head_template import (
    Mask,
    Points,
    below_rim,
    coarse_template,
    directions,
    face_mask,
    full_template,
    on_grid,
)
from data_registry.deidentify.scope import FacePolicy

if TYPE_CHECKING:
    import SimpleITK

MIN_INFORMATION = 0.62
"""Nats of mutual information that a fit must reach. Whole heads reach 0.65 to 0.80, a ball and a
head turned round 0.59, brains without skull 0.41, other regions 0.1 to 0.5."""
SCALES = (0.55, 1.7)
"""Volume of the head beside the template's."""
MIN_DICE, MIN_OVERLAP = 0.94, 0.85
"""Of both heads, and of the template's face with tissue. Whole heads reach 0.96
to 0.97 and 0.91 to 0.93; where a face was masked before the overlap is 0.55, if cropped 0.14."""


@dataclass(frozen=True)
class HeadFit:
    """Where a scan's points lie in the template.

    Args:
        matrix: ``[3, 4]``: patient coordinates (LPS, mm) to voxels of the template.
        information: Mutual information in nats.
        scale: Volume of the scan's head beside the template's.
        dice: Of the heads of scan and template, where both show something.
        overlap: Part of the template's face that lies on tissue of the scan.
    """

    matrix: tuple[tuple[float, ...], ...]
    information: float
    scale: float
    dice: float
    overlap: float

    @property
    def doubts(self) -> list[str]:
        """Why faces may not be removed by it; empty for a sure fit."""
        return [
            text
            for sure, text in (
                (self.information >= MIN_INFORMATION, f"information {self.information:.2f}"),
                (SCALES[0] <= self.scale <= SCALES[1], f"size {self.scale:.2f} times the template"),
                (self.dice >= MIN_DICE, f"overlap of the heads {self.dice:.2f}"),
                (self.overlap >= MIN_OVERLAP, f"tissue in {self.overlap:.0%} of the face"),
            )
            if not sure
        ]

    def to_mapping(self) -> dict[str, float]:
        """The figures, as the audit states them."""
        figures = {n: getattr(self, n) for n in ("information", "scale", "dice", "overlap")}
        return {name: round(value, 3) for name, value in figures.items()}

    @property
    def sure(self) -> bool:
        """Whether faces may be removed by it."""
        return not self.doubts


def fit_head(image: SimpleITK.Image) -> HeadFit:
    """Lay the template over a scan.

    Args:
        image: Three-dimensional, of any contrast, with its geometry.

    Returns:
        The best fit; one with ``information`` 0 where none could be made.

    Raises:
        ConfigError: CONFIG-06 when pydeface is not installed.
    """
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # sums in one order
    moving = coarse_template()
    try:
        fixed = on_grid(image)
        similar = SimpleITK.CenteredTransformInitializer(
            fixed,
            moving,
            SimpleITK.Similarity3DTransform(),
            SimpleITK.CenteredTransformInitializerFilter.MOMENTS,
        )
        _optimize(fixed, moving, similar, shrink=[4, 2], sigmas=[4, 2], steps=100, length=2.0)
        affine = SimpleITK.AffineTransform(3)
        affine.SetCenter(similar.GetCenter())
        affine.SetMatrix(similar.GetMatrix())
        affine.SetTranslation(similar.GetTranslation())
        information = _optimize(
            fixed, moving, affine, shrink=[4, 2, 1], sigmas=[4, 2, 0], steps=150, length=1.0
        )
    except RuntimeError:  # flat, empty or too small images
        return HeadFit(((0.0,) * 4,) * 3, 0.0, 0.0, 0.0, 0.0)
    linear = np.array(affine.GetMatrix()).reshape(3, 3)
    center = np.array(affine.GetCenter())
    offset = center + np.array(affine.GetTranslation()) - linear @ center
    to_voxels = np.linalg.inv(directions(full_template()))
    matrix = np.column_stack(
        (to_voxels @ linear, to_voxels @ (offset - np.array(full_template().GetOrigin())))
    )
    scale = 1 / abs(float(np.linalg.det(linear)))
    return HeadFit(
        tuple(map(tuple, matrix.tolist())), information, scale, *agreement(fixed, matrix)
    )


def in_face(fit: HeadFit, points: Points, policy: FacePolicy) -> Mask:
    """Which points go.

    Args:
        fit: Of the scan.
        points: ``[n, 3]`` patient coordinates, LPS in mm.
        policy: ``crop`` or ``deface``.
    """
    matrix = np.array(fit.matrix)
    voxels = points @ matrix[:, :3].T + matrix[:, 3]
    if policy == "crop":
        return below_rim(voxels)
    mask = face_mask()
    nearest = np.rint(voxels).astype(int)
    inside = ((nearest >= 0) & (nearest < mask.shape)).all(axis=1)
    gone = np.zeros(len(points), dtype=bool)
    gone[inside] = mask[tuple(nearest[inside].T)]
    return gone


def _optimize(
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    transform: Any,
    *,
    shrink: list[int],
    sigmas: list[float],
    steps: int,
    length: float,
) -> float:
    """Mutual information after moving `transform`, in place; the same samples every time."""
    import SimpleITK

    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.3, seed=1)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(length, 1e-3, steps, 0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(sigmas)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    return -float(method.GetMetricValue())

"""Faces of heads: a whole-head template is laid over the scan, and what lies in its face goes.

The template and its face mask are pydeface's (MIT, inside its package). A similarity transform,
then an affine one, maximize Mattes' mutual information from the moments of both heads (SimpleITK),
so that the contrast does not matter. A fit that is not sure removes nothing: the scan is held back.

Two ways, in the template's voxels (x to the right, y to the front, z up):

* ``crop``: all below the orbital rim in front, and all below the skull base further back. Nothing
  of eyes, nose, mouth and jaw stays, and no surface that could be rendered. The planes were placed
  on the two head label maps of SynthSeg (eyes and orbital brain), mapped into the template.
* ``deface``: pydeface's own mask, which follows the face and leaves most of the eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError

if TYPE_CHECKING:
    import SimpleITK

FacePolicy = Literal["keep", "crop", "deface"]
MIN_INFORMATION = 0.62
"""Nats of mutual information that a fit must reach. Whole heads reach 0.65 to 0.80, a ball and a
head turned round 0.59, brains without skull 0.41, other regions 0.1 to 0.5."""
SCALES = (0.55, 1.7)
"""Volume of the head beside the template's."""
_FRONT, _RIM, _SLOPE, _RIM_TOP = 178.0, 102.7, 0.33, 122.0
_BACK, _BASE = 150.0, 78.0
_GRID_MM = 2.0

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeadFit:
    """Where a scan's points lie in the template.

    Args:
        matrix: ``[3, 4]``: patient coordinates (LPS, mm) to voxels of the template.
        information: Mutual information in nats.
        scale: Volume of the scan's head beside the template's.
    """

    matrix: tuple[tuple[float, ...], ...]
    information: float
    scale: float

    @property
    def sure(self) -> bool:
        """Whether faces may be removed by it."""
        return self.information >= MIN_INFORMATION and SCALES[0] <= self.scale <= SCALES[1]


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
    moving, _ = _template()
    try:
        fixed = _on_grid(image)
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
        return HeadFit(((0.0,) * 4,) * 3, 0.0, 0.0)
    linear = np.array(affine.GetMatrix()).reshape(3, 3)
    center = np.array(affine.GetCenter())
    offset = center + np.array(affine.GetTranslation()) - linear @ center
    to_voxels = np.linalg.inv(_directions(_full_template()))
    matrix = np.column_stack(
        (to_voxels @ linear, to_voxels @ (offset - np.array(_full_template().GetOrigin())))
    )
    scale = 1 / abs(float(np.linalg.det(linear)))
    return HeadFit(tuple(map(tuple, matrix.tolist())), information, scale)


def in_face(fit: HeadFit, points: Points, policy: FacePolicy) -> npt.NDArray[np.bool_]:
    """Which points go.

    Args:
        fit: Of the scan.
        points: ``[n, 3]`` patient coordinates, LPS in mm.
        policy: ``crop`` or ``deface``.
    """
    matrix = np.array(fit.matrix)
    voxels = points @ matrix[:, :3].T + matrix[:, 3]
    if policy == "crop":
        front, height = voxels[:, 1], voxels[:, 2]
        rim = np.minimum(_RIM + (front - _FRONT) * _SLOPE, _RIM_TOP)
        below_rim = (front >= _FRONT) & (height <= rim)
        return np.asarray(below_rim | ((front >= _BACK) & (height <= _BASE)))
    _, mask = _template()
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


def _on_grid(image: SimpleITK.Image) -> SimpleITK.Image:
    """Voxels of 2 mm, a little smoothed."""
    import SimpleITK

    spacing = image.GetSpacing()
    size = [max(1, round(n * s / _GRID_MM)) for n, s in zip(image.GetSize(), spacing, strict=True)]
    smooth = SimpleITK.SmoothingRecursiveGaussian(SimpleITK.Cast(image, SimpleITK.sitkFloat32), 1.0)
    return SimpleITK.Resample(
        smooth,
        size,
        SimpleITK.Transform(),
        SimpleITK.sitkLinear,
        image.GetOrigin(),
        [_GRID_MM] * 3,
        image.GetDirection(),
        0.0,
    )


def _directions(image: SimpleITK.Image) -> npt.NDArray[np.float64]:
    return np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())


@cache
def _template() -> tuple[Any, npt.NDArray[np.bool_]]:
    """The template on the coarse grid, and what its face mask takes away, ``[x, y, z]``."""
    import SimpleITK

    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(_data() / "facemask.nii.gz")))
    return _on_grid(_full_template()), np.asarray(mask.transpose(2, 1, 0) == 0)


@cache
def _full_template() -> Any:
    import SimpleITK

    return SimpleITK.ReadImage(str(_data() / "mean_reg2mean.nii.gz"), SimpleITK.sitkFloat32)


def _data() -> Path:
    """The folder of the package, found without importing it: it would import nipype."""
    from importlib.util import find_spec

    found = find_spec("pydeface")
    if found is None or found.origin is None:
        raise ConfigError(
            "CONFIG-06",
            "removing faces needs the template of the package pydeface.",
            fix='Install it with pip install "core-mri[deid]", or give --faces keep.',
        )
    return Path(found.origin).parent / "data"

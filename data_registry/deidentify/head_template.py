"""The whole-head template and its face mask, and where its face begins.

Both are pydeface's (MIT, inside its package), on a grid of 1 mm whose voxels run to the right,
front and up. The planes of the crop were placed on the two head label maps of SynthSeg (eyes and
orbital brain), mapped into the template.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError

if TYPE_CHECKING:
    import SimpleITK

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_FRONT, _RIM, _SLOPE, _RIM_TOP = 178.0, 102.7, 0.33, 122.0
_BACK, _BASE = 150.0, 78.0
_GRID_MM = 2.0


def below_rim(voxels: Points) -> Mask:
    """Which voxels of the template ``[n, 3]`` (right, front, up) the crop takes away."""
    front, height = voxels[:, 1], voxels[:, 2]
    rim = np.minimum(_RIM + (front - _FRONT) * _SLOPE, _RIM_TOP)
    below = (front >= _FRONT) & (height <= rim)
    return np.asarray(below | ((front >= _BACK) & (height <= _BASE)))


def on_grid(image: SimpleITK.Image) -> SimpleITK.Image:
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


def directions(image: SimpleITK.Image) -> npt.NDArray[np.float64]:
    """Columns: the step in mm from voxel to voxel along each axis."""
    return np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())


@cache
def coarse_template() -> Any:
    """The template on the coarse grid."""
    return on_grid(full_template())


@cache
def face_mask() -> Mask:
    """What pydeface's mask takes away of the template, ``[x, y, z]``."""
    import SimpleITK

    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(_data() / "facemask.nii.gz")))
    return np.asarray(mask.transpose(2, 1, 0) == 0)


@cache
def full_template() -> Any:
    """The template as pydeface ships it, 1 mm."""
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

"""Pictures of a head before and after its face went, for the eyes of those who may see it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_registry.deidentify.burned_in import display
from data_registry.deidentify.faces import HeadFit, in_face
from data_registry.deidentify.head_masks import grid_points, head_mask
from data_registry.deidentify.head_template import coarse_template, directions, full_template
from data_registry.deidentify.scope import FacePolicy

if TYPE_CHECKING:
    import SimpleITK

Gray = npt.NDArray[np.uint8]


def write_face_picture(
    image: SimpleITK.Image, fit: HeadFit, policy: FacePolicy, path: Path
) -> None:
    """Middle sagittal slice, surface from the front and from the side; before above, after below.

    Args:
        image: The scan.
        fit: Of the template to it.
        policy: ``crop`` or ``deface``.
        path: The PNG file; its folder is made, for its owner alone.
    """
    import SimpleITK
    from PIL import Image

    upright = _in_template(image, fit)
    array = SimpleITK.GetArrayFromImage(upright)
    here = grid_points(coarse_template())
    scan = _to_scan(here, fit)
    gone = in_face(fit, scan, policy).reshape(array.shape)
    head = head_mask(upright)
    after = np.where(gone, array.min(), array)
    rows = [
        np.concatenate([_slice(a), _surface(mask, 1), _surface(mask, 2)], axis=1)
        for a, mask in ((array, head), (after, head & ~gone))
    ]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def _in_template(image: SimpleITK.Image, fit: HeadFit) -> SimpleITK.Image:
    """The scan on the grid of the coarse template: to the right, front and up."""
    import SimpleITK

    linear, offset = _scan_of_points(fit)
    move = SimpleITK.AffineTransform(3)
    move.SetMatrix(linear.ravel().tolist())
    move.SetTranslation(offset.tolist())
    return SimpleITK.Resample(
        SimpleITK.Cast(image, SimpleITK.sitkFloat32), coarse_template(), move, SimpleITK.sitkLinear
    )


def _to_scan(points: npt.NDArray[np.float64], fit: HeadFit) -> npt.NDArray[np.float64]:
    linear, offset = _scan_of_points(fit)
    return points @ linear.T + offset


def _scan_of_points(fit: HeadFit) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The affine map from points of the template (mm) to points of the scan."""
    matrix, full = np.array(fit.matrix), full_template()
    inverse = np.linalg.inv(matrix[:, :3])
    linear = inverse @ np.linalg.inv(directions(full))
    return linear, -linear @ np.array(full.GetOrigin()) - inverse @ matrix[:, 3]


def _slice(array: npt.NDArray[Any]) -> Gray:
    """The middle sagittal slice, up is up."""
    return display(array[::-1, :, array.shape[2] // 2])


def _surface(mask: npt.NDArray[np.bool_], axis: int) -> Gray:
    """The head seen from the end of an axis ``[z, y, x]``, lit from there."""
    seen = np.flip(np.moveaxis(mask, axis, 0), (0, 1))
    depth = np.where(seen.any(axis=0), seen.argmax(axis=0), len(seen)).astype(np.float32)
    down, across = np.gradient(depth)
    light = 1 / np.sqrt(1 + down**2 + across**2)
    return np.asarray(np.where(seen.any(axis=0), 40 + 215 * light, 0), dtype=np.uint8)

"""`Volume`: voxels, where they lie in the patient, and what the header said about them.

One convention, settled here and nowhere else: ``affine @ (i, j, k, 1)`` is a point in **RAS+
millimetres** (x grows towards the patient's Right, y towards Anterior, z towards Superior), as in
NIfTI. DICOM writes LPS+, which differs by the sign of x and y; `core_mri.files.dicom` converts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from core_mri.errors import GeometryError

Plane = Literal["axial", "coronal", "sagittal"]
FactValue = str | int | float | bool | tuple[float, ...]

SLICE_ORIENTATION: dict[Plane, str] = {
    "axial": "SPL",
    "coronal": "AIL",
    "sagittal": "LIP",
}
"""Axis codes of ``[slice, row, column]`` for display: each letter is where the index grows to.

Radiological convention: on axial and coronal slices the patient's right is on the left of the
picture; on sagittal slices anterior is on the left.
"""

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TIE_BREAK = np.array([[1, -1e-6, 2e-6], [1e-6, 1, -3e-6], [-2e-6, 3e-6, 1]])
"""A rotation by some 4e-6 rad, so that a volume tilted by exactly 45 degrees has one orientation
whatever the order of its axes; far below what any scanner states, far above rounding."""
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
_POSITIVE = "RAS"


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or label map with its geometry.

    Args:
        array: Voxels, shape ``(I, J, K)`` or ``(I, J, K, T)``.
        affine: Float64 ``(4, 4)``, voxel index to RAS+ millimetres.
        kind: ``"image"`` (intensities) or ``"label"`` (integer classes, never interpolated).
        facts: Header facts worth keeping, by DICOM keyword where one exists (``"EchoTime"`` in ms,
            ``"Modality"``, ...). Straight from a file they may identify a person.

    Raises:
        GeometryError: GEOMETRY-01 when the affine is singular or not finite, GEOMETRY-02 when the
            array has not three or four dimensions or has an empty one.
    """

    array: npt.NDArray[np.generic]
    affine: npt.NDArray[np.float64]
    kind: Literal["image", "label"] = "image"
    facts: Mapping[str, FactValue] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(
                "GEOMETRY-01",
                f"the affine must be a finite 4x4 matrix, got {affine.tolist()}.",
            )
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if (spacing <= 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
            raise GeometryError(
                "GEOMETRY-01",
                f"voxel spacing must be positive along three independent axes, got "
                f"{tuple(round(float(s), 6) for s in spacing)} mm.",
            )
        if self.array.ndim not in (3, 4) or 0 in self.array.shape:
            raise GeometryError(
                "GEOMETRY-02",
                f"a volume has 3 or 4 non-empty dimensions, got shape {self.array.shape}.",
            )
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "facts", MappingProxyType(dict(self.facts)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k in millimetres."""
        x, y, z = (float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def affine_lps(self) -> npt.NDArray[np.float64]:
        """The affine to LPS+ millimetres, DICOM's patient coordinates."""
        return _LPS_FROM_RAS @ self.affine

    @property
    def orientation(self) -> str:
        """Three letters of ``RLAPSI``: where each voxel axis points to, to the nearest axis.

        The assignment of axes is the one that maximises the product of direction cosines, so every
        patient axis is used exactly once even for strongly oblique volumes.
        """
        return orientation_of(self.affine)

    @property
    def plane(self) -> Plane:
        """The plane of acquisition: across the only slice, else the axis of largest spacing.

        Axial when spacing is isotropic (within 20 %).
        """
        spacing = np.asarray(self.spacing_mm)
        codes = self.orientation
        single = [axis for axis in range(3) if self.array.shape[axis] == 1]
        across = single[0] if len(single) == 1 else int(np.argmax(spacing))
        if not single and spacing[across] < 1.2 * np.median(spacing):
            return "axial"
        by_axis: dict[str, Plane] = {"S": "axial", "A": "coronal", "R": "sagittal"}
        code = codes[across]
        return by_axis[code if code in by_axis else _OPPOSITE[code]]

    def reorient(self, codes: str) -> Volume:
        """Permute and flip axes so that they point to `codes`; exact, nothing is interpolated.

        ``volume.reorient("SPL").reorient(volume.orientation)`` is the volume again.

        Args:
            codes: Three letters, one of each pair R/L, A/P, S/I, such as ``"RAS"`` or a value of
                :data:`SLICE_ORIENTATION`.

        Raises:
            GeometryError: GEOMETRY-03 when `codes` is not such a triple.
        """
        if sorted(_axis(c) for c in codes) != [0, 1, 2]:
            raise GeometryError(
                "GEOMETRY-03",
                f"orientation must name each patient axis once, got {codes!r}.",
                fix="Use three letters such as 'RAS' or 'SPL'.",
            )
        own = self.orientation
        order = [next(i for i, c in enumerate(own) if _axis(c) == _axis(code)) for code in codes]
        array = np.transpose(self.array, (*order, *range(3, self.array.ndim)))
        affine = self.affine[:, [*order, 3]].copy()
        for axis, code in enumerate(codes):
            if own[order[axis]] != code:
                array = np.flip(array, axis)
                affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
                affine[:3, axis] *= -1
        return replace(self, array=array, affine=affine)

    def with_array(self, array: npt.NDArray[np.generic], **changes: object) -> Volume:
        """The same geometry with other voxels (and other fields, such as ``kind="label"``).

        Raises:
            GeometryError: GEOMETRY-03 when the first three dimensions differ.
        """
        if array.shape[:3] != self.array.shape[:3]:
            raise GeometryError(
                "GEOMETRY-03",
                f"expected voxels of shape {self.array.shape[:3]}, got {array.shape}.",
            )
        return replace(self, array=array, **changes)  # type: ignore[arg-type]

    def same_grid(self, other: Volume, tolerance_mm: float = 1e-2) -> bool:
        """Whether both volumes have the same voxels: shape, and corners within `tolerance_mm`."""
        if self.array.shape[:3] != other.array.shape[:3]:
            return False
        corners = np.array(
            [(i, j, k, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1)],
            dtype=np.float64,
        ) * [*self.array.shape[:3], 1]
        return bool(np.abs(corners @ (self.affine - other.affine).T).max() <= tolerance_mm)

    def __reduce__(self) -> tuple[object, ...]:
        # The read-only view of the facts cannot be pickled, its content can.
        return Volume, (self.array, self.affine, self.kind, dict(self.facts))

    def __repr__(self) -> str:
        spacing = "x".join(f"{s:.3g}" for s in self.spacing_mm)
        shape = "x".join(str(n) for n in self.array.shape)
        return f"Volume({shape} {self.array.dtype} {self.kind}, {spacing} mm, {self.orientation})"


def orientation_of(affine: npt.NDArray[np.float64]) -> str:
    """Axis codes of an affine (index to RAS+ mm); see :attr:`Volume.orientation`."""
    cosines = _TIE_BREAK @ (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    best = max(orders, key=lambda order: abs(np.prod([cosines[order[a], a] for a in range(3)])))
    return "".join(
        _POSITIVE[best[a]] if cosines[best[a], a] >= 0 else _OPPOSITE[_POSITIVE[best[a]]]
        for a in range(3)
    )


def _axis(code: str) -> int:
    return {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}.get(code, -1)

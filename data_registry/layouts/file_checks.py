"""The files of a labelled data set against its list: grids, sequences, label values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError, GeometryError
from data_registry.layouts.labelled_set import Case, LabelledSet, broken, some

_SAME_MM = 1e-2
"""As `Registry.labels_of`: corners of one grid, read from two files."""
Grid = tuple[tuple[int, ...], npt.NDArray[np.float64]]
"""Shape with frames, and affine."""


def check_files(
    data: LabelledSet, on_progress: Callable[[int, int], None] | None = None
) -> tuple[str, ...]:
    """Read the headers of all images and the voxels of all label maps; nothing is changed.

    Args:
        data: The data set.
        on_progress: Called with cases done and cases in all.

    Returns:
        Sentences on what is allowed but worth knowing, such as a structure that no map shows.

    Raises:
        GeometryError: GEOMETRY-03 when images or label map of a case lie on different grids.
        DataError: DATA-06 for label values that the list does not name, DATA-27 when all label maps
            are empty, DATA-29 when a file has more or fewer frames than sequences are named, and
            what `core_mri.read_volume` raises.
    """
    values: dict[str, frozenset[int]] = {}
    for done, case in enumerate(data.cases, start=1):
        _check_grids(data, case)
        if case.label and case.label not in values:
            values[case.label] = _values(data.root / case.label)
        if on_progress is not None:
            on_progress(done, len(data.cases))
    return _check_values(data, values)


def _check_grids(data: LabelledSet, case: Case) -> None:
    first = data.root / case.images[0]
    grids = [(path, grid_of(data.root / path)) for path in case.images]
    shape, affine = grids[0][1]
    named = max(1, len(data.channels))
    per_file = named if len(case.images) == 1 else 1
    for path, grid in grids:
        if _frames(grid) != per_file:
            raise DataError(
                "DATA-29",
                f"{data.root / path}: {_frames(grid)} frame(s), and the list names "
                f"{', '.join(data.channels) or 'one sequence'}.",
                fix="Correct the names of the sequences, or the file.",
            )
    if case.label:
        grids.append((case.label, grid_of(data.root / case.label)))
    for path, other in grids[1:]:
        corners = np.abs(_corners((shape, affine)) - _corners(other)).max()
        if other[0][:3] != shape[:3] or corners > _SAME_MM:
            moved = "" if other[0][:3] != shape[:3] else f", its corners {corners:.3g} mm apart"
            raise GeometryError(
                "GEOMETRY-03",
                f"{data.root / path} lies on another grid ({_size(other)}) than {first} "
                f"({_size((shape, affine))}){moved}.",
                fix="Resample it to the grid of the image (label maps by nearest neighbor).",
            )


def _check_values(data: LabelledSet, values: dict[str, frozenset[int]]) -> tuple[str, ...]:
    allowed = {0, *data.label_names}
    if data.label_names:
        foreign = {path: found - allowed for path, found in values.items() if found - allowed}
        if foreign:
            path = min(foreign)
            names = ", ".join(f"{v} {n}" for v, n in data.label_names.items())
            raise DataError(
                "DATA-06",
                f"{data.root / path}: holds {sorted(foreign[path])}, allowed are 0 and {names}; "
                f"{len(foreign)} such label map(s): {some(foreign)}.",
                fix="Add the values to the labels of the list, or correct the label maps.",
            )
    seen = frozenset[int]().union(*values.values()) - {0}
    if values and not seen:
        raise broken(
            data.listing,
            f"all {len(values)} label maps are empty, such as {data.root / min(values)}",
            "Check that these are the label maps.",
        )
    lines = []
    if absent := [name for value, name in data.label_names.items() if value not in seen]:
        lines.append(f"no label map shows {', '.join(absent)}: tasks cannot ask for it.")
    if empty := [path for path, found in values.items() if not found - {0}]:
        lines.append(f"{len(empty)} of {len(values)} label maps are empty, which is allowed.")
    if not data.label_names and values:
        lines.append(f"values in the label maps: {', '.join(map(str, sorted(seen)[:20]))}.")
    return tuple(lines)


def grid_of(path: Path) -> Grid:
    """Shape and affine of an image file, without its voxels where the format allows.

    Raises:
        DataError: As `core_mri.read_volume`; DATA-02 when a header cannot be read.
    """
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            import nibabel

            header: Any = nibabel.load(path)
            return _without_ones(header.shape), np.asarray(header.affine, dtype=np.float64)
        if name.endswith((".mha", ".mhd", ".nrrd", ".nhdr")):
            return _itk_grid(path)
    except Exception as error:  # header readers raise nearly anything on damaged bytes
        raise DataError(
            "DATA-02", f"{path}: its header cannot be read ({type(error).__name__})."
        ) from None
    from core_mri.files.scans import read_volume

    volume = read_volume(path, spacing_mm=(1.0, 1.0, 1.0))
    return volume.shape, volume.affine


def _itk_grid(path: Path) -> Grid:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = len(reader.GetSize())
    spacing = np.ones(3)
    spacing[:size] = reader.GetSpacing()[:3]
    affine = np.eye(4)
    directions = np.reshape(reader.GetDirection(), (size, size))
    if size >= 3:
        affine[:3, :3] = directions[:3, :3] * spacing
        affine[:3, 3] = reader.GetOrigin()[:3]
    shape = (*reader.GetSize(), *([reader.GetNumberOfComponents()] if size == 3 else []))
    return _without_ones(shape), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _values(path: Path) -> frozenset[int]:
    from core_mri.files.scans import read_volume

    array = read_volume(path, kind="label", spacing_mm=(1.0, 1.0, 1.0)).array
    return frozenset(int(value) for value in np.unique(array))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Three axes, and a fourth where it is more than one frame."""
    shape = (*map(int, shape), 1, 1)[: max(3, len(shape))]
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _frames(grid: Grid) -> int:
    return int(np.prod(grid[0][3:], dtype=int))


def _size(grid: Grid) -> str:
    return "x".join(map(str, grid[0][:3]))


def _corners(grid: Grid) -> npt.NDArray[np.float64]:
    shape, affine = grid
    size = np.array([*shape[:3], 1.0])
    ends = np.array([(i, j, k, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * size
    return np.asarray(ends @ affine.T)

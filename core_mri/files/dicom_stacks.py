"""Frames of one or more series to stacks: parallel slices that form one regular volume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core_mri.errors import GeometryError
from core_mri.files.dicom_frames import Frame

log = logging.getLogger(__name__)

SAME_POSITION_MM = 0.01
"""Two slices nearer than this along the normal lie at the same position."""
RELATIVE_TOLERANCE = 0.02
"""How far a slice may lie from its place in a regular stack, relative to the slice distance; old
scanners round positions to 0.1 mm, which is 1 % of their 7 mm ..."""
ABSOLUTE_TOLERANCE_MM = 0.02
"""... or in mm, whichever is more: headers with two decimals are off by up to 0.01 mm."""


@dataclass(frozen=True)
class Stack:
    """Parallel slices at equal distances, in the order of their positions along the normal."""

    frames: tuple[Frame, ...]
    affine: npt.NDArray[np.float64]
    """``(4, 4)``, (column, row, slice) index to RAS+ mm."""


def find_stacks(
    frames: Iterable[Frame],
) -> tuple[list[Stack], list[tuple[list[Frame], GeometryError]]]:
    """Group frames into stacks; groups that form none come back with the reason.

    Frames of one patient and series with equal matrix, orientation and pixel spacing belong
    together. Where several share a position they are told apart by what their headers say (image
    type, echo time, b-value, time, ...), at last by their order when every position has equally
    many.
    """
    stacks: list[Stack] = []
    irregular: list[tuple[list[Frame], GeometryError]] = []
    for group in _parallel_groups(frames):
        for part in _separate_repeats(group):
            try:
                stacks.extend(_regular(part))
            except GeometryError as error:
                irregular.append((part, error))
    return stacks, irregular


def _parallel_groups(frames: Iterable[Frame]) -> list[list[Frame]]:
    by_series: dict[Hashable, list[list[Frame]]] = {}
    for frame in frames:
        # Two patients under one series UID (a careless anonymizer) never become one volume.
        patient = frame.facts.get("PatientID", "")
        key = (frame.series_uid, patient, frame.rows, frame.columns)
        groups = by_series.setdefault(key, [])
        # Compared with the first of each group, not rounded: no boundary can split a stack.
        for group in groups:
            if _parallel(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return [group for groups in by_series.values() for group in groups]


def _parallel(a: Frame, b: Frame) -> bool:
    same_axes = np.allclose(
        (*a.row_direction, *a.column_direction),
        (*b.row_direction, *b.column_direction),
        rtol=0,
        atol=1e-3,
    )
    return same_axes and np.allclose(
        (a.row_spacing, a.column_spacing), (b.row_spacing, b.column_spacing), rtol=1e-3, atol=0
    )


def _normal(frame: Frame) -> npt.NDArray[np.float64]:
    normal: npt.NDArray[np.float64] = np.cross(frame.row_direction, frame.column_direction)
    return normal / np.linalg.norm(normal)


def _by_position(frames: list[Frame]) -> list[list[Frame]]:
    """Frames that share a position along the normal, in the order of the positions."""
    depths = np.array([frame.position for frame in frames]) @ _normal(frames[0])
    order = np.argsort(depths, kind="stable")
    new = np.diff(depths[order], prepend=-np.inf) > SAME_POSITION_MM
    places: list[list[Frame]] = []
    for index, starts in zip(order, new, strict=True):
        if starts:
            places.append([])
        places[-1].append(frames[index])
    return places


def _num_repeats(frames: list[Frame]) -> int:
    return max(len(place) for place in _by_position(frames))


def _split_by(frames: list[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    parts: dict[Hashable, list[Frame]] = {}
    for frame in frames:
        parts.setdefault(key(frame), []).append(frame)
    return list(parts.values())


def _separate_repeats(frames: list[Frame]) -> list[list[Frame]]:
    parts = [frames]
    for number in range(len(frames[0].traits)):
        refined = []
        for part in parts:
            groups = _split_by(part, lambda frame, n=number: frame.traits[n])  # type: ignore[misc]
            # More values than images at a position: it varies within a volume and tells nothing.
            accepted = 1 < len(groups) <= _num_repeats(part)
            refined.extend(groups if accepted else [part])
        parts = refined
    return [volume for part in parts for volume in _separate_by_order(part)]


def _separate_by_order(frames: list[Frame]) -> list[list[Frame]]:
    places = _by_position(frames)
    repeats = {len(place) for place in places}
    if repeats == {1} or len(repeats) > 1:
        return [frames]
    log.info("%d volumes of a series are told apart by instance number only", max(repeats))
    ordered = [sorted(place, key=lambda f: (f.instance, str(f.path), f.index)) for place in places]
    return [list(volume) for volume in zip(*ordered, strict=True)]


def _regular(frames: list[Frame]) -> list[Stack]:
    """One stack, or several where the headers name stacks that are regular one by one."""
    try:
        return [_stack(frames)]
    except GeometryError:
        parts = _split_by(frames, lambda frame: dict(frame.traits)["stack"])
        if len(parts) == 1 or min(len(part) for part in parts) < 2:
            raise
        return [_stack(part) for part in parts]


def _stack(frames: list[Frame]) -> Stack:
    places = _by_position(frames)
    if any(len(place) > 1 for place in places):
        counts = sorted({len(place) for place in places})
        raise GeometryError(
            "GEOMETRY-02",
            f"{_name(frames)}: positions are repeated unequally ({counts[0]} to {counts[-1]} images"
            " at a position) and nothing in the headers tells the volumes apart.",
        )
    ordered = [place[0] for place in places]
    first = ordered[0]
    normal = _normal(first)
    positions = np.array([frame.position for frame in ordered])
    if len(ordered) == 1:
        if first.thickness <= 0:
            raise GeometryError(
                "GEOMETRY-01",
                f"{_name(frames)}: a single slice that states neither slice thickness nor spacing "
                "between slices.",
            )
        step = normal * first.thickness
    else:
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)
        _check_regular(frames, positions, step, normal)
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.row_direction) * first.column_spacing
    lps[:3, 1] = np.array(first.column_direction) * first.row_spacing
    lps[:3, 2] = step
    lps[:3, 3] = first.position
    return Stack(tuple(ordered), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)


def _check_regular(
    frames: list[Frame],
    positions: npt.NDArray[np.float64],
    step: npt.NDArray[np.float64],
    normal: npt.NDArray[np.float64],
) -> None:
    """GEOMETRY-02 unless every slice lies where the line from the first to the last puts it."""
    spacing = float(step @ normal)
    tolerance = max(RELATIVE_TOLERANCE * spacing, ABSOLUTE_TOLERANCE_MM)
    places = positions[0] + np.arange(len(positions))[:, None] * step
    offset = float(np.linalg.norm(positions - places, axis=1).max())
    if offset <= tolerance:
        return
    depths = positions @ normal
    gaps = np.diff(depths)
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > max(RELATIVE_TOLERANCE * usual, tolerance))
    if not len(odd):
        raise GeometryError(
            "GEOMETRY-02",
            f"{_name(frames)}: {len(frames)} slices do not lie on a straight line, they are off it "
            f"by up to {offset:.2f} mm.",
        )
    shown = ", ".join(
        f"{gaps[i]:.2f} mm between {depths[i]:.2f} and {depths[i + 1]:.2f} mm" for i in odd[:3]
    )
    raise GeometryError(
        "GEOMETRY-02",
        f"{_name(frames)}: {len(frames)} slices mostly {usual:.2f} mm apart, but {shown}"
        f"{' and more' if len(odd) > 3 else ''}.",
        fix="Add the missing slices or leave the series out.",
    )


def _name(frames: list[Frame]) -> str:
    """A series is named by its first file, never by what its header says."""
    return f"the series of {min(frame.path for frame in frames)}"

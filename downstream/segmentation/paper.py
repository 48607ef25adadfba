"""MRI-CORE's published few-shot protocol, for comparison with its numbers and with nothing else.

Source: the figures and the released code of MRI-CORE (arXiv:2506.12186; mazurowski-lab/
mri_foundation, commit 0f4f452). `DIFFERENCES` says where it leaves our protocol, `LEFT_OUT` what of
it is not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.metrics import dice, surface_dice
from core_mri.slice_grid import mask_to_square
from downstream.segmentation.data import Pair, Shot
from downstream.segmentation.scores import Measured

SIDE = 256
"""Pixels of the square on which masks are compared."""
TOLERANCE = 1.0
"""Pixels."""
NAME = "paper mode, not comparable"
PAPER_ENDING = " (paper mode)"
"""Of the name of a method."""

DIFFERENCES = (
    "Every draw takes the same k patients, the first ones in the order of the list (here: of their "
    "ids), and one random slice of each that shows a structure; ours draws patients too.",
    "Validation examples are chosen the same way.",
    "Test slices that do not show a structure are left out, so a false mask on them costs nothing; "
    "ours scores whole volumes.",
    "Masks are compared on a square of 256 x 256 pixels; ours on the stored grid.",
    "Surfaces are measured in voxels, the gap between slices counting as one, at a tolerance of 1; "
    "ours in mm with the spacing of the scan.",
    "No HD95, no intervals and no tests were published; those given here are ours.",
)
LEFT_OUT = (
    "Recipe: adapters on a 1024-pixel SAM, 9000 steps of batches of 2; here the suite's own.",
    "Slices keep the window of their volume; theirs are scaled to their own minimum and maximum.",
    "Slices are padded to squares; theirs are stretched.",
    "Structures are learned and scored one by one; theirs are merged into one.",
    "dice_2d is the mean over slices; theirs is over batches of 2 slices.",
)


def paper_shots(
    pairs: Sequence[Pair],
    k: int,
    *,
    seed: int,
    draw: int,
    foreground: Callable[[Pair], Sequence[int]],
    fewer: bool = False,
) -> list[Shot]:
    """One slice of each of the first k patients; a draw changes the slices alone.

    Args:
        pairs: Labelled volumes of one split.
        k: How many patients.
        seed: Seed of the run.
        draw: Number of the draw.
        foreground: The slices of a volume that show any structure.
        fewer: Return all there are when there are fewer than k.

    Raises:
        DataError: DATA-09 when fewer than k patients show a structure and `fewer` is not set.
    """
    rng = np.random.default_rng((seed, draw))
    by_patient: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_patient.setdefault(pair.image.subject_id, []).append(pair)
    shots: list[Shot] = []
    for _, own in sorted(by_patient.items()):
        found = [(pair, index) for pair in own for index in foreground(pair)]
        if found and len(shots) < k:
            pair, index = found[int(rng.integers(len(found)))]
            shots.append(Shot(pair, (index,)))
    if len(shots) < k and not fewer:
        raise DataError(
            "DATA-09",
            f"paper mode takes a slice of each of {k} patients, and {len(shots)} patients of the "
            "split show a structure.",
            fix="Lower k, or ingest more labelled scans.",
        )
    return shots


def paper_measure(
    reference: npt.NDArray[np.uint8], estimate: npt.NDArray[np.uint8], structures: Sequence[str]
) -> Iterator[Measured]:
    """``dice``, ``nsd`` and ``dice_2d`` of the slices that show a structure, one by one.

    Args:
        reference: Class indices ``[S, H, W]``.
        estimate: The same of the model.
        structures: Names of the classes from 1 on.
    """
    squares = [mask_to_square(classes, SIDE).numpy() for classes in (reference, estimate)]
    for index, name in enumerate(structures, start=1):
        shown = (reference == index).any(axis=(1, 2))
        if not shown.any():
            continue
        ours, theirs = (square[shown] == index for square in squares)
        pixels = (1.0,) * ours.squeeze().ndim
        agreement = surface_dice(
            ours.squeeze(), theirs.squeeze(), spacing_mm=pixels, tolerance_mm=TOLERANCE
        )
        by_slice = [dice(a, b) for a, b in zip(ours, theirs, strict=True)]
        yield Measured(name, "dice", dice(ours, theirs), "1")
        yield Measured(name, "nsd", agreement, "1")
        yield Measured(name, "dice_2d", float(np.mean(by_slice)), "1")

"""Synthetic pairs that a few-shot cell may train on: those made from its own patients alone.

A pair made from a patient who is not among the k would bring that patient's labels in by the back
door, and five labelled volumes would be six.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError, DataError
from downstream.segmentation.data import Pairs, Shot

if TYPE_CHECKING:
    from downstream.evaluation.cells import Cell


def generated_shots(cell: Cell, pairs: Pairs, shots: Sequence[Shot]) -> list[Shot]:
    """Synthetic pairs that were made from the patients of a draw, where the recipe wants some.

    Raises:
        ConfigError: CONFIG-05 when a patient of the draw has labelled volumes outside of it.
        DataError: DATA-09 when there is none.
    """
    if not cell.recipe.synthetic_share:
        return []
    patients = {shot.pair.image.subject_id for shot in shots}
    if sum(pair.image.subject_id in patients for pair in pairs.train) > len(shots):
        raise ConfigError(
            "CONFIG-05",
            f"task {cell.task.name}: patients of this draw have further labelled volumes, and "
            "generated pairs may be made from those.",
            fix="Set recipe.shots_unit to patients.",
        )
    found = pairs.generated_from(patients)
    if not found:
        raise DataError(
            "DATA-09",
            f"task {cell.task.name}: none of {len(pairs.generated)} generated pairs was made from "
            f"the {len(patients)} patients of this draw alone.",
            fix="Make some with `core-mri synthesize sample`, or set recipe.synthetic_share to 0.",
        )
    return [Shot(pair, None) for pair in found]


def generated_note(cell: Cell, generated: Sequence[Shot]) -> list[str]:
    """What a reader should know of them."""
    if not generated:
        return []
    share = cell.recipe.synthetic_share
    return [
        f"{share:.0%} of each batch from {len(generated)} synthetic volumes of the same patients"
    ]

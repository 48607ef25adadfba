"""The worst, the median and the best test volume of a cell, as one slice each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core_mri.runs import writing
from downstream.evaluation.results import Case
from downstream.segmentation.predict import Prediction

Slices = npt.NDArray[np.float32]
"""[3, H, W]: image in [0, 1], reference and estimate as class indices."""


def picture(prediction: Prediction) -> tuple[Case, Slices]:
    """The slice that shows most of the structures: [3, H, W] image, reference, estimate."""
    shown = prediction.reference if prediction.reference.any() else prediction.estimate
    index = int(np.count_nonzero(shown, axis=(1, 2)).argmax())
    row = prediction.pair.image
    case = Case(
        rank="",
        patient=row.subject_id,
        dice=prediction.mean,
        slice_index=index,
        plane=row.plane,
        spacing_mm=(row.spacing_mm[1], row.spacing_mm[2]),
        synthetic=row.synthetic,
    )
    parts = (prediction.image, prediction.reference, prediction.estimate)
    return case, np.stack([part[index].astype(np.float32) for part in parts])


def save_cases(pictures: Sequence[tuple[Case, Slices]], folder: Path, key: str) -> tuple[Case, ...]:
    """Worst, median and best volume by mean Dice; arrays under their rank in ``KEY.npz``."""
    order = sorted(pictures, key=lambda item: (item[0].dice, item[0].patient))
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    ranked = {"worst": chosen["worst"]}
    if len(order) > 2:
        ranked["median"] = chosen["median"]
    if len(order) > 1:
        ranked["best"] = chosen["best"]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{key}.partial.npz"
        arrays = {rank: array for rank, (_, array) in ranked.items()}
        np.savez_compressed(aside, allow_pickle=False, **arrays)
        aside.replace(folder / f"{key}.npz")
    return tuple(Case(**{**vars(case), "rank": rank}) for rank, (case, _) in ranked.items())


def load_case(folders: Sequence[Path], key: str, rank: str) -> Slices | None:
    """The picture that `save_cases` wrote to one of the folders; None when it is missing."""
    found = [path for folder in folders if (path := folder / f"{key}.npz").is_file()]
    if not found:
        return None
    with np.load(found[0]) as arrays:
        slices: Slices = arrays[rank]
    return slices

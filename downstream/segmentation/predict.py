"""Whole-volume masks on the stored grid, and their scores per patient and structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.metrics import dice
from core_mri.models.segmenter import Segmenter
from core_mri.slice_inference import segment_slices
from core_mri.volume import Volume
from downstream.segmentation.data import Pair, read_mask
from downstream.segmentation.sequences import read_channels

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from downstream.config import Task

BATCH = 32
"""Slices per forward pass; their logits are the memory peak."""


@dataclass(frozen=True)
class Prediction:
    """A test volume with its reference and estimate on the stored grid."""

    pair: Pair
    image: npt.NDArray[np.float32]
    """[S, H, W] in [0, 1], the first sequence."""
    reference: npt.NDArray[np.uint8]
    """[S, H, W] class indices."""
    estimate: npt.NDArray[np.uint8]
    """[S, H, W] class indices."""
    scores: dict[str, float]
    """Structure to Dice over the whole volume; 1 when absent from both, 0 when absent from one."""

    @property
    def mean(self) -> float:
        """Mean Dice over the structures."""
        return float(np.mean(list(self.scores.values())))


def predict_pairs(
    segmenter: Segmenter, registry: Registry, pairs: Sequence[Pair], task: Task
) -> Iterator[Prediction]:
    """Predict and score volumes one by one; nothing of the earlier ones is kept."""
    for pair in pairs:
        channels = read_channels(registry, pair.images)
        reference = read_mask(registry, pair, task)
        spacing = pair.image.spacing_mm
        estimate = segment_slices(segmenter, channels, spacing, batch_size=BATCH)
        yield predicted(pair, channels[0], reference, estimate, task)


def predicted(
    pair: Pair,
    image: npt.NDArray[np.float32],
    reference: npt.NDArray[np.uint8],
    estimate: npt.NDArray[np.uint8],
    task: Task,
) -> Prediction:
    """A volume with the Dice of every structure of the task; arrays [S, H, W]."""
    scores = {
        name: dice(reference == index, estimate == index)
        for index, name in enumerate(task.labels, start=1)
    }
    return Prediction(pair, image, reference, estimate, scores)


def write_prediction(prediction: Prediction, task: Task, folder: Path) -> None:
    """The mask with the values of `task.labels`, on the stored grid."""
    from core_mri.files import write_volume

    values = [0, *task.labels.values()]
    lookup = np.array(values, dtype=np.min_scalar_type(max(values)))
    row = prediction.pair.image
    mask = Volume(lookup[prediction.estimate], np.array(row.affine).reshape(4, 4), kind="label")
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(mask, folder / f"{row.volume_id}.nii.gz")

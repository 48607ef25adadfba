"""Classes of volumes from frozen features: linear probe and k nearest neighbours."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core_mri.errors import DataError
from core_mri.metrics import balanced_accuracy
from core_mri.models.encoder import Encoder
from core_mri.slice_grid import image_to_square
from core_mri.training.probes import knn_probe, linear_probe
from downstream.cohort import Cohort, read_image, subjects

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow
    from downstream.config import Task

log = logging.getLogger(__name__)

BATCH = 64
"""Slices encoded at once."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""L2 penalties of the linear probe, chosen among by validation patients."""
DEFAULT_PENALTY = 1e-2
METHODS = ("linear probe", "knn")


@dataclass(frozen=True)
class LabelledVolumes:
    """Volumes of the classes that can be learned and tested, and those left out."""

    classes: tuple[str, ...]
    train: tuple[VolumeRow, ...]
    val: tuple[VolumeRow, ...]
    test: tuple[VolumeRow, ...]
    left_out: dict[str, int]
    """Class to number of volumes, for classes that are not in both training and test split."""


@dataclass(frozen=True)
class ProbeResult:
    """Class probabilities of the test volumes."""

    method: str
    scores: Tensor
    """[M, C], rows in the order of the test volumes."""
    note: str
    """How the classifier was chosen."""


def labelled_volumes(cohort: Cohort, task: Task) -> LabelledVolumes:
    """Volumes whose class occurs in the training and in the test split; ``unknown`` is no class.

    Raises:
        DataError: DATA-09 with the counts when fewer than two classes remain.
    """

    def class_of(row: VolumeRow) -> str:
        return str(getattr(row, task.target))

    in_train, in_test = (
        {class_of(row) for row in rows} - {"", "unknown"} for rows in (cohort.train, cohort.test)
    )
    classes = tuple(sorted(in_train & in_test))
    left_out: dict[str, int] = {}
    for row in cohort.rows:
        if class_of(row) not in classes:
            left_out[class_of(row)] = left_out.get(class_of(row), 0) + 1
    if len(classes) < 2:
        raise DataError(
            "DATA-09",
            f"task {task.name}: {len(classes)} classes of {task.target} have training and test "
            f"volumes, 2 are needed; training patients {len(subjects(cohort.train))} with "
            f"{sorted(in_train)}, test patients {len(subjects(cohort.test))} with "
            f"{sorted(in_test)}.",
            fix="Widen `where`, or ingest scans of more patients.",
        )
    if left_out:
        log.warning("task %s: volumes left out by class: %s", task.name, left_out)
    train, val, test = (
        tuple(row for row in rows if class_of(row) in classes)
        for rows in (cohort.train, cohort.val, cohort.test)
    )
    return LabelledVolumes(classes, train, val, test, left_out)


@torch.no_grad()
def volume_features(
    encoder: Encoder, registry: Registry, rows: Sequence[VolumeRow], image_size: int
) -> Tensor:
    """[N, D]: the class token averaged over all slices of each volume, on the CPU."""
    device = encoder.mask_token.device
    features = [torch.zeros(0, encoder.embed_dim)]
    for row in rows:
        images = image_to_square(read_image(registry, row), image_size)
        tokens = [encoder(batch.to(device)).cls.cpu() for batch in torch.split(images, BATCH)]
        features.append(torch.cat(tokens).mean(0, keepdim=True))
    return torch.cat(features)


def class_indices(rows: Sequence[VolumeRow], task: Task, classes: Sequence[str]) -> Tensor:
    """[N] int64, position in `classes`."""
    return torch.tensor([classes.index(str(getattr(row, task.target))) for row in rows]).long()


def probe(
    method: str,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test_x: Tensor,
) -> ProbeResult:
    """Fit `method` on (features, classes) of training volumes and score test volumes.

    The penalty of the linear probe is the one with the best balanced accuracy on the validation
    volumes, the larger one at a tie, and `DEFAULT_PENALTY` without any. knn has nothing to choose.
    """
    if method == "knn":
        k = min(10, len(train[1]))
        return ProbeResult(method, knn_probe(*train, test_x, k=k), f"{k} neighbours")
    if not len(val[1]):
        chosen = DEFAULT_PENALTY
        note = f"penalty {chosen:g}, as there is no validation volume"
    else:
        quality = {
            l2: balanced_accuracy(
                val[1].numpy(), linear_probe(*train, val[0], l2=l2).argmax(1).numpy()
            )
            for l2 in PENALTIES
        }
        chosen = max(PENALTIES, key=lambda l2: (quality[l2], l2))
        note = f"penalty {chosen:g}, chosen on {len(val[1])} validation volumes"
    return ProbeResult(method, linear_probe(*train, test_x, l2=chosen), note)

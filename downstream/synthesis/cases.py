"""Labelled training patients as whole anatomies: structures, and tissues where none is named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.volume import Volume
from downstream.cohort import load_cohort
from downstream.segmentation.data import Pair, draw_shots, name_labels, pair_labels, read_mask
from downstream.segmentation.sequences import read_channels

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow
    from downstream.config import Task
    from downstream.synthesis.config import Anatomy

TISSUE = "tissue {}"
_MOST_VOXELS = 20_000
"""Drawn for the division into tissues."""


@dataclass(frozen=True, eq=False)
class Case:
    """One labelled scan, or label map, of a training patient."""

    subject: str
    """Pseudonym of the patient."""
    label_volume: str
    """Id of the label volume."""
    channels: npt.NDArray[np.float32]
    """[Q, S, H, W] in [0, 1]; Q is 0 for a label map without a scan."""
    labels: Volume
    """[S, H, W] uint8: 0, structures of the task from 1, then tissues; on the stored grid."""


def training_pairs(
    registry: Registry, task: Task, *, patients: int, seed: int
) -> tuple[Task, list[Pair]]:
    """Labelled real scans of the train split, and the task with its structures filled in.

    Args:
        registry: The registry.
        task: Of kind segmentation.
        patients: The first of the draw that a few-shot run of patients makes (draw 0); 0: all.
        seed: Of the draw.

    Raises:
        ConfigError: CONFIG-05 as `name_labels` and `pair_labels`.
        DataError: DATA-06, DATA-08, DATA-09, DATA-29, SYNTH-07 as `load_cohort` and `pair_labels`.
    """
    cohort = load_cohort(registry, task)
    named = name_labels(registry, cohort, task)
    pairs = list(pair_labels(registry, cohort, named).train)
    if patients:
        shots = draw_shots(
            pairs, patients, "patients", seed=seed, draw=0, foreground=lambda _pair: ()
        )
        pairs = [shot.pair for shot in shots]
    return named, pairs


def read_case(registry: Registry, pair: Pair, task: Task, anatomy: Anatomy, seed: int) -> Case:
    """A case with its tissues.

    Raises:
        DataError: DATA-06 for values outside of the task.
        GeometryError: GEOMETRY-03 when its sequences lie on different grids.
    """
    channels = read_channels(registry, pair.images)
    classes = read_mask(registry, pair, task)
    whole = complete(channels, classes, len(task.labels), anatomy, seed)
    affine = np.array(pair.image.affine).reshape(4, 4)
    labels = Volume(whole, affine, kind="label")
    return Case(pair.image.subject_id, pair.label.volume_id, channels, labels)


def class_names(task: Task, anatomy: Anatomy) -> dict[int, str]:
    """Class index (from 1) to name, structures first."""
    tissues = [TISSUE.format(number + 1) for number in range(anatomy.tissues)]
    return dict(enumerate([*task.labels, *tissues], start=1))


def complete(
    channels: npt.NDArray[np.float32],
    classes: npt.NDArray[np.uint8],
    num_structures: int,
    anatomy: Anatomy,
    seed: int,
) -> npt.NDArray[np.uint8]:
    """Divide what no structure covers into tissues by intensity (k-means).

    As Billot et al. (Medical Image Analysis 86, 2023, section on cardiac segmentation) cluster what
    is not annotated, so that a generator knows more of it than that it is something else.

    Args:
        channels: [Q, S, H, W] in [0, 1].
        classes: [S, H, W], 0 where no structure is.
        num_structures: Largest possible class.
        anatomy: How.
        seed: Of the clustering.

    Returns:
        [S, H, W]; tissues count from `num_structures` + 1, the darkest in the first sequence first.
    """
    if not anatomy.tissues:
        return classes
    from scipy import ndimage
    from sklearn.cluster import KMeans

    # Single dark voxels are the lower end of the window, not outside of anything.
    outside = ndimage.binary_opening((channels == 0).all(0), np.ones((1, 3, 3)))
    free = (classes == 0) & ~outside
    blur = (0, *([anatomy.smoothing] * 3))
    values = ndimage.gaussian_filter(channels, blur)[:, free].T
    whole = classes.copy()
    if len(values) < anatomy.tissues:
        return whole
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(values), min(len(values), _MOST_VOXELS), replace=False)
    found = KMeans(anatomy.tissues, n_init=1, random_state=seed).fit(values[drawn])
    rank = np.argsort(np.argsort(found.cluster_centers_[:, 0]))
    whole[free] = rank[found.predict(values)] + num_structures + 1
    return whole


def licence_of(volumes: Iterable[VolumeRow]) -> str:
    """SPDX expression of all sources together."""
    licences = sorted({row.licence for row in volumes})
    if "unknown" in licences:
        return "unknown"
    return " AND ".join(f"({one})" if " " in one else one for one in licences)

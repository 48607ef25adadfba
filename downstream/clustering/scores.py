"""One cell of a clustering task: clusters of one encoder at one K, scored on every test patient.

Three methods, since the protocol of MRI-CORE's paper ("2D DSC against the number of clusters") is
not known beyond that:

* ``patient-oracle``: k-means on each test patient alone; the best cluster of every slice.
* ``set-oracle``: k-means on the training patients, without labels; the best cluster again.
* ``set-matched``: the same clusters; which one is a structure is chosen by the labels of the
  training patients. No label of a test patient is looked at before the score.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from core_mri.models.encoder import Encoder
from downstream.clustering.clusters import assign, fit, patch_features
from downstream.clustering.matching import Scores, choose, dice_table, matched, oracle
from downstream.cohort import read_image
from downstream.evaluation.cases import Slices, picture
from downstream.evaluation.results import Case
from downstream.segmentation.data import Pair, Pairs, read_mask
from downstream.segmentation.predict import Prediction

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from downstream.config import Task

METHODS = ("patient-oracle", "set-oracle", "set-matched")


@dataclass
class ClusterData:
    """Labelled volumes of a clustering task, and the features of one encoder of them."""

    pairs: Pairs
    owner: str = ""
    """Fingerprint of the encoder."""
    features: dict[str, Tensor] = field(default_factory=dict)
    """Volume id to features, as far as the cache allows."""


@dataclass(frozen=True)
class Clustered:
    """What a cell finds."""

    scores: dict[tuple[str, str, str], float]
    """(method, patient, structure) to Dice per slice."""
    pictures: list[tuple[Case, Slices]]
    """A slice of each test volume that shows a structure, the matched clusters as estimate;
    a cluster chosen for two structures is drawn as the later one."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Clustering:
    """An encoder on a task.

    Args:
        encoder: It stays frozen.
        fingerprint: Hash of its weights.
        data: Volumes, and features kept between cells.
        task: Structures.
        registry: Where the voxels are.
        image_size: Side of the encoder's slices, pixels.
        cache_gb: Memory for features; beyond it they are computed again.
    """

    encoder: Encoder
    fingerprint: str
    data: ClusterData
    task: Task
    registry: Registry
    image_size: int
    cache_gb: float

    def run(self, num_clusters: int, seed: int) -> Clustered:
        """All methods at one number of clusters.

        Raises:
            DataError: DATA-06 for a label value outside the list, DATA-09 when the training
                patients have fewer patches than clusters.
        """
        pairs = self.data.pairs
        centers = fit([self._features(pair) for pair in pairs.train], num_clusters, seed)
        training = [self._table(pair, centers)[0] for pair in pairs.train]
        chosen = choose(np.concatenate(training))
        scores: dict[tuple[str, str, str], float] = {}
        pictures: list[tuple[Case, Slices]] = []
        alone: list[str] = []
        for patient, own in _by_patient(pairs.test):
            found: dict[str, Scores] = {}
            tables = []
            for pair in own:
                table, clusters = self._table(pair, centers)
                tables.append(table)
                if not np.isnan(table).all():
                    pictures.append(self._picture(pair, clusters, table, chosen))
            table = np.concatenate(tables)
            found["set-oracle"], found["set-matched"] = oracle(table), matched(table, chosen)
            features = [self._features(pair) for pair in own]
            if sum(tensor[..., 0].numel() for tensor in features) >= num_clusters:
                own_centers = fit(features, num_clusters, seed)
                alone.append(patient)
                found["patient-oracle"] = oracle(
                    np.concatenate([self._table(pair, own_centers)[0] for pair in own])
                )
            for method, values in found.items():
                for name, value in zip(self.task.labels, values.tolist(), strict=True):
                    if not np.isnan(value):
                        scores[method, patient, name] = value
        names = list(self.task.labels)
        notes = [", ".join(f"{n}: cluster {c}" for n, c in zip(names, chosen, strict=True))]
        left = len({pair.image.subject_id for pair in pairs.test}) - len(alone)
        if left:
            notes.append(f"patient-oracle: {left} patients have too few patches")
        return Clustered(scores, pictures, tuple(notes))

    def _features(self, pair: Pair) -> Tensor:
        data, key = self.data, pair.image.volume_id
        if data.owner != self.fingerprint:
            data.owner, data.features = self.fingerprint, {}
        if key in data.features:
            return data.features[key]
        image = read_image(self.registry, pair.image)
        found = patch_features(self.encoder, image, self.image_size)
        used = sum(tensor.nbytes for tensor in data.features.values())
        if used + found.nbytes <= self.cache_gb * 1e9:
            data.features[key] = found
        return found

    def _table(self, pair: Pair, centers: Tensor) -> tuple[Scores, npt.NDArray[np.uint8]]:
        """Dice of clusters and structures [S, K, N - 1], and the clusters [S, H, W]."""
        row = pair.image
        clusters = assign(self._features(pair), centers, row.rows, row.columns)
        classes = read_mask(self.registry, pair, self.task)
        table = dice_table(clusters, classes, len(centers), 1 + len(self.task.labels))
        return table, clusters

    def _picture(
        self,
        pair: Pair,
        clusters: npt.NDArray[np.uint8],
        table: Scores,
        chosen: npt.NDArray[np.intp],
    ) -> tuple[Case, Slices]:
        estimate = np.zeros_like(clusters)
        for value, cluster in enumerate(chosen, start=1):
            estimate[clusters == cluster] = value
        values = zip(self.task.labels, matched(table, chosen).tolist(), strict=True)
        return picture(
            Prediction(
                pair,
                read_image(self.registry, pair.image),
                read_mask(self.registry, pair, self.task),
                estimate,
                {name: value for name, value in values if not np.isnan(value)},
            )
        )


def _by_patient(pairs: tuple[Pair, ...]) -> Iterator[tuple[str, list[Pair]]]:
    patients: dict[str, list[Pair]] = {}
    for pair in pairs:
        patients.setdefault(pair.image.subject_id, []).append(pair)
    yield from sorted(patients.items())

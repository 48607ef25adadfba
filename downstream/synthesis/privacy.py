"""Does a synthetic set give training patients away? Distances, membership, copies.

Three questions, on slices of one side of 64 px by their correlation (1 is a copy but for window):
are synthetic slices nearer to training patients than to as many patients nobody trained on; can a
stranger tell from the synthetic slices who was trained on; is any slice a copy. Label maps of the
training patients shape what is made of them, so the first two need not come out even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.metrics.classification import auroc
from core_mri.metrics.intervals import Interval, bootstrap_statistic
from core_mri.slice_grid import image_to_square
from downstream.cohort import read_image
from downstream.synthesis.copies import COPY, Float32s, nearest_correlation, unit_rows

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

SIDE = 64
_DRAWS = 20
_MOST_SLICES = 24
"""Of a volume, evenly spread."""


@dataclass(frozen=True, eq=False)
class Slices:
    """Standardized slices of some volumes."""

    rows: Float32s
    """[N, pixels], by `unit_rows`."""
    owners: npt.NDArray[np.int64]
    """[N], number of the patient (or of the synthetic volume)."""

    @property
    def num_owners(self) -> int:
        """P."""
        return int(self.owners.max()) + 1

    def of(self, owners: npt.NDArray[np.int64]) -> Float32s:
        """Rows of some of them."""
        return self.rows[np.isin(self.owners, owners)]

    def nearest(self, others: Float32s) -> npt.NDArray[np.float64]:
        """[P], the largest correlation of any slice of each with the others."""
        found = nearest_correlation(self.rows, others)
        return np.array([found[self.owners == own].max() for own in range(self.num_owners)])


@dataclass(frozen=True)
class Privacy:
    """What was found."""

    nearer_to_training: Interval
    """Share of synthetic volumes whose nearest slice is of a training patient, among as many
    training as held-out patients; 0.5 is even."""
    nearest_training: float
    """Median over synthetic volumes of the largest correlation with a training slice."""
    nearest_held_out: float
    """The same with slices of as many held-out patients."""
    membership_auc: Interval
    """How well the nearness to the synthetic slices tells training patients from others; 0.5 is
    chance."""
    copies: int
    """Synthetic slices that correlate by `COPY` or more with a training slice."""
    num_slices: int
    """Synthetic ones."""
    num_training: int
    """Patients."""
    num_held_out: int
    """Patients."""


def read_slices(registry: Registry, rows: Sequence[VolumeRow]) -> Slices:
    """Slices of image volumes; a synthetic subject is an owner like a patient."""
    subjects = sorted({row.subject_id for row in rows})
    parts, owners = [], []
    for row in rows:
        images = read_image(registry, row)
        chosen = np.unique(np.linspace(0, len(images) - 1, _MOST_SLICES).round().astype(int))
        found = unit_rows(image_to_square(images[chosen], SIDE).numpy())
        found = found[found.any(1)]
        parts.append(found)
        owners += [subjects.index(row.subject_id)] * len(found)
    return Slices(np.concatenate(parts), np.array(owners, dtype=np.int64))


def inspect(synthetic: Slices, training: Slices, held_out: Slices, *, seed: int) -> Privacy:
    """Answer the three questions.

    Args:
        synthetic: Generated volumes.
        training: Patients whose labels or scans they were made from.
        held_out: Patients they were not.
        seed: Of draws and resamples.
    """
    rng = np.random.default_rng(seed)
    size = min(training.num_owners, held_out.num_owners)
    to_training, to_held_out = (
        np.mean(
            [
                synthetic.nearest(side.of(rng.permutation(side.num_owners)[:size]))
                for _ in range(_DRAWS if side.num_owners > size else 1)
            ],
            axis=0,
        )
        for side in (training, held_out)
    )
    nearer = (to_training > to_held_out) + 0.5 * (to_training == to_held_out)
    members = training.nearest(synthetic.rows)
    others = held_out.nearest(synthetic.rows)
    scores = np.concatenate([members, others])
    is_member = np.r_[np.ones(len(members), int), np.zeros(len(others), int)]

    def auc(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([_auc(is_member, scores, row) for row in counts])

    share = bootstrap_statistic(
        lambda counts: counts @ nearer / counts.sum(1), len(nearer), seed=seed
    )
    copies = nearest_correlation(synthetic.rows, training.rows) >= COPY
    return Privacy(
        nearer_to_training=share,
        nearest_training=float(np.median(to_training)),
        nearest_held_out=float(np.median(to_held_out)),
        membership_auc=bootstrap_statistic(auc, len(scores), num_resamples=500, seed=seed),
        copies=int(copies.sum()),
        num_slices=len(synthetic.rows),
        num_training=training.num_owners,
        num_held_out=held_out.num_owners,
    )


def _auc(
    is_member: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
) -> float:
    """Of a resample of patients; nan where one side is empty."""
    drawn = np.repeat(np.arange(len(scores)), counts.astype(int))
    own = is_member[drawn]
    return float("nan") if len(set(own.tolist())) < 2 else auroc(own, scores[drawn])

"""Statistics of what weights saw, from the slices of a registry: `core_mri.training_statistics`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.feature_sample import FeatureSample, slice_numbers
from core_mri.moments import Moments, check_finite
from core_mri.off_distribution import Familiarity, calibrate, evenly
from core_mri.training_statistics import TrainingStatistics
from data_registry.similarity.features import EncoderFeatures, Radiomics
from data_registry.similarity.store import labels_of

if TYPE_CHECKING:
    from data_registry.schema import VolumeRow
    from data_registry.slices import SliceSample

SAMPLE = 2000
"""Slices whose features are kept one by one."""
ONE_BY_FORMULAS = 20
"""Of so many embedded slices one has its radiomic features kept: they take their time."""
NUM_FOLDS = 5
MIN_HELD_OUT = 19
"""Patients that it takes for a rate of one in twenty."""
_MOST_JUDGED, _LEAST_JUDGED = 400, 40
"""Volumes that are scored for the threshold, at most and whatever the number of slices."""


class Slices(Protocol):
    """What is needed of `data_registry.slices.SliceDataset`."""

    @property
    def volumes(self) -> Sequence[VolumeRow]:
        """The volumes."""

    def __len__(self) -> int:
        """Number of slices."""

    def __getitem__(self, position: int) -> SliceSample:
        """One slice; those of a volume stand together."""

    def volume_numbers(self) -> npt.NDArray[np.integer]:
        """Of each slice, the position of its volume in `volumes`; ascending."""


S = TypeVar("S", bound=Slices)


def training_statistics(
    maker: EncoderFeatures,
    weights: str,
    train: S,
    held_out: S | None,
    *,
    most_slices: int,
    most_judged: int | None = None,
    judged_as: Callable[[S], Slices] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrainingStatistics:
    """Embed a bounded number of training slices, and calibrate the warning of unlike scans.

    The threshold comes from `held_out` when it has at least 19 patients. Otherwise training
    patients are scored against the moments of the others, five folds of patients: the encoder was
    trained on them, so that new scans may score a little higher, and the statistics say so.

    Args:
        maker: The encoder.
        weights: SHA-256 of its tensors.
        train: All that it was trained on.
        held_out: Slices of patients that it was not trained on, such as those for validation.
        most_slices: Of training that are embedded; of a twentieth of so many radiomic features are
            kept.
        most_judged: Volumes that are scored for the threshold; from `most_slices` when not given.
        judged_as: The same slices as users will have them judged, where that differs from what the
            moments are of, such as reconstructions.
        on_progress: Called with slices embedded and slices in all.

    Raises:
        DataError: DATA-08 when a shard is damaged, DATA-09 with a single training patient, DATA-37
            when a feature is not finite.
    """
    places = _Places(train)
    chosen = places.lowest(most_slices)
    rows = _embed(maker, train, chosen, on_progress)
    patients = places.patient_of_volume[places.volume_of[chosen]]
    folds = _folds(patients)
    moments = [Moments.of(rows[folds[patients] == fold]) for fold in np.unique(folds)]
    whole = sum(moments[1:], moments[0])
    kept = np.argsort(places.numbers[chosen])[:SAMPLE]
    shown = np.sort(chosen[kept[: most_slices // ONE_BY_FORMULAS]])
    num_judged = most_judged or min(_MOST_JUDGED, max(_LEAST_JUDGED, most_slices // 4))

    def as_judged(slices: S) -> Slices:
        return slices if judged_as is None else judged_as(slices)

    if held_out is not None and _num_patients(held_out) >= MIN_HELD_OUT:
        familiarity = Familiarity(whole)
        scores, people = _scores(maker, as_judged(held_out), lambda _: familiarity, num_judged)
        whom = "patients held out of training"
    else:
        others = [Familiarity(whole - own) for own in moments]
        scores, people = _scores(maker, as_judged(train), lambda p: others[folds[p]], num_judged)
        whom = "training patients, each judged by the slices of others"
    threshold, rate = calibrate(scores, people)
    return TrainingStatistics(
        weights=weights,
        image_size=maker.image_size,
        moments=whole,
        slices=places.sample(chosen[kept], rows[kept], maker.digest),
        formulas=places.sample(shown, _embed(Radiomics(), train, shown), Radiomics.digest)
        if len(shown)
        else None,
        population={
            "slices": len(train),
            "volumes": len(train.volumes),
            "patients": int(places.patient_of_volume.max()) + 1,
        },
        threshold=threshold,
        false_alarm_rate=rate,
        calibrated_on=f"{len(scores)} volumes of {len(np.unique(people))} {whom}",
    )


def _folds(patients: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The fold of each patient."""
    seen = np.unique(patients)
    if len(seen) < 2:
        raise DataError(
            "DATA-09",
            "the training slices are of one patient: nothing tells what others would look like.",
            fix="Train on more patients, or leave the statistics out (statistics_slices: 0).",
        )
    folds = np.zeros(int(patients.max()) + 1, np.int64)
    folds[np.random.default_rng(0).permutation(seen)] = np.arange(len(seen)) % NUM_FOLDS
    return folds


class _Places:
    """Where the slices of a data set lie, and their numbers."""

    def __init__(self, slices: Slices) -> None:
        self._volumes = list(slices.volumes)
        self.volume_of = np.asarray(slices.volume_numbers(), np.int64)
        starts = np.searchsorted(self.volume_of, np.arange(len(self._volumes)))
        self.place = np.arange(len(self.volume_of)) - starts[self.volume_of]
        self._ids = [row.volume_id for row in self._volumes]
        self.numbers = slice_numbers(self._ids, self.volume_of, self.place)
        subjects = [row.subject_id for row in self._volumes]
        self.patient_of_volume = np.unique(subjects, return_inverse=True)[1].astype(np.int64)

    def lowest(self, most: int) -> npt.NDArray[np.int64]:
        """Positions of the slices of the smallest numbers, ascending."""
        return np.sort(np.argsort(self.numbers)[:most])

    def lowest_volumes(self, most: int) -> set[int]:
        """At most so many volumes, drawn evenly."""
        first = slice_numbers(
            self._ids, np.arange(len(self._ids)), np.zeros(len(self._ids), np.int64)
        )
        return set(np.argsort(first)[:most].tolist())

    def sample(
        self, positions: npt.NDArray[np.int64], rows: npt.NDArray[np.float32], features: str
    ) -> FeatureSample:
        """Features of some slices as a sample; patients get numbers that tell nothing."""
        order = np.argsort(self.numbers[positions])
        positions, rows = positions[order], rows[order]
        volumes = self.volume_of[positions]
        return FeatureSample(
            features=features,
            rows=rows,
            numbers=self.numbers[positions],
            patients=np.unique(self.patient_of_volume[volumes], return_inverse=True)[1],
            labels=labels_of([self._volumes[i] for i in volumes]),
            population=len(self.numbers),
        )


def _num_patients(slices: Slices) -> int:
    return len({row.subject_id for row in slices.volumes})


def _embed(
    maker: EncoderFeatures | Radiomics,
    slices: Slices,
    positions: npt.NDArray[np.int64],
    on_progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """[N, D] of some slices, ascending; those of a volume are embedded together."""
    volume_of = np.asarray(slices.volume_numbers())[positions]
    rows = np.zeros((len(positions), maker.width), np.float32)
    starts = np.flatnonzero(np.diff(volume_of, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
        spacing = slices.volumes[int(volume_of[start])].spacing_mm
        images = [slices[int(i)].image for i in positions[start:end]]
        rows[start:end] = maker(images, (spacing[1], spacing[2]))
        if on_progress is not None:
            on_progress(int(end), len(positions))
    check_finite(rows)
    return rows


def _scores(
    maker: EncoderFeatures,
    slices: Slices,
    familiarity_for: Callable[[int], Familiarity],
    most: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Score and patient of each volume; `familiarity_for` gives what a patient is judged by."""
    places = _Places(slices)
    scores, patients = [], []
    for volume in sorted(places.lowest_volumes(most) & set(places.volume_of.tolist())):
        positions = evenly(np.flatnonzero(places.volume_of == volume))
        patient = int(places.patient_of_volume[volume])
        scores.append(familiarity_for(patient).score(_embed(maker, slices, positions)))
        patients.append(patient)
    return np.array(scores), np.array(patients)

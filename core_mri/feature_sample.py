"""`FeatureSample`: features of a bounded number of slices, drawn evenly from all of a data set.

Each slice has a number that is a hash of its volume and its place. A sample of m is the m slices of
the smallest numbers: uniform without replacement, the same on every machine, and the sample of two
data sets together follows from their two samples (bottom-k sketch; Cohen and Kaplan, Summarizing
data using bottom-k sketches, PODC 2007).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.moments import check_finite

LABELS = ("source", "region", "sequence", "vendor", "field_strength", "plane")
"""What is known of each slice."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureSample:
    """N slices in the order of their numbers, so that the first m are a sample too."""

    features: str
    """Digest of what made the features: encoder and size of its images, or a set of formulas."""
    rows: npt.NDArray[np.float32]
    """[N, D]."""
    numbers: npt.NDArray[np.uint64]
    """[N], ascending: see `slice_numbers`."""
    patients: npt.NDArray[np.int64]
    """[N], 0 to P - 1; no identifiers."""
    labels: Mapping[str, npt.NDArray[np.str_]]
    """Each of `LABELS`, [N]."""
    population: int
    """Slices that it was drawn from."""
    places: Sequence[tuple[str, int]] = field(default=())
    """[N] volume id and which of its slices with foreground; none in weights folders."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_patients(self) -> int:
        """Patients of whom a slice was drawn."""
        return len(np.unique(self.patients))

    def take(self, chosen: npt.NDArray[np.integer]) -> FeatureSample:
        """Only these rows, patients numbered anew."""
        _, patients = np.unique(self.patients[chosen], return_inverse=True)
        return FeatureSample(
            features=self.features,
            rows=self.rows[chosen],
            numbers=self.numbers[chosen],
            patients=patients,
            labels={name: values[chosen] for name, values in self.labels.items()},
            population=self.population,
            places=[self.places[i] for i in chosen] if self.places else (),
        )

    def first(self, most: int) -> FeatureSample:
        """A sample of at most so many slices."""
        return self.take(np.arange(min(most, len(self))))


def check_comparable(first: FeatureSample, second: FeatureSample) -> None:
    """See that two samples hold finite features of one kind.

    Raises:
        DataError: DATA-36 for features of two encoders, DATA-37 when a feature is not finite.
    """
    if first.features != second.features:
        raise DataError(
            "DATA-36",
            f"features of two encoders cannot be compared: {first.features} and {second.features}.",
            fix="Embed both data sets with the same weights at the same image size.",
        )
    check_finite(first.rows)
    check_finite(second.rows)


def slice_numbers(
    volume_ids: Sequence[str], volume_of: npt.NDArray[np.integer], place: npt.NDArray[np.integer]
) -> npt.NDArray[np.uint64]:
    """The number of each slice: evenly spread 64 bits that depend on volume and place alone.

    Args:
        volume_ids: Of the volumes.
        volume_of: [N], position in `volume_ids` of the volume of each slice.
        place: [N], 0-based place of the slice among those of its volume.
    """
    starts = np.array(
        [
            int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
            for name in volume_ids
        ],
        dtype=np.uint64,
    )
    # splitmix64 (Steele, Lea and Flood, OOPSLA 2014), whose sums wrap around on purpose.
    with np.errstate(over="ignore"):
        x = starts[volume_of] + (place.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))

"""Samples of made-up features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from core_mri.feature_sample import LABELS, FeatureSample

MakeSample = Callable[..., FeatureSample]


def make_sample(
    rows: npt.NDArray[np.floating], per_patient: int = 1, **labels: npt.NDArray[np.str_]
) -> FeatureSample:
    """Rows as slices, so many of each patient in a row."""
    count = len(rows)
    return FeatureSample(
        features="made up",
        rows=rows.astype(np.float32),
        numbers=np.arange(count, dtype=np.uint64),
        patients=np.arange(count) // per_patient,
        labels={name: labels.get(name, np.full(count, "one")) for name in LABELS},
        population=count,
    )


@pytest.fixture
def sample() -> MakeSample:
    return make_sample

"""What weights saw, kept beside them as ``statistics.safetensors``: features, not scans.

With it a user who does not have the training data can ask how like theirs is
(`data_registry.similarity`), and `Predictor` warns of scans that are unlike it. The file has the
moments of the class tokens of a bounded number of training slices, a sample of these slices, one of
formulas that need no encoder, and the threshold of `off_distribution`. Patients are numbers in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from core_mri.feature_sample import LABELS, FeatureSample
from core_mri.moments import Moments
from core_mri.off_distribution import Familiarity, Judgement
from core_mri.runs import writing

STATISTICS = "statistics.safetensors"
FORMAT = "1"


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingStatistics:
    """What weights saw."""

    weights: str
    """SHA-256 of the tensors of the weights folder."""
    image_size: int
    """Side of the images that were embedded, px."""
    moments: Moments
    """Of the class tokens."""
    slices: FeatureSample
    """Class tokens."""
    formulas: FeatureSample | None
    """The same slices, and no more, by formulas that need no encoder."""
    population: Mapping[str, int]
    """``slices``, ``volumes`` and ``patients`` of all training data."""
    threshold: float
    """As `off_distribution.calibrate`."""
    false_alarm_rate: float
    """As `off_distribution.calibrate`."""
    calibrated_on: str
    """Which scans the threshold comes from, and how many."""

    def judge(self, rows: npt.NDArray[np.floating]) -> Judgement:
        """Compare a volume with what the weights saw.

        Args:
            rows: [S, D], class tokens of its `off_distribution.judged_slices`.
        """
        if not hasattr(self, "_familiarity"):  # a factorization, made when first asked for
            object.__setattr__(self, "_familiarity", Familiarity(self.moments))
        familiarity: Familiarity = self._familiarity  # type: ignore[attr-defined]
        return Judgement(
            score=familiarity.score(rows),
            threshold=self.threshold,
            false_alarm_rate=self.false_alarm_rate,
        )

    def card(self) -> dict[str, str]:
        """Facts for the model card."""
        return {
            "kept beside the weights": f"class tokens of {self.moments.n} training slices as sums, "
            f"{len(self.slices)} of them one by one; no scans and no identifiers",
            "warning of unlike scans": f"score above {self.threshold:.3g}; at most "
            f"{self.false_alarm_rate:.1%} false alarms on scans like those of training",
            "calibrated on": self.calibrated_on,
        }


def save_statistics(statistics: TrainingStatistics, folder: Path) -> Path:
    """Write them beside the tensors of a weights folder, aside and renamed.

    Raises:
        DataError: DATA-07 when the folder cannot be written.
    """
    from safetensors.numpy import save_file

    tensors = {"moments.total": statistics.moments.total, "moments.outer": statistics.moments.outer}
    facts: dict[str, Any] = {
        "moments": statistics.moments.n,
        "image_size": statistics.image_size,
        "population": dict(statistics.population),
        "threshold": statistics.threshold,
        "false_alarm_rate": statistics.false_alarm_rate,
        "calibrated_on": statistics.calibrated_on,
    }
    for name in ("slices", "formulas"):
        sample: FeatureSample | None = getattr(statistics, name)
        if sample is not None:
            facts[name] = _pack(sample, name, tensors)
    header = {"format": FORMAT, "weights": statistics.weights, "facts": json.dumps(facts)}
    with writing(folder):
        aside = folder / f".{STATISTICS}.partial"
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, aside, header)
        os.replace(aside, folder / STATISTICS)  # noqa: PTH105
    return folder / STATISTICS


def load_statistics(folder: Path, weights: str) -> TrainingStatistics:
    """Read them.

    Args:
        folder: The weights folder.
        weights: SHA-256 of its tensors.

    Raises:
        DataError: DATA-38 when there are none, or they are damaged, of a newer version, or of other
            weights.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / STATISTICS
    fix = "Make them with `core-mri data statistics WEIGHTS --registry REGISTRY`, where the "
    fix += "training data are."
    if not path.is_file():
        raise DataError("DATA-38", f"{folder}: holds no {STATISTICS}, so what these weights saw is "
                        "not known.", fix=fix)  # fmt: skip
    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT:
            raise DataError(
                "DATA-38",
                f"{path}: format {header['format']}, this version reads {FORMAT}.",
                fix="Update core-mri.",
            )
        facts = json.loads(header["facts"])
        found = TrainingStatistics(
            weights=header["weights"],
            image_size=facts["image_size"],
            moments=Moments(facts["moments"], tensors["moments.total"], tensors["moments.outer"]),
            slices=_unpack(facts["slices"], "slices", tensors),
            formulas=_unpack(facts["formulas"], "formulas", tensors)
            if "formulas" in facts
            else None,
            population=facts["population"],
            threshold=facts["threshold"],
            false_alarm_rate=facts["false_alarm_rate"],
            calibrated_on=facts["calibrated_on"],
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError("DATA-38", f"{path}: damaged ({error}).", fix=fix) from None
    if found.weights != weights:
        raise DataError(
            "DATA-38",
            f"{path}: belongs to other weights ({found.weights[:12]}..., not {weights[:12]}...).",
            fix=fix,
        )
    return found


def _pack(sample: FeatureSample, name: str, tensors: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    tensors[f"{name}.rows"] = sample.rows
    tensors[f"{name}.numbers"] = sample.numbers.view(np.int64)
    tensors[f"{name}.patients"] = sample.patients
    words: dict[str, list[str]] = {}
    for label in LABELS:
        known, codes = np.unique(sample.labels[label], return_inverse=True)
        words[label] = known.tolist()
        tensors[f"{name}.{label}"] = codes.astype(np.int32)
    return {"features": sample.features, "population": sample.population, "labels": words}


def _unpack(
    facts: Mapping[str, Any], name: str, tensors: Mapping[str, npt.NDArray[Any]]
) -> FeatureSample:
    return FeatureSample(
        features=facts["features"],
        rows=tensors[f"{name}.rows"],
        numbers=tensors[f"{name}.numbers"].view(np.uint64),
        patients=tensors[f"{name}.patients"],
        labels={
            label: np.array(facts["labels"][label])[tensors[f"{name}.{label}"]] for label in LABELS
        },
        population=facts["population"],
    )

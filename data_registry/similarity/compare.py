"""`compare`: a task against pretraining data, a cohort or what weights tell of theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core_mri.errors import ConfigError, DataError
from core_mri.feature_sample import FeatureSample
from core_mri.moments import Float64s, Moments
from data_registry import cohorts
from data_registry.similarity.distances import euclidean
from data_registry.similarity.features import EncoderFeatures, FeatureMaker, Radiomics
from data_registry.similarity.measure import DISTANCES, Measurement, measure
from data_registry.similarity.store import FeatureStore

if TYPE_CHECKING:
    from core_mri.training_statistics import TrainingStatistics
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

SAMPLE = 2000
KID = next(kind for kind in DISTANCES if kind.name == "KID")
_ON_FEATURES = [kind for kind in DISTANCES if not kind.label and not kind.formulas]
_ON_FORMULAS = [kind for kind in DISTANCES if kind.formulas]
_ON_LABELS = [kind for kind in DISTANCES if kind.label]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """One side: volumes of the registry, or what weights tell of theirs."""

    name: str
    """Of the cohort or of the weights folder."""
    digest: str
    """SHA-256 of the cohort or of the tensors."""
    rows: list[VolumeRow] = field(default_factory=list)
    """Its volumes; none when the weights alone are at hand."""
    statistics: TrainingStatistics | None = None
    """Of the weights."""
    subjects: frozenset[str] = frozenset()
    """Pseudonyms of its patients, as far as they are known."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of one kind of both sides."""

    name: str
    task: FeatureSample
    pretraining: FeatureSample
    moments: Moments
    """Of all pretraining slices."""
    units: Moments | None = None
    """By whose mean and deviation features of many units were made comparable."""

    def comparable(self, sample: FeatureSample) -> FeatureSample:
        """Another sample of the same maker, as the two are here."""
        return sample if self.units is None else _standardized(sample, self.units)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How like a task is to pretraining data."""

    task: Data
    pretraining: Data
    encoder: str
    """Digest of the encoder's features; empty when only formulas were compared."""
    shared: tuple[str, ...]
    """Patients of the task who are in the pretraining data."""
    same_voxels: int
    """Volumes of the task whose voxels are in the pretraining data, under whatever name."""
    measurements: list[Measurement]
    features: list[Features]
    """The first is the one that pictures are made of."""
    by_source: list[Measurement]
    """KID of each pretraining source to the task; `Measurement.features` names the source."""

    @property
    def verdict(self) -> str:
        """The answer in one or two sentences; shared patients come first."""
        return verdict(self)


def cohort_data(registry: Registry, name: str) -> Data:
    """The images of a frozen cohort.

    Raises:
        ConfigError: CONFIG-02 when there is none of that name.
        DataError: DATA-09 when it has no image, or the registry lost some of it.
    """
    where = cohorts.condition(registry, name, "role = 'image'")
    rows = registry.volumes(where)
    if not rows:
        raise DataError("DATA-09", f"cohort {name} of {registry.path} holds no image.")
    return Data(
        name=name,
        digest=cohorts.load(registry, name).digest,
        rows=rows,
        subjects=frozenset(row.subject_id for row in rows),
    )


def weights_data(folder: Path) -> Data:
    """What a weights folder tells of its training data.

    Raises:
        DataError: DATA-38 when it holds no statistics.
        WeightsError: WEIGHTS-01 when it is no weights folder.
    """
    from core_mri.training_statistics import load_statistics
    from core_mri.weights.folder import find_folder, read_config

    folder = find_folder(folder)
    config = read_config(folder)
    name = folder.parent.name if folder.name == "weights" else folder.name
    return Data(
        name=name,
        digest=config["sha256"],
        statistics=load_statistics(folder, config["sha256"]),
        subjects=frozenset(config.get("card", {}).get("subjects", ())),
    )


def compare(
    registry: Registry,
    task: Data,
    pretraining: Data,
    encoder: EncoderFeatures | None,
    *,
    formulas: bool = True,
    on_progress: Progress | None = None,
) -> Comparison:
    """All distances between a task and pretraining data.

    Args:
        registry: Holds the task, and the cohort of `pretraining` if it is one.
        task: A cohort.
        pretraining: A cohort, or weights.
        encoder: What embeds slices; the weights themselves when `pretraining` are weights.
        formulas: Compare radiomic features too.
        on_progress: Called while volumes are embedded.

    Raises:
        ConfigError: CONFIG-05 when there is nothing to compare by.
        DataError: DATA-07, DATA-08, DATA-36, DATA-37 as `FeatureStore` and `measure`; DATA-09 when
            not a single distance can be told.
    """
    makers: list[tuple[FeatureMaker, bool]] = [(encoder, True)] if encoder else []
    if formulas and (pretraining.statistics is None or pretraining.statistics.formulas):
        makers.append((Radiomics(), False))
    if not makers:
        raise ConfigError("CONFIG-05", "neither an encoder nor formulas were given to compare by.")
    features = [_features(registry, maker, task, pretraining, on_progress) for maker, _ in makers]
    measurements: list[Measurement] = []
    for found, (_, is_encoder) in zip(features, makers, strict=True):
        kinds = _ON_FEATURES if is_encoder or not encoder else []
        kinds = [*kinds, *([] if is_encoder else _ON_FORMULAS)]
        measurements += measure(
            found.task, found.pretraining, found.name, kinds, moments=found.moments
        )
    first = features[0]
    measurements += measure(first.task, first.pretraining, "metadata", _ON_LABELS)
    if all(one.value is None for one in measurements):
        raise DataError(
            "DATA-09",
            f"no distance of {task.name} to {pretraining.name} can be told: "
            f"{measurements[0].refused}.",
            fix="Take a cohort of more patients.",
        )
    pixels = {row.pixel_hash for row in pretraining.rows}
    return Comparison(
        task=task,
        pretraining=pretraining,
        encoder=encoder.digest if encoder else "",
        shared=tuple(sorted(task.subjects & pretraining.subjects)),
        same_voxels=sum(row.pixel_hash in pixels for row in task.rows),
        measurements=measurements,
        features=features,
        by_source=by_source(first),
    )


def by_source(features: Features) -> list[Measurement]:
    """KID of the task to each source of the pretraining data, nearest first, refused ones last."""
    sources = features.pretraining.labels["source"]
    found = [
        measure(
            features.task,
            features.pretraining.take(np.flatnonzero(sources == source)),
            str(source),
            [KID],
        )[0]
        for source in np.unique(sources)
    ]
    return sorted(found, key=lambda one: (one.value is None, one.value or 0.0))


def nearest(features: Features) -> Float64s:
    """[N], distance of each task slice of the sample to the nearest pretraining slice."""
    rows = (sample.rows.astype(np.float64) for sample in (features.task, features.pretraining))
    return euclidean(*rows).min(1)


def _features(
    registry: Registry, maker: FeatureMaker, task: Data, pretraining: Data,
    on_progress: Progress | None,
) -> Features:  # fmt: skip
    store = FeatureStore(registry, maker.digest)
    sides: Sequence[Data] = [side for side in (task, pretraining) if side.statistics is None]
    missing = {row.volume_id: row for side in sides for row in side.rows}
    store.compute(list(missing.values()), maker, on_progress)
    _, own = store.gather(task.rows, SAMPLE)
    seen = pretraining.statistics
    if seen is None:
        moments, other = store.gather(pretraining.rows, SAMPLE)
    elif isinstance(maker, EncoderFeatures):
        moments, other = seen.moments, seen.slices
    else:
        assert seen.formulas is not None
        moments, other = Moments.of(seen.formulas.rows), seen.formulas
    if isinstance(maker, EncoderFeatures):
        return Features(name=maker.name, task=own, pretraining=other, moments=moments)
    own, other = (_standardized(sample, moments) for sample in (own, other))
    return Features(
        name=maker.name,
        task=own,
        pretraining=other,
        moments=Moments.of(other.rows),
        units=moments,
    )


def _standardized(sample: FeatureSample, moments: Moments) -> FeatureSample:
    deviation = np.sqrt(np.maximum(np.diag(moments.covariance), 0))
    varying = deviation > 1e-6 * np.maximum(np.abs(moments.mean), 1e-6)
    rows = (sample.rows[:, varying] - moments.mean[varying]) / deviation[varying]
    return replace(sample, rows=rows.astype(np.float32))


def verdict(found: Comparison) -> str:
    """The answer in words."""
    parts = []
    if found.shared or found.same_voxels:
        parts.append(
            f"{len(found.shared)} of {len(found.task.subjects)} task patients are in the "
            f"pretraining data ({found.same_voxels} volumes by their voxels): distances and any "
            "gain measured on them are too good."
        )
    kid = next((m for m in found.measurements if m.distance == "KID"), None)
    task, other = found.task.name, found.pretraining.name
    if kid is None or kid.value is None:
        parts.append(f"How like {task} is to {other} cannot be told by KID.")
    elif kid.null_high is None:
        parts.append(
            f"KID {kid.value:.3g} (95 % interval {kid.low:.3g} to {kid.high:.3g}) between {task} "
            f"and {other}; too few pretraining patients for a null to compare it with."
        )
    else:
        where = (
            f"{task} is farther from {other} than halves of the patients of {other} are from each "
            "other"
            if kid.told_apart
            else f"{task} cannot be told from {other}: halves of its patients differ as much"
        )
        parts.append(
            f"{where} (KID {kid.value:.3g}, 95 % interval {kid.low:.3g} to {kid.high:.3g}; halves "
            f"{kid.null:.3g}, at most {kid.null_high:.3g})."
        )
    told = [one for one in found.by_source if one.value is not None]
    if len(found.by_source) > 1 and told:
        parts.append(
            f"Of the pretraining sources that can be told, {told[0].features} is nearest "
            f"(KID {told[0].value:.3g})."
        )
    if kid is not None and kid.few:
        parts.append("With under 5 patients on a side this describes them and supports no claim.")
    return " ".join(parts)

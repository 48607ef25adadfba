"""What may be added to pretraining data: sources of the registry, or series of a plan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_mri.errors import DataError
from data_registry.governance.propagation import RegisteredSource, registered_sources
from data_registry.similarity.advice import (
    Candidate,
    Step,
    greedy,
    kernel_mixture,
    label_mixture,
)
from data_registry.similarity.compare import SAMPLE, Comparison, Features
from data_registry.similarity.features import FeatureMaker
from data_registry.similarity.store import FeatureStore

if TYPE_CHECKING:
    from core_mri.feature_sample import FeatureSample
    from data_registry.catalogue import Registry

MOST_SLICES = 500
"""Of each candidate that its kernel means are taken from."""
_LABELS = ("region", "sequence", "vendor", "plane")


def sources_to_add(
    registry: Registry, found: Comparison, maker: FeatureMaker
) -> tuple[list[Step], dict[str, str]]:
    """Training images of registered sources, by their features.

    Patients of the task, and sources that the pretraining data hold already, are no candidates.

    Args:
        registry: The registry.
        found: The comparison, whose first features `maker` made.
        maker: The encoder.

    Returns:
        The steps, and the sources that their licence keeps out, with the reason.
    """
    features = found.features[0]
    known = registered_sources(registry)
    present = set(features.pretraining.labels["source"].tolist())
    barred = {name: why for name, one in known.items() if (why := _barred(one))}
    candidates, samples = [], []
    store = FeatureStore(registry, maker.digest)
    for name, source in known.items():
        if name in present or name in barred:
            continue
        rows = registry.volumes(
            "role = 'image' AND split = 'train' AND source = ? "
            "AND NOT list_contains(?, subject_id)",
            [name, sorted(found.task.subjects)],
        )
        if not rows:
            continue
        store.compute(rows, maker)
        _, sample = store.gather(rows, MOST_SLICES)
        candidates.append(
            Candidate(
                name=name, licence=source.licence, slices=sample.population,
                patients=len({row.subject_id for row in rows}),
            )
        )  # fmt: skip
        samples.append(features.comparable(sample))
    distance = kernel_mixture(
        features.task.first(MOST_SLICES), [features.pretraining.first(SAMPLE), *samples]
    )
    steps = greedy(features.pretraining.population, candidates, distance, "KID of the mixture")
    return steps, barred


def series_to_add(plan: Path, features: Features) -> list[Step]:
    """Series of a plan of `core-mri data plan`, in groups, by what is known of them.

    Raises:
        DataError: DATA-34 when the folder holds no plan or it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(plan / "series.parquet")
        columns = ("collection", "licence", "patient_id", "num_slices", *_LABELS)
        series = table.select(list(columns)).to_pylist()
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        first = str(error).partition("\n")[0]
        raise DataError("DATA-34", f"{plan} holds no plan: {first}.") from error
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in series:
        groups.setdefault((one["collection"], one["region"], one["sequence"]), []).append(one)
    candidates, parts = [], []
    for (collection, region, sequence), own in sorted(groups.items()):
        licences = sorted({one["licence"] for one in own})
        candidates.append(
            Candidate(
                name=f"{collection}: {region}, {sequence}",
                licence=" AND ".join(licences),
                slices=sum(one["num_slices"] for one in own),
                patients=len({one["patient_id"] for one in own}),
            )
        )
        counts: dict[str, Counter[str]] = {label: Counter() for label in _LABELS}
        for one in own:
            for label in _LABELS:
                counts[label][one[label]] += one["num_slices"]
        parts.append(_known(counts))
    distance = label_mixture(_labels(features.task), [_labels(features.pretraining), *parts])
    return greedy(features.pretraining.population, candidates, distance, "JS of the metadata")


def _barred(source: RegisteredSource) -> str:
    """Why weights may not be trained on a source; empty when they may."""
    if not source.terms.known:
        return f"the licence {source.licence} is unknown"
    if source.terms.weights == "no":
        return f"{source.licence} forbids to release weights trained on it"
    return ""


def _labels(sample: FeatureSample) -> dict[str, dict[str, float]]:
    return _known({label: Counter(sample.labels[label].tolist()) for label in _LABELS})


def _known(counts: dict[str, Counter[str]]) -> dict[str, dict[str, float]]:
    return {
        label: {word: float(n) for word, n in own.items() if word != "unknown"}
        for label, own in counts.items()
    }

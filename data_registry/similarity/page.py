"""The page of `core-mri data similarity --out`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from core_mri.pictures import CONVENTION
from core_mri.reports import Cell, Report
from data_registry.governance.propagation import may_redistribute, registered_sources
from data_registry.similarity import pictures
from data_registry.similarity.compare import Comparison
from data_registry.similarity.measure import FEW_PATIENTS, Measurement

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.similarity.advice import Step

MEANINGS = {
    "KID": "lower is closer; 0 for equal distributions, and negative as often as positive then",
    "FD at 200 slices": "lower is closer; compare with the null only, never with other numbers of "
    "slices",
    "FD extrapolated": "lower is closer; free of the bias of few patients to first order",
    "coverage": "share of task slices with a pretraining slice within reach; higher is closer",
    "density": "about 1 among pretraining slices, 0 outside of them; higher is closer",
    "domain AUROC": "0.5 when nothing tells the two apart, 1 when everything does",
    "proxy A-distance": "0 when nothing tells the two apart, 2 when everything does",
    "sliced Wasserstein": "lower is closer; compare with the null",
    "FRD": "lower is closer; radiomic features; compare with the null",
}


def similarity_page(
    registry: Registry, comparisons: Sequence[Comparison], advice: Mapping[str, Sequence[Step]]
) -> Report:
    """Assemble the page.

    Args:
        registry: Holds the tasks.
        comparisons: One for each task, all with one pretraining side.
        advice: Steps by task; empty when none was asked for.
    """
    name = comparisons[0].pretraining.name
    report = Report(
        f"How like {', '.join(c.task.name for c in comparisons)} is to {name}",
        " ".join(comparison.verdict for comparison in comparisons),
        registry.path.name,
    )
    for found in comparisons:
        heading = f"Distances of {found.task.name}"
        given = [one for one in found.measurements if one.value is not None]
        report.add_table(
            heading,
            [measurement_row(one) for one in given],
            "Low and high: 95 % interval, patients of both sides resampled. Null: the same "
            "between halves of the pretraining patients, mean and farthest of ten; beyond: the "
            "interval lies beyond all of them. Slices and patients: of the task, of pretraining.",
        )
        refused = {one.distance: one.refused for one in found.measurements if one.refused}
        if refused:
            report.add_facts(heading, {f"{name}: not told": why for name, why in refused.items()})
    kinds = {one.distance for found in comparisons for one in found.measurements}
    report.add_facts("How to read them", {k: v for k, v in MEANINGS.items() if k in kinds})
    report.add_figure(
        "Sources",
        pictures.heat_map({found.task.name: found.by_source for found in comparisons}),
        f"KID of each source of {name} to each task; darker is closer. A dash: too few patients.",
    )
    sources = registered_sources(registry)
    for found in comparisons:
        report.add_table(
            "Sources",
            [source_row(one) for one in found.by_source],
            f"The same for {found.task.name}, with intervals.",
            folded=True,
        )
    for found in comparisons:
        report.add_figure(
            "Map",
            pictures.feature_map(found.features[0], found.task.name),
            f"Slices of {found.task.name} among those of {name}, by {found.features[0].name}. Two "
            "axes show a part of the differences only.",
        )
        own = [sources[s] for s in sorted({row.source for row in found.task.rows})]
        figure, told = pictures.extreme_slices(registry, found, may_redistribute(own))
        if figure is None:
            report.add_text("Nearest and farthest slices", told)
        else:
            report.add_figure("Nearest and farthest slices", figure, f"{told} {CONVENTION}")
    for task, steps in advice.items():
        if steps:
            report.add_table(
                f"What to add for {task}",
                [step.row() for step in steps],
                "In the order in which each brings the pretraining data closest for every slice "
                "that is added, until nothing does.",
            )
        else:
            report.add_text(f"What to add for {task}", "Nothing at hand brings the data closer.")
    report.add_text("Limits", _limits(comparisons))
    return report


def measurement_row(one: Measurement) -> dict[str, Cell]:
    """A line of a table."""
    return {
        "distance": one.distance,
        "features": one.features,
        "value": one.value,
        "low": one.low,
        "high": one.high,
        "null": one.null,
        "farthest": one.null_high,
        "beyond": None if one.null is None else one.told_apart,
        "slices": f"{one.slices}, {one.pretraining_slices}",
        "patients": f"{one.patients}, {one.pretraining_patients}",
    }


def source_row(one: Measurement) -> dict[str, Cell]:
    """A line of the table of sources."""
    return {
        "source": one.features,
        "KID": one.value,
        "low": one.low,
        "high": one.high,
        "slices": one.pretraining_slices,
        "patients": one.pretraining_patients,
        "why not": one.refused,
    }


def _limits(comparisons: Sequence[Comparison]) -> list[str]:
    limits = [
        "A small distance says that slices look alike to these features. Whether pretraining on "
        "them helps is another question, which `core-mri data similarity --transfer` asks of "
        "measured gains.",
        "Intervals cover the choice of patients, not that of hospitals.",
    ]
    if any(
        one.few and one.value is not None for found in comparisons for one in found.measurements
    ):
        limits.append(
            f"Rows of fewer than {FEW_PATIENTS} patients on a side describe these patients and "
            "support no claim."
        )
    if any(found.pretraining.statistics for found in comparisons):
        limits.append(
            "Of the pretraining data only what the weights folder keeps was compared; patients are "
            "recognized by their pseudonym alone, which needs the same project key."
        )
    return limits

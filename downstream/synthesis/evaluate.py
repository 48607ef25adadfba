"""`core-mri synthesize evaluate`: likeness, worth, privacy and a readers' page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from core_mri.errors import DataError
from core_mri.metrics.intervals import Interval
from core_mri.reports import Report
from core_mri.runs import Run, write_atomically, writing
from core_mri.weights import load_model
from data_registry.catalogue import Registry
from data_registry.similarity.compare import Comparison, Data, compare
from data_registry.similarity.features import EncoderFeatures
from data_registry.similarity.page import measurement_row
from downstream.cohort import Cohort, fingerprint, load_cohort
from downstream.synthesis.config import EvaluateConfig
from downstream.synthesis.privacy import Privacy, inspect, read_slices
from downstream.synthesis.reader import Reading, read_answers, write_reader_page
from downstream.synthesis.utility import Gain, compare_roles

if TYPE_CHECKING:
    from data_registry.schema import VolumeRow

SHOWN = ("KID", "FRD")
_FEW = 8
"""Held-out patients under which numbers describe and claim nothing."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Compare the synthetic images of a task with the real ones.

    Args:
        config: What to do.

    Returns:
        What ``results.json`` holds: ``verdict``, ``likeness``, ``privacy``, ``worth``, ``failed``
        (cells of the suite) and ``readers``.

    Raises:
        DataError: DATA-09 when the task has no synthetic or no held-out images, SYNTH-08 after the
            report was written when synthetic slices copy a training patient.
    """
    registry = Registry.open(config.registry)
    cohort = load_cohort(registry, config.task)
    made = [row for row in cohort.generated if row.source == config.source]
    held_out = [*cohort.val, *cohort.test]
    parents = frozenset().union(*(row.generated_from or () for row in made))
    trained_on = [row for row in cohort.train if row.subject_id in parents]
    for rows, what in ((made, f"synthetic image of source {config.source}"),
                       (trained_on, "image of a patient it was made from"),
                       (held_out, "image of a patient outside of training")):  # fmt: skip
        if not rows:
            raise DataError(
                "DATA-09",
                f"task {config.task.name}: no {what} in {config.registry}.",
                fix="Widen `where`, name the source, or ingest the pairs.",
            )
    with Run.open(config.out, config):
        likeness = _likeness(config, registry, made, cohort)
        privacy = inspect(
            *(read_slices(registry, rows) for rows in (made, trained_on, held_out)),
            seed=config.seed,
        )
        gains: list[Gain] = []
        failed: dict[str, str] = {}
        if config.suite:
            gains, failed = compare_roles(config.suite, config.out / "worth", config.mixed_share)
        if config.reader_slices:
            write_reader_page(
                registry, held_out, made, config.out,
                count=config.reader_slices, seed=config.seed,
            )  # fmt: skip
        reading = read_answers(config.out, config.seed)
        results = _write(config, likeness, privacy, gains, failed, reading)
    if privacy.copies:
        raise DataError(
            "SYNTH-08",
            f"{privacy.copies} of {privacy.num_slices} slices of source {config.source} copy a "
            f"training patient; see {config.out / 'report.html'}.",
            fix="Do not share them; train the generator on more patients, or shorter.",
        )
    return results


def _likeness(
    config: EvaluateConfig, registry: Registry, made: Sequence[VolumeRow], cohort: Cohort
) -> dict[str, Comparison]:
    """By region: synthetic images beside the training patients'."""
    encoder = None
    if config.encoder:
        encoder = EncoderFeatures(load_model(config.encoder, device="cpu"), config.encoder)
    found = {}
    for region in sorted({row.region for row in made}):
        sides = [
            (name, [row for row in rows if row.region == region])
            for name, rows in (("synthetic", made), ("real", cohort.rows))
        ]
        data = [
            Data(
                name=f"{name} {region}", digest=fingerprint(rows), rows=rows,
                subjects=frozenset(row.subject_id for row in rows),
            )
            for name, rows in sides
        ]  # fmt: skip
        found[region] = compare(registry, data[0], data[1], encoder)
    return found


def _write(
    config: EvaluateConfig,
    likeness: dict[str, Comparison],
    privacy: Privacy,
    gains: Sequence[Gain],
    failed: Mapping[str, str],
    reading: Reading | None,
) -> dict[str, Any]:
    few = min(privacy.num_held_out, privacy.num_training) < _FEW
    told = [
        f"Membership can be told with an AUROC of {_shown(privacy.membership_auc)}, "
        f"{privacy.copies} of {privacy.num_slices} synthetic slices are copies.",
        *(_gain_sentence(gain) for gain in gains if gain.trained_on == "both"),
        *((f"{len(failed)} cells of the suite failed.",) if failed else ()),
        *(("Too few patients for a claim: this describes.",) if few else ()),
    ]
    verdict = " ".join(told)
    report = Report("Synthetic scans", verdict, config.out.name)
    for region, comparison in likeness.items():
        report.add_table(
            "Likeness",
            [measurement_row(one) for one in comparison.measurements],
            f"{region}: synthetic images (task) beside all real ones (pretraining); the null is "
            "what halves of the real patients give.",
        )
    report.add_text("Privacy", _privacy_text(privacy))
    if gains:
        report.add_table(
            "Worth",
            [_gain_row(gain) for gain in gains],
            "Dice over test patients, 95 % intervals; synthetic pairs are made from the k patients "
            "alone. The difference is to the same trained on real pairs, patient by patient.",
        )
    for name, error in failed.items():
        report.add_text("Worth", f"Failed: {name}: {error}")
    report.add_text(
        "Readers",
        "Nobody has answered yet: reader.html, reader_answers.csv."
        if reading is None
        else f"{reading.answered} answers, right: {_shown(reading.accuracy)} (0.5 is chance).",
    )
    report.write(config.out / "report.html")
    results = {
        "schema": 1,
        "verdict": verdict,
        "likeness": {
            region: [asdict(one) for one in comparison.measurements]
            for region, comparison in likeness.items()
        },
        "privacy": asdict(privacy),
        "worth": [asdict(gain) for gain in gains],
        "failed": dict(failed),
        "readers": None if reading is None else asdict(reading),
    }
    path = config.out / "results.json"
    with writing(path):
        write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())
    return results


def _privacy_text(privacy: Privacy) -> list[str]:
    return [
        f"The nearest slice of a training patient correlates by {privacy.nearest_training:.3f} "
        f"(median), that of as many held-out patients by {privacy.nearest_held_out:.3f}; "
        f"{_shown(privacy.nearer_to_training)} of the synthetic volumes are nearer to a training "
        "patient (0.5 is even).",
        f"Membership: nearness to the synthetic slices tells {privacy.num_training} training "
        f"patients from {privacy.num_held_out} others with an AUROC of "
        f"{_shown(privacy.membership_auc)} (0.5 is chance). Label maps of training patients shape "
        "what is made of them, so that it need not be chance where no intensity was memorized.",
        f"Copies (correlation 0.995 or more): {privacy.copies} of {privacy.num_slices} slices.",
    ]


def _gain_row(gain: Gain) -> dict[str, str | float | int | None]:
    return {
        "task": gain.task, "weights": gain.weights, "k": gain.k, "trained on": gain.trained_on,
        "Dice": _shown(gain.dice),
        "difference": None if gain.difference is None else _shown(gain.difference),
        "patients": gain.patients,
    }  # fmt: skip


def _gain_sentence(gain: Gain) -> str:
    assert gain.difference is not None
    return (
        f"{gain.task}, {gain.weights}, k {gain.k}: real and synthetic pairs together change Dice "
        f"by {_shown(gain.difference)}."
    )


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"

"""The page of a study: verdict, scores with intervals, tested differences, panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from core_mri.config import to_mapping
from core_mri.reports import Cell, Report
from downstream.evaluation.results import Outcome
from downstream.evaluation.summary import Comparison, SummaryRow
from downstream.reconstruction.training.report import flat, labelled, panels, score_table
from downstream.reconstruction.training.slices import Slices
from downstream.reconstruction.training.study_config import ReconstructionStudy
from downstream.reconstruction.training.testing import Tested


def study_report(
    study: ReconstructionStudy,
    test: Slices,
    outcomes: Sequence[Outcome],
    rows: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    pictures: Mapping[str, Sequence[Tested]],
) -> Report:
    """Write nothing, gather everything.

    Args:
        study: What was done.
        test: Slices that were scored.
        outcomes: Of all cells, failed ones too.
        rows: The summary.
        comparisons: The tested differences.
        pictures: Acceleration to a volume of every method.
    """
    patients = len(set(test.patients))
    best: dict[str, SummaryRow] = {}
    for row in rows:
        if row.metric == "PSNR" and (row.task not in best or row.mean > best[row.task].mean):
            best[row.task] = row
    leaders = "; ".join(
        f"{task}: {row.weights} ({row.method}, {labelled(row)} labelled) {row.mean:.2f} dB"
        for task, row in best.items()
    )
    which = "validation" if study.test_split == "val" else "test"
    verdict = (
        f"SIMULATED k-space of {patients} {which} patients, seeds {list(study.seeds)}. "
        f"Best by PSNR: {leaders or 'none could be scored'}."
    )
    report = Report("Networks for reconstruction", verdict, "Not for diagnosis.")
    report.add_table(
        "Scores",
        score_table(rows),
        "Seeds and volumes averaged per patient, then over patients; 95 % bootstrap intervals over "
        "patients. Labelled: training patients with references. K-space is simulated from "
        "magnitude images: smooth phase, ring of coils, white noise; references without noise.",
    )
    if comparisons:
        report.add_table(
            "Differences in PSNR",
            [_difference(c) for c in comparisons],
            "Same patients, same seeds; paired permutation test, Holm over all rows. "
            "Detectable: the smallest true difference that 4 of 5 such studies show.",
        )
    for rate, volumes in pictures.items():
        named = {(volume.volume, rate): [volume] for volume in volumes}
        report.add_gallery(f"Middle slice of the first {which} volume, {rate}", panels(named))
    failed = [o for o in outcomes if o.error]
    if failed:
        report.add_table("Failed", [{"cell": o.key, "error": o.error} for o in failed])
    seconds: dict[str, list[float]] = {}
    for outcome in outcomes:
        seconds.setdefault(outcome.weights, []).append(outcome.cpu_seconds)
    report.add_table(
        "Processor time",
        [
            {"method": name, "cells": len(own), "CPU s a cell": float(np.mean(own))}
            for name, own in seconds.items()
        ],
        "Training and testing together.",
    )
    report.add_text("Notes", sorted({note for o in outcomes for note in o.notes}) or ["none"])
    report.add_facts("Settings", flat(to_mapping(study)))
    return report


def _difference(comparison: Comparison) -> dict[str, Cell]:
    found = comparison.difference
    return {
        "data": comparison.task, "method": comparison.weights, "minus": comparison.twin,
        "labelled": comparison.k or "all", "dB": found.mean,
        "95 %": f"{found.low:.2f} to {found.high:.2f}", "patients": found.n,
        "p (Holm)": comparison.p_holm, "detectable dB": comparison.detectable,
    }  # fmt: skip

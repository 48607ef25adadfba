from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from core_mri.metrics import (
    auprc,
    auroc,
    balanced_accuracy,
    bootstrap_interval,
    brier,
    calibration_error,
    detectable_difference,
    paired_permutation,
)
from downstream.evaluation.classified import ClassifierTable
from downstream.evaluation.results import Outcome, Probed, Score
from downstream.evaluation.summary import MIN_PATIENTS, summarize


def classified(rows, weights="ours", against="twin", draw=0) -> Outcome:
    """`rows`: (patient, truth, scores)."""
    common = {"task": "sequence", "weights": weights, "k": 20, "draw": draw}
    score = Score(
        **common, twin=not against, method="knn", seed=0, patient="all", structure="",
        metric="auroc", value=0.5, unit="1",
    )  # fmt: skip
    probed = tuple(
        Probed(method="knn", patient=p, example=f"{p}-{i}", truth=t, scores=s, calibrated=s)
        for i, (p, t, s) in enumerate(rows)
    )
    return Outcome(
        key=f"{weights}{draw}",
        against=against,
        scores=(score,),
        classes=("T1", "T2"),
        probed=probed,
        **common,
    )


def dice_row(rows, weights="ours", metric="dice"):
    (found,) = [row for row in rows if row.weights == weights and row.metric == metric]
    return found


class TestSegmentation:
    def test_structures_then_draws_are_averaged_per_patient(self, segmented):
        first = {"a": {"liver": 0.2, "spleen": 0.4}, "b": {"liver": 0.8, "spleen": 1.0}}
        second = {"a": {"liver": 0.4, "spleen": 0.6}, "b": {"liver": 0.6, "spleen": 0.8}}
        rows, _ = summarize([segmented(first), segmented(second, draw=1)], seed=0)
        row = dice_row(rows)
        assert row.mean == pytest.approx((0.4 + 0.8) / 2)
        assert row.n == 2
        assert dice_row(rows, metric="dice:liver").mean == pytest.approx(0.5)

    def test_interval_is_the_bootstrap_over_patients(self, segmented, random_values):
        values = random_values(9, 0)
        row = dice_row(summarize([segmented(values)], seed=3)[0])
        expected = bootstrap_interval([np.mean(list(v.values())) for v in values.values()], seed=3)
        assert (row.mean, row.ci_low, row.ci_high) == pytest.approx(
            (expected.mean, expected.low, expected.high)
        )

    def test_order_of_the_cells_does_not_matter(self, segmented, random_values):
        outcomes = [
            segmented(random_values(9, draw), draw=draw, weights=w, against=a)
            for draw in range(3)
            for w, a in (("ours", "twin"), ("twin", ""))
        ]
        assert summarize(outcomes, seed=0) == summarize(outcomes[::-1], seed=0)

    def test_failed_cells_do_not_count(self, segmented):
        failed = replace(segmented({"a": {"liver": 0.0}}, draw=1), error="DATA-02: gone")
        rows, _ = summarize([segmented({"a": {"liver": 1.0}}), failed], seed=0)
        assert dice_row(rows).mean == 1.0
        assert math.isnan(dice_row(rows).ci_low)


class TestComparison:
    def compared(self, segmented, random_values, num_patients):
        ours, theirs = random_values(num_patients, 0, better=0.2), random_values(num_patients, 1)
        cells = [segmented(ours), segmented(theirs, weights="twin", against="")]
        return (ours, theirs, *summarize(cells, seed=0))

    def test_below_eight_patients_there_is_no_p_value(self, segmented, random_values):
        _, _, rows, (comparison,) = self.compared(segmented, random_values, MIN_PATIENTS - 1)
        assert comparison.p is None
        assert comparison.descriptive
        assert dice_row(rows).p is None
        assert dice_row(rows).p_holm is None

    def test_from_eight_on_it_is_the_paired_permutation(self, segmented, random_values):
        ours, theirs, rows, (comparison,) = self.compared(segmented, random_values, MIN_PATIENTS)
        a, b = ([np.mean(list(v.values())) for v in x.values()] for x in (ours, theirs))
        assert comparison.p == pytest.approx(paired_permutation(a, b))
        assert comparison.difference.mean == pytest.approx(np.mean(a) - np.mean(b))
        assert dice_row(rows).p == comparison.p
        assert dice_row(rows, "twin").p is None

    def test_only_draws_of_both_are_compared(self, segmented, random_values):
        ours, extra = random_values(8, 0), random_values(8, 5, better=0.4)
        cells = [
            segmented(ours),
            segmented(extra, draw=1),
            segmented(ours, weights="twin", against=""),
        ]
        _, (comparison,) = summarize(cells, seed=0)
        assert comparison.difference.mean == 0
        assert comparison.p == 1

    def test_holm_over_all_tasks(self, segmented, random_values):
        cells = []
        for task, better in (("easy", 0.4), ("hard", 0.0)):
            cells.append(segmented(random_values(9, 0, better), task=task))
            cells.append(segmented(random_values(9, 1), weights="twin", against="", task=task))
        _, comparisons = summarize(cells, seed=0)
        p = sorted((c.p, c.p_holm) for c in comparisons)
        assert p[0][1] == pytest.approx(min(1, 2 * p[0][0]))
        assert p[1][1] == pytest.approx(max(p[0][1], p[1][0]))


ROWS = [
    (f"p{i // 2}", i % 2, ((0.9, 0.1) if (i % 2 == 0) ^ (i % 5 == 0) else (0.2, 0.8)))
    for i in range(20)
]
"""Ten patients with a volume of each class; every fifth volume is mistaken."""


class TestClassification:
    def test_values_are_those_of_the_metrics(self):
        rows, _ = summarize([classified(ROWS)], seed=0)
        truth = [t for _, t, _ in ROWS]
        scores = np.array([s for *_, s in ROWS])
        found = {row.metric: row for row in rows}
        assert found["balanced_accuracy"].mean == balanced_accuracy(truth, scores.argmax(1))
        assert found["auroc"].mean == auroc(truth, scores)
        assert found["auroc"].n == 10
        assert found["auroc"].ci_low <= found["auroc"].mean <= found["auroc"].ci_high

    def test_contributions_sum_to_the_balanced_accuracy(self):
        table = ClassifierTable([classified(ROWS)], "knn")
        everybody = np.ones((1, table.num_patients))
        expected = table.values("balanced_accuracy", everybody)[0]
        assert table.contributions().sum() == pytest.approx(expected)

    def test_equal_classifiers_do_not_differ(self):
        cells = [classified(ROWS), classified(ROWS, weights="twin", against="")]
        _, (comparison,) = summarize(cells, seed=0)
        assert comparison.p == 1
        assert (comparison.difference.low, comparison.difference.high) == (0, 0)

    def test_draws_are_averaged_and_patients_resampled(self):
        turned = [(p, t, s[::-1]) for p, t, s in ROWS]
        rows, _ = summarize([classified(ROWS), classified(turned, draw=1)], seed=0)
        found = {row.metric: row for row in rows}
        assert found["balanced_accuracy"].mean == pytest.approx(0.5)
        assert found["balanced_accuracy"].n == 10
        # Every patient is as often right as wrong, so patients do not differ.
        assert found["balanced_accuracy"].ci_low == pytest.approx(0.5)

    def test_calibration_stands_beside_discrimination(self):
        rows, _ = summarize([classified(ROWS)], seed=0)
        found = {row.metric: row for row in rows}
        truth, scores = [t for _, t, _ in ROWS], [s for *_, s in ROWS]
        assert found["brier"].mean == pytest.approx(brier(truth, scores))
        assert found["ece"].mean == pytest.approx(calibration_error(truth, scores))
        assert found["auprc"].mean == pytest.approx(auprc(truth, scores))
        assert {row.n for row in rows} == {10}

    def test_what_so_many_patients_can_show_is_told(self):
        wrong = [(p, t, s[::-1]) if p < "p5" else (p, t, s) for p, t, s in ROWS]
        cells = [classified(ROWS), classified(wrong, weights="twin", against="")]
        _, (comparison,) = summarize(cells, seed=0)
        a, b = (ClassifierTable([cell], "knn").contributions() for cell in cells)
        assert comparison.detectable == pytest.approx(detectable_difference(10 * (a - b)))
        assert comparison.smallest_p == 2 / 2**10

    def test_a_resample_without_a_class_is_left_out(self):
        rows = [("a", 0, (0.9, 0.1)), ("b", 1, (0.1, 0.9))]
        summary, _ = summarize([classified(rows)], seed=0)
        found = {row.metric: row for row in summary}
        assert found["auroc"].ci_low == 1

from __future__ import annotations

from dataclasses import replace

import pytest

from core_mri.metrics import Interval
from downstream.evaluation.report import build_report
from downstream.evaluation.results import Outcome
from downstream.evaluation.summary import Comparison, SummaryRow, summarize
from downstream.evaluation.verdict import verdict

CONFIG_OUT = "a-private-folder"


def comparison(n, difference=0.1, p_holm=0.01) -> Comparison:
    p = None if n < 8 else p_holm
    return Comparison(
        task="organs",
        weights="ours",
        twin="twin",
        method="frozen",
        k=5,
        metric="dice",
        difference=Interval(difference, difference - 0.05, difference + 0.05, n),
        p=p,
        p_holm=p,
    )


ROW = SummaryRow(
    task="organs", weights="ours", method="frozen", k=5, metric="dice",
    mean=0.71, n=10, ci_low=0.6, ci_high=0.8,
)  # fmt: skip


TWIN_ROW = replace(ROW, weights="twin", mean=0.61)


@pytest.fixture
def config(suite_config, organs, tmp_path):
    return suite_config(weights={"ours": "x"}, tasks=(organs,), k=(5,), out=tmp_path / CONFIG_OUT)


class TestVerdict:
    def test_few_patients_are_described_without_a_p_value(self, config):
        text = verdict(config, [ROW, TWIN_ROW], [comparison(7)], [False])
        assert "descriptive only, fewer than 8" in text
        assert "7 test patients" in text
        assert "p =" not in text

    def test_eight_patients_carry_p_and_interval(self, config):
        text = verdict(config, [ROW, TWIN_ROW], [comparison(8)], [False])
        assert "Dice 0.71, its random twin 0.61; difference +0.10" in text
        assert "+0.05 to +0.15" in text
        assert "p = 0.010 after Holm" in text
        assert "no difference shown" not in text

    def test_a_difference_that_is_not_shown_is_said(self, config):
        text = verdict(config, [ROW, TWIN_ROW], [comparison(9, -0.02, 0.6)], [False])
        assert "its random twin 0.61; difference -0.02" in text
        assert "no difference shown" in text

    def test_synthetic_scans_are_called_so(self, config):
        assert "synthetic" not in verdict(config, [ROW, TWIN_ROW], [comparison(8)], [False])
        assert "All scans are synthetic" in verdict(
            config, [ROW, TWIN_ROW], [comparison(8)], [True, True]
        )
        assert "Some scans are synthetic" in verdict(
            config, [ROW, TWIN_ROW], [comparison(8)], [True, False]
        )

    def test_scores_of_validation_patients_are_called_so(self, config):
        chosen = replace(config, tasks=tuple(replace(t, test_split="val") for t in config.tasks))
        told = "it is no evidence"
        assert told not in verdict(config, [ROW, TWIN_ROW], [comparison(8)], [False])
        assert told in verdict(chosen, [ROW, TWIN_ROW], [comparison(8)], [False])

    def test_nothing_finished_is_said(self, config):
        assert "no comparison could be finished" in verdict(config, [], [], [])


class TestPage:
    def page(self, config, outcomes, tmp_path):
        rows, comparisons = summarize(outcomes, seed=0)
        return build_report(config, outcomes, rows, comparisons, [tmp_path]).html()

    def test_has_its_sections_and_no_path_of_this_machine(
        self, config, tmp_path, segmented, random_values
    ):
        cells = [
            replace(segmented(random_values(9, 0)), leakage="Not checked.", synthetic=True),
            segmented(random_values(9, 1), weights="twin", against=""),
            Outcome(
                key="gone", task="organs", weights="ours", against="twin", k=9, draw=0,
                error="DATA-02: broken",
            ),
        ]  # fmt: skip
        html = self.page(config, cells, tmp_path)
        for heading in ("Results", "Data and leakage", "Failed cells", "Configuration", "Limits"):
            assert heading in html
        assert "DATA-02: broken" in html
        assert "Not checked." in html
        assert CONFIG_OUT not in html
        assert str(config.registry) not in html

    def test_few_patients_are_marked_in_table_and_limits(
        self, config, tmp_path, segmented, random_values
    ):
        cells = [
            segmented(random_values(5, 0)),
            segmented(random_values(5, 1), weights="twin", against=""),
        ]
        html = self.page(config, cells, tmp_path)
        assert "Descriptive, without p-values" in html
        assert "support no claim" in html

    def test_several_k_give_an_efficiency_curve(self, config, tmp_path, segmented, random_values):
        cells = [
            replace(
                cell, k=k, key=f"{cell.key}-{k}", scores=tuple(replace(s, k=k) for s in cell.scores)
            )
            for k in (1, 5)
            for cell in (
                segmented(random_values(8, k)),
                segmented(random_values(8, k + 1), weights="twin", against=""),
            )
        ]
        html = self.page(replace(config, k=(1, 5)), cells, tmp_path)
        assert "mean Dice over test patients against the number of labelled volumes" in html


class TestLikeness:
    """Distances that the registry keeps of the same task and weights stand in the report."""

    @pytest.fixture
    def known(self, suite_config, organs, tmp_path):
        import core_mri
        from core_mri.weights.folder import read_config
        from data_registry import Registry
        from data_registry.commits import commit, sole_writer
        from data_registry.schema import SimilarityRow

        core_mri.save_model(core_mri.create_model("vit_micro_patch8"), tmp_path / "weights")
        registry = Registry.create(tmp_path / "registry")
        row = SimilarityRow(
            when="2026-01-02T03:04:05Z", task=organs.name, task_digest="t", pretraining="ours",
            pretraining_digest=read_config(tmp_path / "weights")["sha256"], encoder="e",
            shared_patients=0, features="ours", distance="KID", closer="lower", value=0.125,
            low=0.1, high=0.15, null=0.001, null_high=0.01, slices=200, patients=9,
            pretraining_slices=1000, pretraining_patients=80, refused="",
        )  # fmt: skip
        with sole_writer(registry):
            commit(registry, {"similarities": [row, replace(row, pretraining_digest="another")]})
        return suite_config(
            weights={"ours": str(tmp_path / "weights")}, tasks=(organs,), k=(5,),
            out=tmp_path / CONFIG_OUT, registry=registry.path,
        )  # fmt: skip

    def test_shown(self, known, tmp_path):
        page = build_report(known, [], [ROW, TWIN_ROW], [comparison(9)], [tmp_path]).html()
        assert page.count("0.125") == 1
        assert "Likeness to the pretraining data" in page

    def test_other_tasks_show_nothing(self, known, organs):
        from core_mri.reports import Report
        from downstream.evaluation.likeness import HEADING, add_likeness

        report = Report("", "")
        add_likeness(report, replace(known, tasks=(replace(organs, name="other"),)))
        assert HEADING not in report.html()
        add_likeness(report, known)
        assert HEADING in report.html()

"""What an evaluation leaves for others: LaTeX, model cards, and the sections of the report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

import core_mri
from core_mri.errors import WeightsError
from core_mri.weights import update_card
from downstream.config import Running
from downstream.evaluation.latex import escaped, latex_table
from downstream.evaluation.suite import evaluate
from downstream.evaluation.summary import SummaryRow

ROW = SummaryRow(
    task="left_ventricle", weights="50% & more", method="frozen", k=5, metric="dice:a{b}",
    mean=0.71, n=10, ci_low=0.6, ci_high=0.8, p=0.0001, p_holm=0.0002,
)  # fmt: skip


class TestLatex:
    def test_every_special_character_is_escaped(self):
        found = escaped("a_b & 5% #1 {x} $y$ ~ ^ \\ <k>\n")
        assert re.sub(r"\\(text\w+\{\}|[&%$#_{}])", "", found) == "ab  5 1 x y    k "

    def test_a_row_a_line_and_a_rule_a_task(self):
        text = latex_table([ROW, replace(ROW, metric="dice"), replace(ROW, task="other", k=0)])
        assert text.count(r"\midrule") == 2
        body = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in body} == {8}
        assert r"left\_ventricle & 50\% \& more & frozen & 5 & dice:a\{b\} & 0.710" in text
        assert "$<$0.001" in text

    def test_one_patient_has_no_interval(self):
        nan = float("nan")
        row = replace(ROW, n=1, ci_low=nan, ci_high=nan, p=None, p_holm=None)
        assert "0.710 & -- & 1 & --" in latex_table([row])
        assert latex_table([]).count("rule") == 2

    @pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
    def test_compiles(self, tmp_path):
        page = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
        text = f"{page}\n{latex_table([ROW])}\\end{{document}}"
        (tmp_path / "t.tex").write_text(text)
        command = ["pdflatex", "-halt-on-error", "t.tex"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


class TestCards:
    @pytest.fixture
    def folder(self, micro, tmp_path):
        facts = {"summary": "A test.", "subjects": ["somebody-else"]}
        return core_mri.save_model(micro, tmp_path / "own", facts)

    def test_results_and_intervals_are_added_and_the_hash_holds(
        self, suite_config, sequences, folder
    ):
        before = json.loads((folder / "config.json").read_text())
        config = suite_config(tasks=(sequences,), weights={"own": str(folder)})
        out = evaluate(config, running=Running(update_cards=True))
        after = json.loads((folder / "config.json").read_text())
        assert after["sha256"] == before["sha256"]
        assert after["card"]["subjects"] == ["somebody-else"]
        card = (folder / "README.md").read_text()
        summary = json.loads((out / "results.json").read_text())["summary"]
        own = [row for row in summary if row["weights"] == "own"]
        assert len(after["card"]["evaluations"]) == len(own)
        for row in own:
            assert f"{row['ci_low']:.3f} to {row['ci_high']:.3f}" in card
        assert "sequence (synthetic)" in card
        assert "A test." in card
        core_mri.load_model(folder, device="cpu")  # checks the hash

    def test_a_second_evaluation_replaces_its_rows_and_keeps_others(
        self, suite_config, sequences, folder, tmp_path
    ):
        for number, name in enumerate(("first", "second", "first")):
            config = suite_config(
                tasks=(replace(sequences, name=name),), weights={"own": str(folder)},
                out=tmp_path / str(number),
            )  # fmt: skip
            evaluate(config, running=Running(update_cards=True))
        rows = json.loads((folder / "config.json").read_text())["card"]["evaluations"]
        tasks = [row["task"] for row in rows]
        assert tasks.count("first (synthetic)") == tasks.count("second (synthetic)")

    def test_nothing_is_written_unless_asked(self, suite_config, sequences, folder):
        before = (folder / "README.md").read_bytes(), (folder / "config.json").read_bytes()
        evaluate(suite_config(tasks=(sequences,), weights={"own": str(folder)}))
        assert before == (
            (folder / "README.md").read_bytes(),
            (folder / "config.json").read_bytes(),
        )
        assert b"## Transfer" not in before[0]

    def test_no_weights_folder(self, tmp_path):
        with pytest.raises(WeightsError) as caught:
            update_card(tmp_path, {})
        assert caught.value.code == "WEIGHTS-01"


class TestSections:
    def test_classification_has_probabilities_curves_and_power(self, suite_config, sequences):
        config = suite_config(tasks=(sequences,), per_class=(1, 3), draws=2)
        html = (evaluate(config) / "report.html").read_text()
        for text in (
            "ECE with temperature",
            "labelled volumes per class, with 95 % intervals",
            "What these patients can show",
            "smallest findable",
            "test examples in each of 2 draws",
        ):
            assert text in html, text

    def test_few_patients_are_told_that_nothing_can_be_shown(
        self, suite_config, organs, segmented, random_values, tmp_path
    ):
        from downstream.evaluation.report import build_report
        from downstream.evaluation.summary import summarize

        cells = [
            segmented(random_values(4, 0)),
            segmented(random_values(4, 1), weights="twin", against=""),
        ]
        config = suite_config(weights={"ours": "x"}, tasks=(organs,), k=(5,))
        html = build_report(config, cells, *summarize(cells, seed=0), [tmp_path]).html()
        assert "Too few test patients for any significant difference, however large" in html
        assert "organs (4)" in html

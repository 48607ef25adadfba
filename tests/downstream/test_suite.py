from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import core_mri
from core_mri.errors import ConfigError, CoreMRIError, DataError, Interrupted, RunError
from core_mri.files.nifti import read_nifti
from core_mri.metrics import dice
from core_mri.models.encoder import Encoder
from core_mri.physics.phantoms import LABELS
from core_mri.runs import Run
from data_registry.governance.uses import uses_of
from downstream.adapt import random_twin
from downstream.cohort import load_cohort
from downstream.config import FinetuneConfig, Task
from downstream.evaluation import cells, suite
from downstream.evaluation.cells import Cell
from downstream.evaluation.setup import contenders
from downstream.evaluation.suite import evaluate, finetune, rehearse
from downstream.recipe import Recipe
from downstream.segmentation.data import pair_labels

CELL_KEYS = {
    "task", "weights", "twin", "method", "k", "draw", "seed", "patient", "structure", "metric",
    "value", "unit",
}  # fmt: skip
SUMMARY_KEYS = {
    "task", "weights", "method", "k", "metric", "mean", "n", "ci_low", "ci_high", "p", "p_holm",
    "unit",
}  # fmt: skip


def results(out):
    return json.loads((out / "results.json").read_text())


@pytest.fixture
def forbid_cells(monkeypatch):
    """From here on, computing a cell is an error."""

    def forbid():
        def fail(*arguments, **options):
            raise AssertionError("computed again")

        monkeypatch.setattr(suite, "run_cell", fail)

    return forbid


@pytest.fixture(scope="module")
def finished(registry, weights, tmp_path_factory):
    task = Task(
        name="organs",
        kind="segmentation",
        where="sequence = 'T1'",
        labels={name: value for value, name in LABELS["abdomen"].items()},
    )
    recipe = Recipe(
        image_size=32, num_validation=2, validate_every=5, batch_size=4, num_levels=2,
        learning_rate=1e-2,
    )  # fmt: skip
    config = FinetuneConfig(
        registry=registry.path,
        out=tmp_path_factory.mktemp("finetune") / "run",
        weights=str(weights),
        task=task,
        k=3,
        steps=20,
        device="cpu",
        recipe=recipe,
    )
    return config, finetune(config)


class TestFinetune:
    def test_leaves_the_documented_folder(self, finished):
        _, out = finished
        for name in (
            "config.yaml", "environment.json", "metrics.jsonl", "results.json", "results.csv",
            "summary.csv", "report.html", "weights/model.safetensors",
        ):  # fmt: skip
            assert (out / name).is_file(), name
        assert len((out / "metrics.jsonl").read_text().splitlines()) == 20

    def test_results_follow_the_schema(self, finished):
        _, out = finished
        content = results(out)
        assert content["schema"] == 1
        assert {frozenset(cell) for cell in content["cells"]} == {frozenset(CELL_KEYS)}
        assert {frozenset(row) for row in content["summary"]} == {frozenset(SUMMARY_KEYS)}
        assert {cell["twin"] for cell in content["cells"]} == {True, False}
        assert not content["failed"]
        with (out / "results.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(content["cells"])

    def test_every_test_patient_and_structure_is_scored_once(self, finished, registry):
        config, out = finished
        patients = {r.subject_id for r in load_cohort(registry, config.task).test}
        for twin in (True, False):
            found = [
                (c["patient"], c["structure"], c["metric"])
                for c in results(out)["cells"]
                if c["twin"] is twin
            ]
            assert len(found) == len(set(found)) == 3 * len(patients) * len(config.task.labels)
            assert {patient for patient, _, _ in found} == patients
            assert {metric for _, _, metric in found} == {"dice", "nsd", "hd95"}

    def test_masks_lie_on_the_stored_grid_and_give_the_scores(self, finished, registry):
        config, out = finished
        pairs = pair_labels(registry, load_cohort(registry, config.task), config.task)
        scores = {
            (c["patient"], c["structure"]): c["value"]
            for c in results(out)["cells"]
            if not c["twin"] and c["metric"] == "dice"
        }
        for pair in pairs.test:
            mask = read_nifti(out / "predictions" / f"{pair.image.volume_id}.nii.gz", kind="label")
            reference = registry.read(pair.label)
            assert mask.same_grid(reference)
            for name, value in config.task.labels.items():
                expected = dice(reference.array == value, mask.array == value)
                assert scores[pair.image.subject_id, name] == pytest.approx(expected)

    def test_the_model_can_be_loaded_and_gives_the_same_masks(self, finished, registry):
        config, out = finished
        model = core_mri.load_model(out, device="cpu")
        assert list(model.labels.values()) == list(config.task.labels)
        row = load_cohort(registry, config.task).test[0]
        mask = core_mri.Predictor(model).segment(registry.read(row))
        kept = read_nifti(out / "predictions" / f"{row.volume_id}.nii.gz", kind="label")
        assert (np.asarray(mask.array) == kept.array).mean() > 0.999

    def test_the_card_says_from_what(self, finished):
        _, out = finished
        card = (out / "weights" / "README.md").read_text()
        assert "Segments liver" in card
        assert "phantoms (CC0-1.0)" in card
        assert "All scans are synthetic" in card
        assert "license: cc0-1.0" in card
        assert "- commercial: yes" in card
        assert "does not tell the licence of their data" in card  # of the weights it began with

    def test_the_registry_knows_of_it(self, finished, registry):
        _, out = finished
        saved = json.loads((out / "weights" / "config.json").read_text())
        everybody = {row.subject_id for row in registry.volumes("split = 'train'")}
        uses = uses_of(registry.path, everybody)
        assert [use["run"] for use in uses if use["sha256"] == saved["sha256"]] == ["finetune"]

    def test_running_it_again_computes_nothing(self, finished, forbid_cells):
        config, out = finished
        before = results(out)
        forbid_cells()
        finetune(config)
        assert results(out) == before

    def test_another_configuration_is_refused(self, finished):
        config, _ = finished
        with pytest.raises(ConfigError, match="seed: 0 -> 1") as caught:
            finetune(replace(config, seed=1))
        assert caught.value.code == "CONFIG-04"

    def test_report_has_pictures_and_says_synthetic(self, finished):
        html = (finished[1] / "report.html").read_text()
        assert "Worst, median and best" in html
        assert "synthetic phantom" in html
        assert html.count("data:image/") >= 4


class TestReproducibility:
    def test_same_seed_same_results(self, finetune_config, tmp_path):
        config = finetune_config(adaptation="full", steps=2)
        first = finetune(replace(config, out=tmp_path / "first"))
        second = finetune(replace(config, out=tmp_path / "second"))
        for name in ("results.json", "results.csv", "summary.csv"):
            assert (first / name).read_bytes() == (second / name).read_bytes()

    def test_the_order_of_the_catalogue_does_not_matter(
        self, finetune_config, tmp_path, monkeypatch
    ):
        from data_registry.catalogue import Registry

        config = finetune_config(steps=2)
        first = finetune(replace(config, out=tmp_path / "first"))
        volumes, labels_of = Registry.volumes, Registry.labels_of
        monkeypatch.setattr(Registry, "volumes", lambda *a, **k: volumes(*a, **k)[::-1])
        monkeypatch.setattr(Registry, "labels_of", lambda *a: labels_of(*a)[::-1])
        second = finetune(replace(config, out=tmp_path / "second"))
        assert results(first) == results(second)

    def test_interrupted_and_resumed_is_as_uninterrupted(
        self, finetune_config, tmp_path, monkeypatch
    ):
        config = finetune_config(steps=6)
        whole = finetune(replace(config, out=tmp_path / "whole"))
        log_metrics = Run.log_metrics

        def stop_after_three(self, step, **values):
            log_metrics(self, step, **values)
            if step == 2:
                self.request_stop()

        config = replace(config, out=tmp_path / "stopped")
        with monkeypatch.context() as patch:
            patch.setattr(Run, "log_metrics", stop_after_three)
            with pytest.raises(Interrupted, match="--resume"):
                finetune(config)
        finetune(config, resume=True)
        assert results(config.out) == results(whole)
        assert len((config.out / "metrics.jsonl").read_text().splitlines()) == 6

    def test_asked_to_stop_while_examples_are_read_it_does_one_step(
        self, finetune_config, monkeypatch
    ):
        """The twin is the second cell; its training would go on for its six steps."""
        runs, made = [], []
        enter, make = Run.__enter__, cells.make_trainer

        def entered(run):
            runs.append(run)
            return enter(run)

        def asked(*given):
            made.append(given)
            if len(made) == 2:
                runs[0].request_stop()
            return make(*given)

        monkeypatch.setattr(Run, "__enter__", entered)
        monkeypatch.setattr(cells, "make_trainer", asked)
        config = finetune_config(steps=6)
        with pytest.raises(Interrupted, match="--resume"):
            finetune(config)
        (metrics,) = config.out.glob("cells/*twin*/metrics.jsonl")
        assert len(metrics.read_text().splitlines()) == 1


class TestTooFew:
    def test_k_beyond_the_training_patients_names_task_and_split(self, suite_config):
        with pytest.raises(DataError, match=r"organs, training split: 99 labelled volumes"):
            rehearse(suite_config(k=(1, 99)))

    def test_an_optional_task_without_patients_is_empty(self, suite_config, organs, registry):
        (one, *_) = load_cohort(registry, organs).train
        where = f"subject_id = '{one.subject_id}'"
        lonely = replace(organs, name="lonely", where=where, optional=True)
        config = suite_config(tasks=(organs, lonely), k=(1,), draws=1)
        assert any(line.startswith("task lonely: DATA-09") for line in rehearse(config))
        content = results(evaluate(config))
        assert not content["failed"]
        assert "different patients" in content["empty"][0]["why"]
        rows = [row for row in content["summary"] if row["task"] == "lonely"]
        assert {(row["n"], row["mean"]) for row in rows} == {(0, None)}
        with pytest.raises(DataError, match="different patients"):
            rehearse(replace(config, tasks=(replace(lonely, optional=False),)))


class TestEvaluate:
    def test_all_cells_and_one_report(self, suite_config):
        config = suite_config()
        out = evaluate(config)
        content = results(out)
        cells = {(c["task"], c["weights"], c["k"], c["draw"]) for c in content["cells"]}
        assert len(cells) == 2 * 2 * 2 + 2  # organs: weights, k, draws; sequence: weights
        assert not content["failed"]
        metrics = {(row["task"], row["metric"]) for row in content["summary"]}
        assert {
            ("organs", "dice"),
            ("sequence", "auroc"),
            ("sequence", "balanced_accuracy"),
        } < metrics
        assert (out / "report.html").is_file()
        assert not list(out.glob("cells/*/checkpoints"))

    def test_a_failed_cell_is_recorded_and_tried_again(self, suite_config, monkeypatch):
        config = suite_config(k=(1,), draws=1)
        run_cell = suite.run_cell

        def failing(cell, *arguments, **options):
            if cell.task.kind == "segmentation" and cell.against:
                raise RunError("RUN-01", "the loss was not finite.")
            return run_cell(cell, *arguments, **options)

        monkeypatch.setattr(suite, "run_cell", failing)
        out = evaluate(config)
        (failed,) = results(out)["failed"]
        assert "RUN-01" in failed["error"]
        assert {c["task"] for c in results(out)["cells"]} == {"organs", "sequence"}
        assert "RUN-01" in (out / "report.html").read_text()

        computed = []

        def counting(cell, *arguments, **options):
            computed.append(cell.key)
            return run_cell(cell, *arguments, **options)

        monkeypatch.setattr(suite, "run_cell", counting)
        evaluate(config)
        assert computed == [failed["cell"]]
        assert not results(out)["failed"]

    def test_missing_weights_and_an_impossible_task_lose_nothing(
        self, suite_config, weights, organs, sequences, tmp_path
    ):
        nowhere = replace(organs, name="nowhere", where="region = 'moon'")
        config = suite_config(
            weights={"gone": str(tmp_path / "gone"), "micro": str(weights)},
            tasks=(nowhere, sequences),
        )
        content = results(evaluate(config))
        errors = " ".join(failed["error"] for failed in content["failed"])
        assert "WEIGHTS-01" in errors
        assert "DATA-09" in errors
        assert {cell["weights"] for cell in content["cells"]} == {"micro", "random vit_32x2_patch8"}

    def test_the_order_of_structures_is_part_of_a_cell(self, organs, recipe):
        """They are numbered in it, so a head starts otherwise."""
        cell = Cell(
            task=organs, weights="w", against="t", fingerprint="f", scans="s", k=1, seed=0,
            recipe=recipe,
        )  # fmt: skip
        turned = replace(organs, labels=dict(reversed(organs.labels.items())))
        assert replace(cell, task=turned).key != cell.key == replace(cell, weights="x").key

    def test_cells_of_other_runs_are_reused(
        self, suite_config, finetune_config, sequences, tmp_path, forbid_cells
    ):
        organs_run = finetune(finetune_config(steps=2, k=1, out=tmp_path / "organs"))
        sequence_run = finetune(finetune_config(task=sequences, out=tmp_path / "sequence"))
        forbid_cells()
        config = suite_config(
            k=(1,), draws=1, weights={"renamed": str(finetune_config().weights)},
            reuse=(organs_run, sequence_run),
        )  # fmt: skip
        content = results(evaluate(config))
        assert not content["failed"]
        assert {c["weights"] for c in content["cells"]} == {"renamed", "random vit_32x2_patch8"}

    def test_replaced_weights_are_computed_again(self, suite_config, sequences, tmp_path, micro):
        folder = core_mri.save_model(micro, tmp_path / "own")
        config = suite_config(tasks=(sequences,), weights={"own": str(folder)})
        before = {path.name for path in (evaluate(config) / "cells").glob("*.json")}
        core_mri.save_model(random_twin(micro, 99), folder)
        after = {path.name for path in (evaluate(config) / "cells").glob("*.json")}
        assert len(after - before) == 1


class TestContenders:
    def test_one_twin_per_architecture_and_distinct_names(self, suite_config, micro, tmp_path):
        other = Encoder(replace(micro.config, mean=0.5))
        folders = {
            name: str(core_mri.save_model(encoder, tmp_path / name))
            for name, encoder in (("a", micro), ("b", random_twin(micro, 3)), ("c", other))
        }
        found = list(contenders(suite_config(weights=folders)))
        assert [contender.against for contender in found] == [
            "random vit_32x2_patch8",
            "random vit_32x2_patch8",
            "random vit_32x2_patch8 of c",
            "",
            "",
        ]
        twins = {contender.name: contender for contender in found if not contender.against}
        assert twins.keys() == {contender.against for contender in found if contender.against}
        assert twins["random vit_32x2_patch8 of c"].encoder.config == other.config


class TestLeakage:
    @pytest.fixture
    def seen(self, registry, organs, micro, tmp_path):
        """Weights whose card lists a test patient."""
        patient = load_cohort(registry, organs).test[0].subject_id
        return core_mri.save_model(micro, tmp_path / "seen", {"subjects": [patient, "other"]})

    def test_overlap_is_refused(self, finetune_config, seen):
        with pytest.raises(ConfigError, match="were pretraining patients of seen") as caught:
            finetune(finetune_config(weights=str(seen)))
        assert caught.value.code == "CONFIG-05"

    def test_a_reason_allows_it_and_is_reported(self, finetune_config, seen, sequences):
        config = finetune_config(
            weights=str(seen), task=sequences, allow_overlap="a test of the report"
        )
        html = (finetune(config) / "report.html").read_text()
        assert "OVERLAP: 1 of" in html
        assert "a test of the report" in html

    def test_a_card_without_patients_is_said(self, finetune_config, micro, sequences, tmp_path):
        folder = core_mri.save_model(micro, tmp_path / "unknown")
        out = finetune(finetune_config(weights=str(folder), task=sequences))
        assert "lists no pretraining patients" in (out / "report.html").read_text()


class TestFailures:
    def test_label_outside_the_list(self, finetune_config, organs):
        with pytest.raises(DataError) as caught:
            finetune(finetune_config(task=replace(organs, labels={"liver": 1})))
        assert caught.value.code == "DATA-06"

    def test_too_few_volumes(self, finetune_config):
        with pytest.raises(DataError, match="500 labelled volumes") as caught:
            finetune(finetune_config(k=500))
        assert caught.value.code == "DATA-09"

    def test_wrong_inputs_leave_no_folder_behind(self, finetune_config, organs, tmp_path):
        for change, code in (
            ({"weights": str(tmp_path / "nothing")}, "WEIGHTS-01"),
            ({"registry": tmp_path / "nothing"}, "DATA-08"),
            ({"task": replace(organs, where="region = 'moon'")}, "DATA-09"),
        ):
            config = finetune_config(**change)
            with pytest.raises(CoreMRIError) as caught:
                finetune(config)
            assert caught.value.code == code
            assert not config.out.exists()

    def test_weights_replaced_under_a_started_run(self, finetune_config, tmp_path, micro):
        folder = core_mri.save_model(micro, tmp_path / "own")
        config = finetune_config(weights=str(folder), steps=2)
        finetune(config)
        core_mri.save_model(random_twin(micro, 99), folder)
        with pytest.raises(ConfigError, match="have changed since") as caught:
            finetune(config)
        assert caught.value.code == "CONFIG-04"

    def test_slices_as_shots(self, finetune_config, recipe):
        config = finetune_config(recipe=replace(recipe, shots_unit="slices"), steps=2)
        assert results(finetune(config))["summary"][0]["n"] > 0


class TestRehearse:
    def test_tells_the_plan_and_writes_nothing(self, suite_config):
        config = suite_config()
        lines = rehearse(config)
        assert any("organs: train" in line for line in lines)
        assert "10 cells" in lines[-1]
        assert not config.out.exists()

    def test_finds_what_would_fail(self, finetune_config):
        with pytest.raises(DataError):
            rehearse(finetune_config(k=500))

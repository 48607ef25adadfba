"""Whole classification cells: every level, few labels, the released classifier, Predictor."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import core_mri
from core_mri.errors import ConfigError, Interrupted, WeightsError
from core_mri.metrics import auprc, auroc, brier, calibration_error
from core_mri.models.classifier import AttentionPool, Classifier
from core_mri.runs import Run
from core_mri.training.probes import linear_probe
from downstream.classification.attention import AttentionTrainer, Bag
from downstream.classification.features import Tokens
from downstream.cohort import load_cohort
from downstream.evaluation.results import load_outcome
from downstream.evaluation.suite import evaluate, finetune

METHODS = ("linear probe", "knn", "attention")


def results(out):
    return json.loads((out / "results.json").read_text())


def outcomes(out):
    paths = sorted((out / "cells").glob("*.json"))
    return [load_outcome(out / "cells", path.stem) for path in paths]


@pytest.fixture
def by_patient(registry, sequences, tmp_path):
    """Healthy and ill patients, T1 volumes of whom look alike: the label is that of a table."""
    rows = load_cohort(registry, sequences).rows
    patients = sorted({row.subject_id for row in rows})
    lines = [f"{p},{'ill' if i % 2 else 'well'}" for i, p in enumerate(patients)]
    path = tmp_path / "labels.csv"
    path.write_text("subject,finding\n" + "\n".join(lines) + "\n")
    return replace(
        sequences, name="finding", table=path, target="finding", level="patient", methods=METHODS
    )


class TestWholeCells:
    @pytest.mark.parametrize("level", ["slice", "volume"])
    def test_every_method_tells_sequences_apart(self, finetune_config, sequences, level, recipe):
        task = replace(sequences, level=level, methods=METHODS)
        recipe = replace(recipe, batch_size=8, validate_every=10)
        out = finetune(finetune_config(task=task, steps=40, recipe=recipe))
        found = {
            (row["method"], row["metric"]): row["mean"]
            for row in results(out)["summary"]
            if row["weights"] == "micro"
        }
        for method in ("linear probe", "knn", "attention-frozen"):
            assert found[method, "balanced_accuracy"] > 0.8, method
            assert found[method, "auroc"] > 0.9, method
            assert 0 <= found[method, "ece"] < 0.3
        assert {row["k"] for row in results(out)["summary"]} == {0}

    def test_scores_are_those_of_the_stored_probabilities(self, finetune_config, sequences):
        out = finetune(finetune_config(task=sequences))
        for outcome in outcomes(out):
            for method in ("linear probe", "knn"):
                rows = [row for row in outcome.probed if row.method == method]
                truth = [row.truth for row in rows]
                raw, calibrated = [r.scores for r in rows], [r.calibrated for r in rows]
                found = {s.metric: s.value for s in outcome.scores if s.method == method}
                assert found["auroc"] == pytest.approx(auroc(truth, raw))
                assert found["auprc"] == pytest.approx(auprc(truth, raw))
                assert found["ece"] == pytest.approx(calibration_error(truth, calibrated))
                assert found["ece_uncalibrated"] == pytest.approx(calibration_error(truth, raw))
                assert found["brier"] == pytest.approx(brier(truth, calibrated))

    def test_a_patient_is_one_example(self, finetune_config, by_patient, registry, sequences):
        out = finetune(finetune_config(task=by_patient, steps=2))
        test = {row.subject_id for row in load_cohort(registry, sequences).test}
        for outcome in outcomes(out):
            assert {row.example for row in outcome.probed} == test
            assert len(outcome.probed) == len(METHODS) * len(test)
            assert outcome.num_volumes["test"] == 2 * len(test)

    def test_few_labels_per_class_and_draws(self, suite_config, sequences):
        config = suite_config(tasks=(sequences,), per_class=(1, 3, 0), draws=2)
        out = evaluate(config)
        content = results(out)
        assert not content["failed"]
        cells = {(c["weights"], c["k"], c["draw"]) for c in content["cells"]}
        assert len(cells) == 2 * (2 + 2 + 1)
        for outcome in outcomes(out):
            if outcome.k:
                assert outcome.num_volumes["train"] == 2 * outcome.k
                assert outcome.num_volumes["val"] <= 2 * outcome.k
        # An encoder and its twin see the same patients.
        for k in (1, 3):
            for draw in (0, 1):
                seen = {o.patients["train"] for o in outcomes(out) if (o.k, o.draw) == (k, draw)}
                assert len(seen) == 1

    def test_too_few_of_a_class_fail_their_cells_only(self, suite_config, sequences):
        content = results(evaluate(suite_config(tasks=(sequences,), per_class=(1, 500), draws=1)))
        assert len(content["failed"]) == 2
        assert "500 labelled examples of class T1" in content["failed"][0]["error"]
        assert {c["k"] for c in content["cells"]} == {1}

    def test_same_seed_same_numbers_and_a_moving_encoder_moves(self, finetune_config, sequences,
                                                               tmp_path, recipe):  # fmt: skip
        task = replace(sequences, methods=("attention",))
        found = {}
        recipe = replace(recipe, slices_per_example=3)
        for name, adaptation in (("a", "full"), ("b", "full"), ("c", "head")):
            config = finetune_config(
                task=task, adaptation=adaptation, steps=3, out=tmp_path / name, recipe=recipe
            )
            out = finetune(config)
            found[name] = (out / "results.json").read_bytes()
        assert found["a"] == found["b"]
        moved = core_mri.load_model(tmp_path / "a", device="cpu").encoder.state_dict()
        still = core_mri.load_model(tmp_path / "c", device="cpu").encoder.state_dict()
        first = core_mri.load_model(finetune_config().weights, device="cpu").state_dict()
        assert all(torch.equal(still[name], first[name]) for name in first)
        assert not all(torch.equal(moved[name], first[name]) for name in first)

    def test_interrupted_and_resumed_is_as_uninterrupted(
        self, finetune_config, sequences, tmp_path, monkeypatch
    ):
        task = replace(sequences, methods=("attention",))
        config = finetune_config(task=task, adaptation="full", steps=4)
        whole = finetune(replace(config, out=tmp_path / "whole"))
        log_metrics = Run.log_metrics

        def stop_after_two(self, step, **values):
            log_metrics(self, step, **values)
            if step == 1:
                self.request_stop()

        with monkeypatch.context() as patch:
            patch.setattr(Run, "log_metrics", stop_after_two)
            with pytest.raises(Interrupted, match="--resume"):
                finetune(config)
        finetune(config, resume=True)
        assert results(config.out) == results(whole)


class TestRelease:
    @pytest.mark.parametrize(
        ("methods", "adaptation"),
        [
            (("linear probe", "knn"), "frozen"),
            (("knn", "attention"), "frozen"),
            (("attention",), "lora"),
            (("attention",), "adapters"),
        ],
    )
    def test_predictor_says_what_the_report_scored(
        self, finetune_config, sequences, registry, methods, adaptation
    ):
        task = replace(sequences, methods=methods)
        out = finetune(finetune_config(task=task, adaptation=adaptation, steps=4))
        model = core_mri.load_model(out, device="cpu")
        assert isinstance(model, Classifier)
        (outcome,) = [o for o in outcomes(out) if o.against]
        name = "linear probe" if methods[0] == "linear probe" else f"attention-{adaptation}"
        stated = {row.example: row.calibrated for row in outcome.probed if row.method == name}
        predictor = core_mri.Predictor(model)
        for row in load_cohort(registry, sequences).test[:3]:
            found = predictor.classify(registry.read(row))
            assert found.classes == ("T1", "T2")
            assert found.probabilities == pytest.approx(stated[row.volume_id], abs=2e-3)

    def test_patients_are_lists_of_volumes(self, finetune_config, by_patient, registry):
        out = finetune(finetune_config(task=by_patient, steps=2))
        predictor = core_mri.Predictor(core_mri.load_model(out, device="cpu"))
        rows = load_cohort(registry, by_patient).test
        own = [registry.read(row) for row in rows if row.subject_id == rows[0].subject_id]
        found = predictor.classify(own)
        assert found.probabilities.shape == (2,)
        turned = predictor.classify(own[::-1]).probabilities
        assert turned == pytest.approx(found.probabilities, abs=1e-5)

    def test_slices_get_a_row_each(self, finetune_config, sequences, registry):
        out = finetune(finetune_config(task=replace(sequences, level="slice")))
        predictor = core_mri.Predictor(core_mri.load_model(out, device="cpu"))
        volume = registry.read(load_cohort(registry, sequences).test[0])
        found = predictor.classify(volume).probabilities
        assert found.shape == (6, 2)
        assert found.sum(1) == pytest.approx(np.ones(6), abs=1e-5)
        with pytest.raises(ConfigError, match="one slice at a time"):
            predictor.classify([volume, volume])

    def test_the_card_says_what_it_tells(self, finetune_config, sequences):
        card = (finetune(finetune_config(task=sequences)) / "weights" / "README.md").read_text()
        assert "Tells T1, T2 (task sequence, one class per volume), fine-tuned from micro" in card
        assert "Classes of a volume: T1, T2." in card
        assert "All scans are synthetic" in card

    def test_its_encoder_can_be_taken_further(self, finetune_config, sequences, tmp_path):
        out = finetune(finetune_config(task=sequences))
        again = finetune_config(weights=str(out), task=sequences, out=tmp_path / "again")
        assert results(finetune(again))["summary"]

    def test_an_encoder_classifies_nothing(self, micro, registry, sequences):
        volume = registry.read(load_cohort(registry, sequences).test[0])
        with pytest.raises(WeightsError, match="hold no classifier") as caught:
            core_mri.Predictor(micro).classify(volume)
        assert caught.value.code == "WEIGHTS-02"


class TestTokens:
    def test_means_of_slices_then_of_volumes(self, registry, sequences, micro):
        from core_mri.slice_grid import image_to_square
        from downstream.classification.examples import Example
        from downstream.cohort import read_image

        rows = load_cohort(registry, sequences).test[:2]
        tokens = Tokens(micro, "micro", registry, 32)
        means = tokens.means([Example(rows, "x"), Example(rows[1:], "x", 2)])
        own = []
        for row in rows:
            with torch.no_grad():
                own.append(micro(image_to_square(read_image(registry, row), 32)).cls)
        expected = torch.stack([part.mean(0) for part in own]).mean(0)
        assert torch.allclose(means[0], expected, atol=1e-5)
        assert torch.allclose(means[1], own[1][2], atol=1e-5)
        assert tokens.means([]).shape == (0, micro.embed_dim)


class TestAttention:
    def test_order_of_slices_does_not_matter_and_copies_change_nothing(self):
        torch.manual_seed(0)
        pool, vectors = AttentionPool(8, 4), torch.randn(5, 8)
        found = pool(vectors)
        assert torch.allclose(pool(vectors.flip(0)), found, atol=1e-6)
        assert torch.allclose(pool(vectors.repeat(3, 1)), found, atol=1e-6)
        assert torch.allclose(pool(vectors[:1]), vectors[0])

    def test_finds_the_one_slice_that_tells(self, micro, recipe):
        """One slice of ten is marked and tells the class; the others say it at random as loudly."""
        generator = torch.Generator().manual_seed(0)

        def bags(count):
            made = []
            for index in range(count):
                tokens = torch.randn(10, micro.embed_dim, generator=generator)
                tokens[:, 1] *= 3
                tokens[0, :2] = torch.tensor([8.0, 3.0 * (2 * (index % 2) - 1)])
                made.append(Bag(index % 2, [tokens], list))
            return made

        trainer = AttentionTrainer(
            micro, bags(200), bags(40), classes=("a", "b"), level="volume", adaptation="frozen",
            recipe=replace(recipe, batch_size=16, validate_every=20, learning_rate=1e-2),
            steps=150, seed=0,
        )  # fmt: skip
        for index in range(150):
            trainer.step(index)
        trainer.finish()
        test = bags(100)
        truth = torch.tensor([bag.label for bag in test])
        right = (trainer.probabilities(test).argmax(1) == truth).float().mean()
        assert right > 0.8
        means = [
            torch.stack([b.tokens[0].mean(0) for b in own]) for own in (trainer.training, test)
        ]
        labels = torch.tensor([bag.label for bag in trainer.training])
        by_mean = (linear_probe(means[0], labels, means[1]).argmax(1) == truth).float().mean()
        assert right > by_mean + 0.1

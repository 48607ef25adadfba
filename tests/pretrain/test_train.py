from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import core_mri
import pretrain
from core_mri.checkpoints import Checkpoints
from core_mri.config import save_config, to_mapping
from core_mri.errors import ConfigError, DataError, Interrupted, RunError
from core_mri.launch import Workers
from data_registry.governance.uses import uses_of
from pretrain.cli import main
from pretrain.dry_run import dry_run
from pretrain.objectives import create_objective
from pretrain.optimization import parameter_groups, schedules
from pretrain.train import Trainer, train
from tests.pretrain.conftest import only_losses_worker
from tests.workers import run_workers


def lines(config):
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def hexes(config):
    return [line["loss_hex"] for line in lines(config)]


class TestRun:
    def test_leaves_weights_metrics_results_and_report(self, finished):
        config, weights = finished
        assert weights == config.out / "weights"
        features = core_mri.load_model(weights)(torch.zeros(1, 1, 32, 32))
        assert features.cls.shape == (1, 128)
        assert [line["step"] for line in lines(config)] == list(range(6))
        for name in ("dino", "ibot", "koleo", "grad_norm", "dino_information", "learning_rate"):
            assert all(np.isfinite(line[name]) for line in lines(config))
        rows = json.loads((config.out / "results.json").read_text())["summary"]
        assert {(row["task"], row["weights"]) for row in rows} == {
            ("region", "pretrained"),
            ("region", "random"),
            ("region", "pixels"),
            ("region", "pretrained minus random"),
        }
        assert all(row["n"] == 4 and row["p"] is None for row in rows)
        assert "too few for a test" in (config.out / "report.html").read_text()
        workers = json.loads((config.out / "environment.json").read_text())["workers"]
        assert workers == [{"rank": 0, "pid": os.getpid()}]

    def test_the_registry_knows_of_it(self, finished):
        config, weights = finished
        saved = json.loads((weights / "config.json").read_text())
        uses = uses_of(config.registry, saved["card"]["subjects"][:1])
        (use,) = [use for use in uses if use["folder"] == str(weights.resolve())]
        assert (use["kind"], use["run"], use["sha256"]) == ("weights", "pretrain", saved["sha256"])

    def test_card_says_what_the_encoder_saw(self, finished):
        _, weights = finished
        card = json.loads((weights / "config.json").read_text())["card"]
        assert card["data"]["slices"] == 48
        assert card["data"]["subjects by region"] == {"brain": 4, "knee": 4}
        assert card["data"]["synthetic volumes"] == 8
        assert card["sources"] == [{"name": "phantoms", "licence": "CC0-1.0", "volumes": 8}]
        assert card["training"]["steps"] == 6

    def test_running_it_again_changes_nothing(self, finished):
        config, _ = finished
        before = hexes(config)
        train(config)
        assert hexes(config) == before

    def test_learns(self, tiny, only_losses):
        """The teacher moves away from the random twin, and every update changes the student."""
        config = tiny()
        trainer = Trainer(config, only_losses)
        start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        for step in range(3):
            trainer.step(step)
        moved = [k for k, v in trainer.model.state_dict().items() if not torch.equal(v, start[k])]
        assert any(name.startswith("student.encoder") for name in moved)
        assert any(name.startswith("teacher.encoder") for name in moved)
        assert "student.dino.prototypes.weight" in moved

    def test_prototypes_stay_while_they_are_frozen(self, tiny, only_losses):
        trainer = Trainer(tiny(optimizer={"freeze_prototypes_steps": 2}), only_losses)
        start = trainer.model.student["dino"].prototypes.weight.clone()
        trainer.step(0)
        trainer.step(1)
        assert torch.equal(trainer.model.student["dino"].prototypes.weight, start)


class TestResume:
    @pytest.mark.usefixtures("only_losses")
    @pytest.mark.parametrize("drop_path", [0.0, 0.3])
    def test_after_sigterm_losses_are_bit_identical(self, tiny, monkeypatch, drop_path):
        whole = tiny(drop_path=drop_path)
        train(whole)
        broken = replace(whole, out=whole.out.with_name("broken"))
        original = Trainer.step

        def stopped(self, step):
            if step == 3:  # between checkpoints
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, step)

        monkeypatch.setattr(Trainer, "step", stopped)
        with pytest.raises(Interrupted, match="--resume"):
            train(broken)
        assert len(lines(broken)) == 4
        monkeypatch.setattr(Trainer, "step", original)
        train(broken, resume=True)
        assert hexes(broken) == hexes(whole)
        ours, theirs = (
            (Checkpoints(config.out / "checkpoints").load() or (0, {}))[1]["model"]
            for config in (whole, broken)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    @pytest.mark.usefixtures("only_losses")
    def test_after_a_crash_it_goes_back_to_the_checkpoint(self, tiny, monkeypatch):
        whole = tiny()
        train(whole)
        broken = replace(whole, out=whole.out.with_name("broken"))
        original = Trainer.step

        def crashing(self, step):
            if step == 3:
                raise RuntimeError("lost")
            return original(self, step)

        monkeypatch.setattr(Trainer, "step", crashing)
        with pytest.raises(RuntimeError, match="lost"):
            train(broken)
        monkeypatch.setattr(Trainer, "step", original)
        train(broken)
        assert hexes(broken) == hexes(whole)

    @pytest.mark.usefixtures("only_losses")
    def test_other_configuration_is_refused_with_the_difference(self, tiny):
        config = tiny(steps=2)
        train(config)
        with pytest.raises(ConfigError, match="seed: 0 -> 1") as caught:
            train(replace(config, seed=1), resume=True)
        assert caught.value.code == "CONFIG-04"


class TestParts:
    @pytest.mark.parametrize(("centering", "drop_path"), [("sinkhorn", 0.3), ("softmax", 0.0)])
    def test_parts_give_the_gradients_of_the_whole(self, tiny, memory_slices, centering, drop_path):
        numbers, weights = [], []
        for micro_batch in (0, 4, 8):
            config = tiny(
                batch_size=16, micro_batch=micro_batch, drop_path=drop_path,
                objective={"centering": centering},
            )  # fmt: skip
            trainer = Trainer(config, memory_slices)
            numbers.append([dict(trainer.step(step)) for step in range(3)])
            weights.append(trainer.model.state_dict())
        for other in (1, 2):
            for name in ("loss", "dino", "ibot", "koleo", "grad_norm"):
                one, two = ([line[name] for line in numbers[i]] for i in (0, other))
                np.testing.assert_allclose(two, one, rtol=2e-5)
            for name, tensor in weights[0].items():
                torch.testing.assert_close(weights[other][name], tensor, rtol=1e-3, atol=1e-5)

    def test_a_size_that_cuts_groups_is_refused(self, tiny):
        with pytest.raises(ConfigError, match=r"micro_batch .* Try 4"):
            tiny(micro_batch=6)


class TestWorkers:
    @pytest.mark.parametrize(
        ("centering", "num_workers", "drop_path"),
        [
            ("sinkhorn", 2, 0.3),
            ("softmax", 2, 0.0),
            ("sinkhorn", 3, 0.3),
            ("sinkhorn", 4, 0.3),
        ],
    )
    def test_processes_have_the_losses_of_one(
        self, tiny, only_losses, tmp_path, centering, num_workers, drop_path
    ):
        """Three share four groups: one of them has two."""
        alone = tiny(batch_size=16, drop_path=drop_path, objective={"centering": centering})
        train(alone)
        shared = replace(alone, out=alone.out.with_name("shared"))
        payload = {"config": to_mapping(shared)}
        run_workers(
            only_losses_worker, tmp_path / "workers", only_losses, payload, num_workers=num_workers
        )
        for name in ("loss", "dino", "ibot", "koleo", "grad_norm", "ibot_information"):
            one, two = ([line[name] for line in lines(config)] for config in (alone, shared))
            np.testing.assert_allclose(two, one, rtol=1e-4)
        workers = json.loads((shared.out / "environment.json").read_text())["workers"]
        assert [worker["rank"] for worker in workers] == list(range(num_workers))
        assert len({worker["pid"] for worker in workers}) == num_workers

    @pytest.mark.slow
    @pytest.mark.ray
    @pytest.mark.parametrize("launcher", ["torchrun", "ray"])
    def test_launchers_give_the_losses_of_one_process(self, tiny, registry, launcher):
        alone = tiny(registry=str(registry))
        train(alone)
        shared = replace(alone, out=alone.out.with_name(launcher))
        train(shared, workers=Workers(launcher=launcher, num_workers=2))
        one, two = ([line["loss"] for line in lines(config)] for config in (alone, shared))
        np.testing.assert_allclose(two, one, rtol=1e-4)
        workers = json.loads((shared.out / "environment.json").read_text())["workers"]
        assert len({worker["pid"] for worker in workers} - {os.getpid()}) == 2
        assert (shared.out / "weights" / "model.safetensors").exists()


class TestBadInput:
    @pytest.mark.usefixtures("only_losses")
    def test_three_bad_losses_stop_the_run_and_keep_the_checkpoint(self, tiny, monkeypatch):
        original = Trainer.views_of

        def broken(self, samples, numbers):
            views, masks = original(self, samples, numbers)
            if numbers[0] >= 3 * self.config.batch_size:
                views.global_views[0, 0, 0, 0, 0] = float("nan")
            return views, masks

        monkeypatch.setattr(Trainer, "views_of", broken)
        config = tiny(steps=8)
        with pytest.raises(RunError, match="checkpoint") as caught:
            train(config)
        assert caught.value.code == "RUN-01"
        kept = [path.name[:13] for path in (config.out / "checkpoints").glob("step_*")]
        assert kept == ["step_00000002"]

    def test_a_bad_loss_leaves_student_and_teacher_as_they_were(
        self, tiny, only_losses, monkeypatch
    ):
        trainer = Trainer(tiny(), only_losses)
        trainer.step(0)
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        original = trainer.model.forward

        def diverged(batch, now, lesson):
            out = original(batch, now, lesson)
            return out | {"loss": out["loss"] * float("nan")}

        monkeypatch.setattr(trainer.model, "forward", diverged)
        assert np.isnan(trainer.step(1)["loss"])
        after = trainer.model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)

    @pytest.mark.usefixtures("only_losses")
    def test_batch_larger_than_the_data(self, tiny):
        with pytest.raises(ConfigError, match="Try batch_size 48") as caught:
            train(tiny(batch_size=64))
        assert caught.value.code == "CONFIG-05"

    def test_no_registry(self, tiny):
        with pytest.raises(DataError) as caught:
            train(tiny())
        assert caught.value.code == "DATA-08"
        assert not tiny().out.exists()

    @pytest.mark.usefixtures("only_losses")
    def test_foreign_folder(self, tiny):
        config = tiny()
        config.out.mkdir()
        (config.out / "thesis.txt").write_text("mine")
        with pytest.raises(ConfigError) as caught:
            train(config)
        assert caught.value.code == "CONFIG-03"


class TestSchedules:
    def test_arrays_have_a_value_for_every_step(self, tiny):
        config = tiny(
            steps=100,
            objective={"teacher_temperature": [0.02, 0.07], "teacher_temperature_warmup": 50},
            optimizer={"warmup_steps": 10, "learning_rate": 0.01, "weight_decay": [0.04, 0.4]},
        )
        found = schedules(config) | create_objective(config).schedules()
        assert {len(values) for values in found.values()} == {100}
        assert found["learning_rate"].max() == found["learning_rate"][10] == 0.01
        assert found["learning_rate"][-1] == pytest.approx(1e-6)
        assert found["weight_decay"][[0, -1]] == pytest.approx([0.04, 0.4])
        assert found["teacher_momentum"][[0, -1]] == pytest.approx([0.992, 1.0])
        assert found["teacher_temperature"][[0, 25, 50, -1]] == pytest.approx(
            [0.02, 0.045, 0.07, 0.07]
        )
        assert found["koleo_weight"][[0, 5, 10, -1]] == pytest.approx([0, 0.05, 0.1, 0.1])

    @pytest.mark.usefixtures("only_losses")
    def test_a_run_keeps_its_schedules(self, tiny):
        config = tiny(steps=4)
        train(config)
        with np.load(config.out / "schedules.npz") as saved:
            expected = schedules(config) | create_objective(config).schedules()
            assert set(saved) == set(expected)
            for name, values in expected.items():
                np.testing.assert_array_equal(saved[name], values)

    def test_equal_ends_are_constant(self, tiny):
        config = tiny(
            optimizer={
                "learning_rate": 1e-4, "final_learning_rate": 1e-4, "warmup_steps": 0,
                "weight_decay": [0.04, 0.04], "teacher_momentum": [0.99, 0.99],
            }
        )  # fmt: skip
        found = schedules(config) | create_objective(config).schedules()
        for name in ("learning_rate", "weight_decay", "teacher_momentum"):
            assert np.ptp(found[name]) == pytest.approx(0, abs=1e-12)


class TestOptimization:
    def test_groups_hold_every_parameter_once_and_matrices_decay(self, tiny):
        config = tiny(layer_scale=1e-5)
        student = create_objective(config).student
        groups = parameter_groups(student, config.optimizer)
        of = {id(p): group for group in groups for p in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(of)
        assert set(of) == {id(p) for p in student.parameters()}
        found = {name: of[id(p)] for name, p in student.named_parameters()}
        for name in ("encoder.vit.blocks.0.attn.qkv.weight", "dino.prototypes.weight"):
            assert found[name]["decays"]
        for name in (
            "encoder.mask_token", "encoder.vit.cls_token", "encoder.vit.blocks.0.norm1.weight",
            "encoder.vit.blocks.0.attn.qkv.bias", "encoder.vit.blocks.0.ls1.gamma",
        ):  # fmt: skip
            assert not found[name]["decays"], name
        assert found["dino.mlp.0.weight"]["multiplier"] == 1
        assert found["encoder.vit.blocks.3.mlp.fc1.weight"]["multiplier"] == pytest.approx(0.9)
        patches = found["encoder.vit.patch_embed.proj.weight"]["multiplier"]
        assert patches == pytest.approx(0.2 * 0.9**5)

    def test_clipping_is_that_of_torch(self, tiny, only_losses):
        """Folded into the fused step, it gives what clipping the gradients first would."""
        results = []
        for fold in (True, False):
            trainer = Trainer(tiny(optimizer={"clip_norm": 0.05, "warmup_steps": 0}), only_losses)
            if not fold:
                adamw, step = trainer.optimization.adamw, trainer.optimization.adamw.step

                def clipped(adamw=adamw, step=step, trainer=trainer):
                    del adamw.grad_scale, adamw.found_inf
                    torch.nn.utils.clip_grad_norm_(trainer.model.student.parameters(), 0.05)
                    step()

                adamw.step = clipped
            norms = [trainer.step(index)["grad_norm"] for index in range(2)]
            assert min(norms) > 0.05
            results.append(trainer.model.student.state_dict())
        for name, value in results[0].items():
            torch.testing.assert_close(value, results[1][name], atol=1e-6, rtol=1e-4)


class TestCommand:
    def test_dry_run_keeps_nothing_but_a_picture(self, tiny, registry, tmp_path, capsys):
        config = tiny(registry=str(registry))
        save_config(config, tmp_path / "config.yaml")
        assert main(["run", str(tmp_path / "config.yaml"), "--dry-run"]) == 0
        printed = capsys.readouterr()
        assert "seconds per step" in printed.out
        assert len(printed.err.splitlines()) <= 12
        assert not config.out.exists()
        assert config.out.with_name("run-dry-run.png").stat().st_size > 1000

    def test_run_ends_with_report_weights_and_what_to_do_next(
        self, tiny, registry, tmp_path, capsys
    ):
        config = tiny(registry=str(registry), steps=2)
        save_config(config, tmp_path / "config.yaml")
        assert main(["run", str(tmp_path / "config.yaml"), "--seed", "3"]) == 0
        printed = capsys.readouterr().out
        assert str(config.out / "report.html") in printed
        assert "core-mri finetune" in printed
        assert json.loads((config.out / "run.json").read_text())["config"]["seed"] == 3

    def test_dry_run_equals_the_first_step(self, tiny, registry):
        config = tiny(registry=str(registry), steps=2)
        loss = dry_run(config).loss
        train(config)
        assert loss == lines(config)[0]["loss"]

    @pytest.mark.parametrize("words", [[], ["walk"]])
    def test_wrong_verb_is_wrong_usage(self, words):
        assert main(words) == 2

    def test_package_is_light(self):
        code = (
            "import sys, pretrain, pretrain.cli, pretrain.config\n"
            "assert not {'torch', 'timm', 'ray'} & set(sys.modules), 'heavy'"
        )
        root = Path(pretrain.__file__).parent.parent
        subprocess.run([sys.executable, "-c", code], check=True, cwd=root)

"""Training of reconstruction: order, resume, what moves, what is refused, files for the user."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import core_mri
from core_mri.__main__ import main
from core_mri.config import load_config, save_config
from core_mri.errors import ConfigError, DataError, Interrupted, RunError
from core_mri.files import read_kspace, write_kspace
from core_mri.models.unrolled import Unrolled
from core_mri.runs import Run
from data_registry.catalogue import Registry
from downstream.reconstruction.training.batches import draw_lines, fixed_lines, generator, place
from downstream.reconstruction.training.config import ReconstructionConfig, Undersampling
from downstream.reconstruction.training.finetune import (
    finetune_reconstruction,
)
from downstream.reconstruction.training.groups import Sample
from downstream.reconstruction.training.networks import load_encoder
from downstream.reconstruction.training.sets import load_sets
from downstream.reconstruction.training.slices import labelled_positions
from downstream.reconstruction.training.trainer import ReconstructionTrainer
from tests.downstream.test_reconstruct import line_mask, make_samples, make_scan

SIZE = 64
"""Rows of the raw data of `make_samples`."""
CPU = torch.device("cpu")
Make = Callable[..., ReconstructionConfig]


@pytest.fixture
def make(registry: Registry, tmp_path: Path) -> Make:
    """A configuration of a few small steps; keyword arguments change it, mappings in part."""

    def build(**changes: Any) -> ReconstructionConfig:
        values: dict[str, Any] = {
            "registry": str(registry.path),
            "out": str(tmp_path / "run"),
            "where": "sequence = 'T1'",
            "steps": 4,
            "device": "cpu",
            "network": {"steps": 2, "channels": 4, "pools": 2},
            "simulation": {"size": 32, "coils": 4},
            "undersampling": {"accelerations": [2, 3], "center_fractions": [0.3, 0.25]},
            "fitting": {"validate_every": 2, "num_validation": 3, "learning_rate": 2e-3},
        }
        for name, value in changes.items():
            own = values.get(name)
            values[name] = own | value if isinstance(own, dict) else value
        return load_config(ReconstructionConfig, values)

    return build


def trainer_of(config: ReconstructionConfig) -> ReconstructionTrainer:
    sets = load_sets(config)
    encoder = load_encoder(config.encoder, config.seed)
    return ReconstructionTrainer(config, sets.training, sets.validation, encoder, CPU)


def first_of(samples: list[Sample], trainer: ReconstructionTrainer) -> torch.Tensor:
    """What training may use of the slice that is validated first."""
    assert trainer.validation is not None
    position = trainer.validation.positions[0]
    count = len(trainer.training)
    found = [s for i, s in enumerate(samples) if place(trainer.config.seed, i, count) == position]
    assert found[0].allowed is not None
    return found[0].allowed


def weights_of(trainer: ReconstructionTrainer) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in trainer.network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class TestOrder:
    def test_an_epoch_shows_every_slice_once(self) -> None:
        order = [place(7, index, 10) for index in range(20)]
        assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
        assert order[:10] != order[10:]

    def test_a_sample_depends_on_seed_and_index_alone(self, make: Make) -> None:
        first, second = trainer_of(make()), trainer_of(make(steps=9))
        second.step(0)
        for index in (0, 5, 3):
            one, other = first.sample(index), second.sample(index)
            assert torch.equal(one.slice.kspace, other.slice.kspace)
            assert torch.equal(one.mask, other.mask)
        assert not torch.equal(first.sample(0).slice.kspace, first.sample(5).slice.kspace)

    def test_masks(self) -> None:
        settings = Undersampling(masks=("random", "equispaced"), between=True)
        drawn = [draw_lines(settings, 320, generator(0, i)) for i in range(40)]
        rates = [320 / int(lines.sum()) for lines in drawn]
        assert min(rates) < 5
        assert max(rates) > 6
        fixed = fixed_lines(settings, 1, 320, (1, 2))
        assert torch.equal(fixed, fixed_lines(settings, 1, 320, (1, 2)))
        assert 6 < 320 / int(fixed.sum()) < 10

    def test_labelled_patients_are_nested(self, make: Make) -> None:
        slices = load_sets(make()).training
        one, two = (labelled_positions(slices, count, 0) for count in (1, 2))
        assert set(one) < set(two)
        assert len({slices.patients[p] for p in two}) == 2
        assert len(labelled_positions(slices, 0, 0)) == len(slices)
        with pytest.raises(DataError, match="DATA-09"):
            labelled_positions(slices, 100, 0)

    def test_patients_are_apart(self, make: Make) -> None:
        sets = load_sets(make())
        assert sets.validation is not None
        assert sets.test is not None
        groups = [set(s.patients) for s in (sets.training, sets.validation, sets.test)]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]


class TestSteps:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"supervision": "self-supervised", "fitting": {"validate_by": "holdout"}},
            {"supervision": "joint", "labelled": 1, "fitting": {"batch_size": 2}},
            {"supervision": "self-supervised", "loss": {"splits": 2, "equivariance_weight": 0.1,
                                                        "noise_weight": 0.1}},
            pytest.param({"network": {"denoiser": "resnet"}}, marks=pytest.mark.slow),
            {"network": {"name": "unet"}, "fitting": {"validate_by": "reference",
                                                      "optimizer": "rmsprop", "drop_at": 0.5}},
            pytest.param({"network": {"name": "varnet"}}, marks=pytest.mark.slow),
            {"fitting": {"ema": 0.9}},
        ],
    )  # fmt: skip
    def test_resume_is_exact(self, changes: dict[str, Any], make: Make) -> None:
        """Two steps, a checkpoint, two more: bit for bit the four steps in one go."""
        config = make(**changes)
        whole, first, second = (trainer_of(config) for _ in range(3))
        losses = [whole.step(index)["loss"] for index in range(4)]
        again = [first.step(index)["loss"] for index in range(2)]
        second.restore(first.state())
        again += [second.step(index)["loss"] for index in range(2, 4)]
        assert losses == again
        assert all(np.isfinite(losses))
        assert same(weights_of(whole), weights_of(second))
        assert whole.best.curve == second.best.curve
        finished = whole.finish().state_dict()
        assert same(finished, second.finish().state_dict())

    def test_self_supervision_never_reads_a_reference(self, make: Make) -> None:
        trainer = trainer_of(make(supervision="self-supervised"))
        sample = trainer.sample(0)
        blind = replace(sample, slice=replace(sample.slice, reference=None))
        loss = trainer.objective([blind], 0.0)
        assert torch.isfinite(loss).all()
        with pytest.raises(DataError, match="DATA-42"):
            trainer.objective([replace(blind, labelled=True)], 0.0)

    def test_it_uses_what_was_measured_only(self, make: Make) -> None:
        """Samples outside of the mask change nothing."""
        trainer = trainer_of(make(supervision="self-supervised"))
        losses = []
        for fill in (0.0, 5.0):
            sample = trainer.sample(0)
            kspace = torch.where(sample.mask, sample.slice.kspace, fill)
            changed = replace(sample, slice=replace(sample.slice, kspace=kspace))
            losses.append(float(trainer.objective([changed], 0.0).detach()))
        assert losses[0] == losses[1]

    def test_air_is_left_out(self, make: Make) -> None:
        trainer = trainer_of(make())
        sample = trainer.sample(0)
        noise = 1e-3 * torch.randn_like(sample.slice.kspace)
        for kspace in (torch.zeros_like(noise), noise):
            air = replace(sample, slice=replace(sample.slice, kspace=kspace))
            assert torch.equal(trainer.objective([air], 0.0), torch.zeros(1))

    def test_learning(self, make: Make) -> None:
        """A few dozen steps beat the warm start on validation patients, by references."""
        config = make(
            steps=60,
            network={"warm_start": "cg-sense"},
            fitting={"validate_every": 60, "validate_by": "reference", "num_validation": 6},
        )
        trainer = trainer_of(config)
        assert trainer.validation is not None
        before = trainer.validation.look(trainer.network.eval()).score
        for index in range(60):
            trainer.step(index)
        assert trainer.best.validated > before + 0.003

    def test_a_network_that_ignores_its_input(self, make: Make, monkeypatch: Any) -> None:
        """Whatever the loss says, the residual of the measured samples tells."""
        trainer = trainer_of(make(steps=12))

        def same_for_all(_: Any, kspace: torch.Tensor, mask: Any, **__: Any) -> torch.Tensor:
            return torch.eye(kspace.shape[-1])[None]

        for index in range(4):
            trainer.step(index)
        assert trainer.ignored == 0
        monkeypatch.setattr(Unrolled, "images", same_for_all)
        for index in range(4, 9):
            trainer.step(index)
        with pytest.raises(RunError, match=r"RUN-11.*3 looks in a row"):
            trainer.step(9)

    def test_it_stops_early(self, make: Make) -> None:
        trainer = trainer_of(make(fitting={"patience": 1}))
        trainer.step(0)
        trainer.best.offer(1, {"weights": torch.ones(1)}, 9.0)
        assert not trainer.best.enough
        trainer.step(1)
        assert trainer.best.enough


class TestEncoderInside:
    @pytest.mark.parametrize("adaptation", ["frozen", "lora", "full"])
    def test_what_moves(self, adaptation: str, make: Make, weights: Path) -> None:
        config = make(encoder={"weights": str(weights), "adaptation": adaptation, "num_levels": 2,
                               "learning_rate": 1e-3})  # fmt: skip
        trainer = trainer_of(config)
        assert isinstance(trainer.network, Unrolled)
        context = trainer.network.context
        assert context is not None
        before = weights_of(trainer)
        for index in range(3):
            trainer.step(index)
        moved = {name for name, t in trainer.network.state_dict().items()
                 if not torch.equal(t, before[name])}  # fmt: skip
        inside = {name for name in moved if name.startswith("context.encoder.")}
        assert "context.gates" in moved
        assert bool(inside) == (adaptation != "frozen")
        if adaptation == "lora":
            assert all("parametrizations" in name for name in inside)
        names = trainer.finish().state_dict()
        assert not any("parametrizations" in name for name in names)

    def test_going_on_with_lora(self, make: Make, weights: Path, tmp_path: Path) -> None:
        """Its encoder is the one of the weights it goes on from, not the one that was named."""
        inside = {"weights": str(weights), "num_levels": 2}
        first = trainer_of(make(encoder=inside | {"random": True}))
        core_mri.save_model(first.finish(), tmp_path / "first")
        config = make(encoder=inside | {"adaptation": "lora"},
                      network={"start": str(tmp_path / "first")})  # fmt: skip
        second = trainer_of(config)
        sample = first.sample(0)
        assert torch.equal(first.objective([sample], 0.0), second.objective([sample], 0.0))
        second.step(0)

    def test_the_twin_starts_elsewhere(self, make: Make, weights: Path) -> None:
        own, twin = (
            trainer_of(make(encoder={"weights": str(weights), "random": random, "num_levels": 2}))
            for random in (False, True)
        )
        first, second = weights_of(own), weights_of(twin)
        differs = {name for name in first if not torch.equal(first[name], second[name])}
        assert differs
        assert all(name.startswith("context.encoder.") for name in differs)

    def test_features_are_a_late_loss(self, make: Make, weights: Path) -> None:
        config = make(encoder={"weights": str(weights), "num_levels": 2},
                      loss={"feature_weight": 0.05})  # fmt: skip
        trainer = trainer_of(config)
        early, late = (
            float(trainer.objective([trainer.sample(0)], progress).detach())
            for progress in (0.0, 0.9)
        )
        assert late > early

    def test_a_large_feature_loss_is_refused(self, make: Make) -> None:
        with pytest.raises(ConfigError, match=r"invents structures"):
            make(loss={"feature_weight": 0.2})


class TestRuns:
    def test_from_the_command_line(self, make: Make, tmp_path: Path, capsys: Any) -> None:
        """Train, test, reconstruct a file with the released weights."""
        config = make()
        save_config(config, tmp_path / "config.yaml")
        assert main(["finetune", str(tmp_path / "config.yaml")]) == 0
        printed = capsys.readouterr().out
        assert "simulated 2x" in printed
        run = tmp_path / "run"
        results = json.loads((run / "results.json").read_text())
        assert "SIMULATED" in results["verdict"]
        assert {row["metric"] for row in results["summary"]} == {"NMSE", "PSNR", "SSIM"}
        assert {row["weights"] for row in results["summary"]} == {
            "unrolled", "zero-filled", "cg-sense", "wavelet"
        }  # fmt: skip
        sets = load_sets(config)
        assert sets.test is not None
        tested = {cell["patient"] for cell in results["cells"]}
        assert tested == set(sets.test.patients)
        model = core_mri.load_model(run, device="cpu")
        assert isinstance(model, Unrolled)
        assert set(model.card["subjects"]) >= set(sets.training.patients)
        assert not set(model.card["subjects"]) & tested
        write_kspace(make_scan(make_samples(2), line_mask()), tmp_path / "scan.h5")
        assert main(["reconstruct", str(run), str(tmp_path / "scan.h5"),
                     "--out", str(tmp_path / "out.h5")]) == 0  # fmt: skip

    def test_dry_run_writes_nothing(self, make: Make, tmp_path: Path, capsys: Any) -> None:
        save_config(make(), tmp_path / "config.yaml")
        assert main(["finetune", str(tmp_path / "config.yaml"), "--dry-run"]) == 0
        assert "steps of" in capsys.readouterr().out
        assert not (tmp_path / "run").exists()

    def test_an_interrupted_run_goes_on(self, make: Make, tmp_path: Path, monkeypatch: Any) -> None:
        step = ReconstructionTrainer.step
        whole = finetune_reconstruction(make(out=str(tmp_path / "whole")))

        def stopping(self: ReconstructionTrainer, index: int) -> dict[str, float]:
            if index == 2:
                current[0].request_stop()
            return step(self, index)

        current: list[Run] = []
        opened = Run.__enter__

        def enter(run: Run) -> Run:
            current[:] = [run]
            return opened(run)

        with monkeypatch.context() as patch:
            patch.setattr(ReconstructionTrainer, "step", stopping)
            patch.setattr(Run, "__enter__", enter)
            with pytest.raises(Interrupted):
                finetune_reconstruction(make())
        finetune_reconstruction(make(), resume=True)
        losses = [
            [json.loads(line)["loss_hex"] for line in (folder / "metrics.jsonl").open()]
            for folder in (whole, tmp_path / "run")
        ]
        assert losses[0] == losses[1]
        found = [(folder / "weights" / "model.safetensors").read_bytes()
                 for folder in (whole, tmp_path / "run")]  # fmt: skip
        assert found[0] == found[1]

    def test_going_on_from_other_weights(self, make: Make, tmp_path: Path) -> None:
        first = finetune_reconstruction(make(out=str(tmp_path / "first")))
        config = make(network={"start": str(first)}, out=str(tmp_path / "second"))
        start = core_mri.load_model(first, device="cpu").state_dict()
        assert same(start, weights_of(trainer_of(config)))
        with pytest.raises(ConfigError, match="CONFIG-05"):
            trainer_of(make(network={"start": str(first), "channels": 8}))

    def test_test_patients_must_be_new_to_the_encoder(
        self, make: Make, micro: Any, tmp_path: Path
    ) -> None:
        sets = load_sets(make())
        assert sets.test is not None
        seen = sorted(set(sets.test.patients))[:1]
        core_mri.save_model(micro, tmp_path / "seen", {"subjects": seen})
        settings = {"weights": str(tmp_path / "seen"), "num_levels": 2}
        with pytest.raises(ConfigError, match="pretraining patients"):
            finetune_reconstruction(make(encoder=settings))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"registry": None}, "either a registry or"),
            ({"steps": 0}, "one of steps"),
            (
                {"network": {"name": "unet"}, "fitting": {"validate_by": "holdout"}},
                "validated by references",
            ),
            ({"network": {"name": "unet"}, "supervision": "joint"}, "by references"),
            ({"undersampling": {"accelerations": [8, 4]}}, "must ascend"),
            ({"loss": {"holdout_share": 1.0}}, "holdout_share"),
            ({"fitting": {"ema": 1.0}}, "fitting.ema"),
        ],
    )
    def test_impossible_settings(self, changes: dict[str, Any], message: str, make: Make) -> None:
        with pytest.raises(ConfigError, match=message):
            make(**changes)


class TestRawFiles:
    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, list[str]]:
        """Three patients, one a list, fully sampled; ``masked`` has no reference."""
        for number, name in enumerate(("train", "validation", "test")):
            samples = (1 + number) * make_samples(2)
            write_kspace(make_scan(samples), tmp_path / f"{name}.h5")
        scan = make_scan(make_samples(2), line_mask())
        scan._target = None
        write_kspace(scan, tmp_path / "masked.h5")
        return {name: [str(tmp_path / f"{name}.h5")]
                for name in ("train", "validation", "test", "masked")}  # fmt: skip

    def from_files(self, make: Make, files: dict[str, list[str]], **changes: Any) -> Any:
        lists = {name: files[name] for name in ("train", "validation", "test")}
        return make(registry=None, where="", **(lists | changes))

    def test_a_run(self, make: Make, files: dict[str, list[str]], tmp_path: Path) -> None:
        finetune_reconstruction(self.from_files(make, files))
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert {cell["patient"] for cell in results["cells"]} == {"test"}
        assert "measured" in results["verdict"]
        card = (tmp_path / "run" / "weights" / "README.md").read_text()
        assert "the network has no encoder" in card

    def test_undersampled_files_train_without_references(
        self, make: Make, files: dict[str, list[str]]
    ) -> None:
        config = self.from_files(make, files, train=files["masked"], supervision="self-supervised")
        trainer = trainer_of(config)
        with read_kspace(Path(files["masked"][0])) as scan:
            assert scan.target(0) is None
            own = scan.mask(0)
        assert own is not None
        assert torch.equal(trainer.sample(0).mask, torch.from_numpy(own))
        assert np.isfinite(trainer.step(0)["loss"])

    def test_but_not_with_them(self, make: Make, files: dict[str, list[str]]) -> None:
        trainer = trainer_of(self.from_files(make, files, train=files["masked"]))
        with pytest.raises(DataError, match="DATA-42"):
            trainer.step(0)

    def test_zero_shot(self, make: Make, files: dict[str, list[str]], tmp_path: Path) -> None:
        """One undersampled scan, fitted to itself; the stopping set is never trained on."""
        config = make(
            registry=None, where="", train=files["masked"], supervision="zero-shot",
            fitting={"augment": False, "patience": 3, "validate_by": "holdout"},
        )  # fmt: skip
        trainer = trainer_of(config)
        assert trainer.validation is not None
        samples = [trainer.sample(index) for index in range(4)]
        for sample in samples:
            theta, held = trainer.objective.prepared([sample])[0].splits[0]
            assert sample.allowed is not None
            assert torch.equal((theta | held)[0], sample.allowed)
            gamma = sample.mask & ~sample.allowed
            assert float(gamma.sum() / (SIZE * sample.mask.sum())) == pytest.approx(0.2, abs=0.01)
        assert torch.equal(trainer.validation.sample(0).allowed, first_of(samples, trainer))
        finetune_reconstruction(config)
        assert main(["reconstruct", str(tmp_path / "run"), files["masked"][0],
                     "--out", str(tmp_path / "out.h5")]) == 0  # fmt: skip

    def test_zero_shot_takes_one_file(self, make: Make, files: dict[str, list[str]]) -> None:
        with pytest.raises(ConfigError, match="one file"):
            self.from_files(make, files, supervision="zero-shot")

    def test_a_patient_in_two_lists(self, make: Make, files: dict[str, list[str]]) -> None:
        with pytest.raises(DataError, match="DATA-43"):
            load_sets(self.from_files(make, files, test=files["train"]))

    def test_nothing_there(self, make: Make, files: dict[str, list[str]], tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="DATA-01"):
            load_sets(self.from_files(make, files, train=[str(tmp_path / "empty")]))

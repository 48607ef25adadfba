"""Suites of networks for reconstruction: cells, resume, tuning, comparisons, packaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from core_mri.__main__ import main
from core_mri.config import load_config, save_config, to_mapping
from core_mri.errors import ConfigError
from data_registry.catalogue import Registry
from downstream.cli import CONFIGS
from downstream.evaluation.results import Outcome, Score
from downstream.reconstruction.training import study as study_module
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.study import evaluate_study
from downstream.reconstruction.training.study_config import ReconstructionStudy
from downstream.reconstruction.training.summary import compared, summarized

Make = Callable[..., ReconstructionStudy]
NET = {"channels": 4, "pools": 2, "steps": 2}


@pytest.fixture
def make(registry: Registry, tmp_path: Path, weights: Path) -> Make:
    def build(**changes: Any) -> ReconstructionStudy:
        fitting = {"num_validation": 0}
        values: dict[str, Any] = {
            "registry": str(registry.path),
            "out": str(tmp_path / "study"),
            "where": "sequence = 'T1'",
            "contenders": {
                "ours": {"network": NET, "fitting": fitting},
                "blind": {"network": NET, "fitting": fitting, "supervision": "self-supervised"},
                "seeing": {"network": NET, "fitting": fitting,
                           "encoder": {"weights": str(weights), "num_levels": 2}},
            },
            "classical": ["zero-filled", "tv"],
            "tuning": [0.003, 0.3],
            "tuning_slices": 2,
            "labelled": [1],
            "seeds": [0, 1],
            "steps": 2,
            "test_every": 3,
            "compare": [["ours", "tv"], ["seeing", "ours"], ["ours", "blind"]],
            "simulation": {"size": 32, "coils": 4},
            "undersampling": {"accelerations": [2], "center_fractions": [0.3]},
            "device": "cpu",
        }  # fmt: skip
        return load_config(ReconstructionStudy, values | changes)

    return build


class TestStudy:
    def test_from_the_command_line(self, make: Make, tmp_path: Path, capsys: Any,
                                   monkeypatch: Any) -> None:  # fmt: skip
        """All cells once; the same command computes nothing again."""
        save_config(make(), tmp_path / "suite.yaml")
        assert main(["evaluate", str(tmp_path / "suite.yaml")]) == 0
        printed = capsys.readouterr().out
        assert "ours minus tv" in printed
        assert "seeing minus ours, 1 labelled" in printed
        assert "ours minus blind, 1 labelled" in printed
        results = json.loads((tmp_path / "study" / "results.json").read_text())
        assert "SIMULATED" in results["verdict"]
        assert not results["failed"]
        groups = {(row["weights"], row["k"]) for row in results["summary"]}
        assert groups == {("zero-filled", 0), ("tv", 0), ("ours", 1), ("blind", 0), ("seeing", 1)}
        draws = {cell["draw"] for cell in results["cells"] if cell["weights"] == "ours"}
        assert draws == {0, 1}
        report = (tmp_path / "study" / "report.html").read_text()
        assert "weight 0.003 chosen on training" in report
        pictures = report.count("<img")
        assert pictures

        def refuse(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(study_module, "_outcome", refuse)
        first = (tmp_path / "study" / "results.json").read_bytes()
        assert main(["evaluate", str(tmp_path / "suite.yaml"), "--resume"]) == 0
        assert (tmp_path / "study" / "results.json").read_bytes() == first
        assert (tmp_path / "study" / "report.html").read_text().count("<img") == pictures
        evaluate_study(make(out=str(tmp_path / "again"), reuse=[str(tmp_path / "study")]))
        assert (tmp_path / "again" / "results.json").read_bytes() == first
        assert (tmp_path / "again" / "report.html").read_text().count("<img") == pictures

    def test_a_failed_training_is_recorded(self, make: Make, tmp_path: Path) -> None:
        broken = {"ours": {"network": NET, "train_where": "sequence = 'DWI'"}}
        evaluate_study(make(contenders=broken, compare=[], seeds=[0]))
        results = json.loads((tmp_path / "study" / "results.json").read_text())
        assert "DATA-09" in results["failed"][0]["error"]
        assert results["summary"]

    def test_dry_run(self, make: Make, tmp_path: Path, capsys: Any) -> None:
        save_config(make(), tmp_path / "suite.yaml")
        assert main(["evaluate", str(tmp_path / "suite.yaml"), "--dry-run"]) == 0
        assert "CPU-minutes" in capsys.readouterr().out
        assert not (tmp_path / "study").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"compare": [["ours", "nobody"]]}, "nobody"),
            ({"contenders": {}}, "at least one"),
            ({"classical": ["tv"], "contenders": {"tv": {}}, "compare": []}, "classical one"),
            ({"steps": 0}, "steps 0"),
        ],
    )
    def test_impossible_settings(self, changes: dict[str, Any], message: str, make: Make) -> None:
        with pytest.raises(ConfigError, match=message):
            make(**changes)


def outcome(name: str, values: dict[str, float], k: int = 2, seed: int = 0) -> Outcome:
    scores = tuple(
        Score(task="simulated 4x", weights=name, twin=False, method="m", k=k, draw=seed, seed=seed,
              patient=patient, structure="v", metric="PSNR", value=value, unit="dB")
        for patient, value in values.items()
    )  # fmt: skip
    return Outcome(key=f"{name}{seed}", task="t", weights=name, against="", k=k, draw=seed,
                   scores=scores)  # fmt: skip


class TestSummary:
    def test_seeds_are_averaged_per_patient(self) -> None:
        rows = summarized([outcome("a", {"p": 30.0, "q": 20.0}),
                           outcome("a", {"p": 32.0, "q": 20.0}, seed=1)], 0)  # fmt: skip
        assert [(row.mean, row.n) for row in rows] == [(25.5, 2)]

    def test_differences_are_paired(self) -> None:
        """A constant gain over very different patients is found."""
        base = {f"p{i}": 20.0 + 3 * i for i in range(8)}
        better = {name: value + 0.5 + 0.01 * i for i, (name, value) in enumerate(base.items())}
        group = ("simulated 4x", "a", "m", 2), ("simulated 4x", "b", "m", 2)
        (found,) = compared([outcome("a", better), outcome("b", base)], [group], 0)
        assert found.difference.mean == pytest.approx(0.535)
        assert found.difference.low > 0.4
        assert found.p == pytest.approx(2 / 256)

    def test_few_patients_are_not_tested(self) -> None:
        group = ("simulated 4x", "a", "m", 2), ("simulated 4x", "b", "m", 2)
        values = {"p": 1.0, "q": 2.0}
        (found,) = compared([outcome("a", values), outcome("b", values)], [group], 0)
        assert found.p is None


class TestPackagedFiles:
    @pytest.mark.parametrize("path", sorted(CONFIGS.glob("un*.yaml")), ids=lambda p: p.stem)
    def test_every_field_is_written(self, path: Path) -> None:
        written = yaml.safe_load(path.read_text())
        whole = to_mapping(load_config(ReconstructionConfig, written))

        def compare(found: Any, expected: Any) -> None:
            if isinstance(expected, dict):
                assert set(found) == set(expected)
                for name, value in expected.items():
                    compare(found[name], value)

        compare(written, whole)

    def test_the_recipe_of_the_seed(self) -> None:
        """RMSprop 1e-3, a tenth from epoch 40 of 50, L1, 8 % at 4x and 4 % at 8x, one slice."""
        config = load_config(ReconstructionConfig, CONFIGS / "unet_knee_singlecoil.yaml")
        fitting = config.fitting
        assert (fitting.optimizer, fitting.learning_rate, fitting.batch_size) == (
            "rmsprop", 1e-3, 1,
        )  # fmt: skip
        assert (config.epochs, config.epochs * fitting.drop_at) == (50, 40)
        assert config.undersampling.accelerations == (4, 8)
        assert config.undersampling.center_fractions == (0.08, 0.04)
        assert config.undersampling.masks == ("random",)
        assert (config.network.channels, config.network.pools) == (32, 4)
        assert not fitting.augment
        assert not fitting.ema

"""A network with an encoder inside warns of scans unlike those of its training, not of others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import core_mri
from core_mri.__main__ import main
from core_mri.files import read_kspace
from core_mri.physics.phantoms import phantom_volume
from core_mri.training_statistics import STATISTICS, load_statistics
from core_mri.weights.folder import read_config
from tests.downstream.conftest import SIZE

DRAWN = ("--mask", "equispaced", "--acceleration", "2", "--center-fraction", "0.3", "--device",
         "cpu", "--seed", "0")  # fmt: skip


def reconstruct(weights: Path, scan: Path, out: Path) -> int:
    words = ("reconstruct", str(weights), str(scan), "--out", str(out), "--json", *DRAWN)
    return main(list(words))


class TestStatistics:
    def test_lie_beside_the_weights_and_in_the_card(self, reconstructor: Path) -> None:
        folder = reconstructor / "weights"
        found = load_statistics(folder, read_config(folder)["sha256"])
        assert found.image_size == SIZE
        card = read_config(folder)["card"]
        assert found.population["patients"] == card["data"]["patients"]["train"]
        assert "at most" in (folder / "README.md").read_text()

    def test_a_network_without_encoder_keeps_none_and_says_so(self, tmp_path: Path) -> None:
        core_mri.save_model(core_mri.create_model("unrolled_micro"), tmp_path)
        predictor = core_mri.Predictor(core_mri.load_model(tmp_path, device="cpu"))
        scan = phantom_volume("knee", 3, size=SIZE, num_slices=6)[0]
        assert predictor.judge(scan) is None
        assert not (tmp_path / STATISTICS).exists()


class TestWarning:
    def test_new_patients_of_the_same_kind(
        self, reconstructor: Path, like_scans: list[Path], tmp_path: Path, capsys, caplog
    ) -> None:
        """7 people at a rate of 1 in 15: two alarms would be a chance of 8 %."""
        alarms = []
        for number, scan in enumerate(like_scans):
            assert reconstruct(reconstructor, scan, tmp_path / f"{number}.h5") == 0
            likeness = json.loads(capsys.readouterr().out)["likeness"]
            warned = "do not rely on the images" in caplog.text
            assert likeness["unlike"] == warned == (likeness["score"] > likeness["threshold"])
            alarms.append(warned)
            caplog.clear()
        assert len(alarms) == 7
        assert sum(alarms) <= 1

    def test_another_anatomy(
        self, reconstructor: Path, unlike_scan: Path, tmp_path: Path, caplog
    ) -> None:
        with caplog.at_level(logging.WARNING):
            assert reconstruct(reconstructor, unlike_scan, tmp_path / "o.h5") == 0
        assert "a scan unlike the scans these weights saw" in caplog.text

    def test_predictor_too(
        self, reconstructor: Path, unlike_scan: Path, like_scans: list[Path]
    ) -> None:
        predictor = core_mri.Predictor(core_mri.load_model(reconstructor, device="cpu"))
        for path, unlike in ((unlike_scan, True), (like_scans[0], False)):
            with read_kspace(path) as scan:
                predictor.reconstruct(scan)
            assert predictor.judgement is not None
            assert predictor.judgement.unlike is unlike

    def test_classical_methods_know_nothing(
        self, like_scans: list[Path], tmp_path: Path, capsys
    ) -> None:
        words = ["reconstruct", "zero-filled", str(like_scans[0]), "--out", str(tmp_path / "o.h5")]
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["likeness"] is None

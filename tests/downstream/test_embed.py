"""The verb `core-mri embed`: one scan, folders, cohorts; interruptions and bad scans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

import core_mri
from core_mri import embeddings
from core_mri.__main__ import main
from core_mri.files.scans import read_volume
from core_mri.physics.phantoms import phantom_volume
from core_mri.predictor import Predictor
from data_registry.catalogue import Registry
from data_registry.cohorts import freeze


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    return core_mri.save_model(core_mri.create_model("vit_micro_patch8"), folder / "w")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "later").mkdir(parents=True)
    for index, name in enumerate(("a.nii.gz", "b.nii.gz", "c.nii.gz", "later/d.nrrd")):
        volume = phantom_volume("brain", index, size=32, num_slices=4 + index)[0]
        core_mri.write_volume(volume, folder / name)
    return folder


def embed(*words: object) -> int:
    return main(["embed", *map(str, words), "--device", "cpu"])


def rows(path: Path) -> list[dict[str, object]]:
    return pyarrow.parquet.read_table(path).to_pylist()


class TestOneScan:
    def test_npz_is_what_the_predictor_says(
        self, weights: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "f.npz"
        assert embed(weights, scans / "a.nii.gz", "--out", out, "--picture") == 0
        assert "1 volumes, 4 slices" in capsys.readouterr().out
        predictor = Predictor(core_mri.load_model(weights, device="cpu"))
        expected = predictor.embed(read_volume(scans / "a.nii.gz"))
        with np.load(out, allow_pickle=False) as found:
            assert np.array_equal(found["cls"], expected.cls)
            assert np.array_equal(found["patches"], expected.patches)
            assert np.array_equal(found["affine"], expected.affine)
            assert found["shape"].tolist() == [4, 32, 32]
        assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")

    def test_many_scans_do_not_fit(
        self, weights: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert embed(weights, scans, "--out", tmp_path / "f.npz") == 2
        assert "4 volumes" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.full((8, 8, 3), np.nan, np.float32), "DATA-04: bad.nii: 192 of 192 voxels"),
            (np.zeros((8, 8, 3), np.float32), "DATA-05: bad.nii: all 192 voxels"),
            (np.ones((8, 8, 3, 4), np.float32), "GEOMETRY-02: bad.nii: expected three dimensions"),
        ],
    )
    def test_bad_voxels_name_the_scan(
        self,
        weights: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        array: np.ndarray,
        message: str,
    ) -> None:
        core_mri.write_volume(core_mri.Volume(array, np.eye(4)), tmp_path / "bad.nii")
        assert embed(weights, tmp_path / "bad.nii", "--out", tmp_path / "f.npz") == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "f.npz").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--out", "f.npz"), "either IMAGE or --registry"),
            (("scan.nii", "--out", "f.parquet", "--picture"), "--picture needs"),
            (("scan.nii", "--out", "f.npz", "--level", "volume"), "--level volume needs .parquet"),
            (("scan.nii", "--out", "f.npz", "--cohort", "c"), "belong to --registry"),
            ((".", "--out", "./f.parquet"), "where scans are searched"),
        ],
    )
    def test_settings_that_do_not_fit(
        self, weights: Path, capsys: pytest.CaptureFixture[str], words: tuple[str], message: str
    ) -> None:
        assert embed(weights, *words) == 2
        assert message in capsys.readouterr().err


class TestFolder:
    def test_an_npz_each_and_a_table_agree(
        self, weights: Path, scans: Path, tmp_path: Path
    ) -> None:
        assert embed(weights, scans, "--out", tmp_path / "each", "--no-patches") == 0
        assert embed(weights, scans, "--out", tmp_path / "t.parquet") == 0
        table = rows(tmp_path / "t.parquet")
        assert len(table) == 4 + 5 + 6 + 7
        for name in ("a.nii.gz", "later/d.nrrd"):
            with np.load(tmp_path / "each" / f"{name}.npz") as found:
                own = [row["embedding"] for row in table if row["volume"] == name]
                assert np.array_equal(np.array(own, np.float32), found["cls"])
                assert "patches" not in found
        assert [path.name for path in tmp_path.glob(".*")] == []

    def test_bad_scans_do_not_stop_the_others(
        self, weights: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = (scans / "a.nii.gz").read_bytes()
        for index in range(5):
            (scans / f"cut{index}.nii.gz").write_bytes(whole[: len(whole) // 2])
        assert embed(weights, scans, "--out", tmp_path / "t.parquet", "--level", "volume") == 0
        said = capsys.readouterr()
        assert "4 volumes, 22 slices" in said.out
        assert "left out: 5 with DATA-02" in said.out
        assert len(rows(tmp_path / "t.parquet")) == 4

    def test_only_bad_scans(
        self, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "scans").mkdir()
        (tmp_path / "scans" / "a.nii").write_bytes(b"nothing")
        assert embed(weights, tmp_path / "scans", "--out", tmp_path / "t.parquet") == 1
        assert "a.nii" in capsys.readouterr().err
        assert not (tmp_path / "t.parquet").exists()

    def test_another_model_or_a_strange_folder_is_refused(
        self, weights: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "each"
        assert embed(weights, scans, "--out", out) == 0
        torch.manual_seed(1)
        other = core_mri.save_model(core_mri.create_model("vit_micro_patch8"), tmp_path / "other")
        assert embed(other, scans, "--out", out) == 2
        assert "CONFIG-04" in capsys.readouterr().err
        strange = tmp_path / "strange"
        strange.mkdir()
        (strange / "mine.txt").write_text("mine")
        assert embed(weights, scans, "--out", strange) == 2
        assert "CONFIG-03" in capsys.readouterr().err
        assert [path.name for path in strange.iterdir()] == ["mine.txt"]


class TestInterruptions:
    def test_a_table_goes_on_after_a_crash(
        self,
        weights: Path,
        scans: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(embeddings, "PART_BYTES", 1)
        assert embed(weights, scans, "--out", tmp_path / "whole.parquet") == 0
        original, calls = Predictor.embed, []

        def crash_at_third(self: Predictor, *arguments: object, **options: object) -> object:
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError
            return original(self, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Predictor, "embed", crash_at_third)
        with pytest.raises(MemoryError):
            embed(weights, scans, "--out", tmp_path / "t.parquet")
        assert not (tmp_path / "t.parquet").exists()
        capsys.readouterr()
        assert embed(weights, scans, "--out", tmp_path / "t.parquet") == 0
        assert "2 volumes were there already" in capsys.readouterr().out
        assert len(calls) == 3 + 2
        assert rows(tmp_path / "t.parquet") == rows(tmp_path / "whole.parquet")

    def test_a_signal_keeps_what_is_complete(
        self, weights: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Predictor.embed

        def signalled(self: Predictor, *arguments: object, **options: object) -> object:
            os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Predictor, "embed", signalled)
        assert embed(weights, scans, "--out", tmp_path / "t.parquet") == 130
        monkeypatch.setattr(Predictor, "embed", original)
        assert embed(weights, scans, "--out", tmp_path / "t.parquet") == 0
        assert len(rows(tmp_path / "t.parquet")) == 22

    def test_a_killed_process_leaves_whole_files(self, weights: Path, tmp_path: Path) -> None:
        for index in range(60):
            volume = phantom_volume("brain", index, size=32, num_slices=24)[0]
            (tmp_path / "scans").mkdir(exist_ok=True)
            core_mri.write_volume(volume, tmp_path / "scans" / f"{index:02d}.nii.gz")
        out = tmp_path / "each"
        words = [str(weights), str(tmp_path / "scans"), "--out", str(out)]
        process = subprocess.Popen([sys.executable, "-m", "core_mri", "embed", *words])
        while not list(out.glob("*.npz")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        first = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
        assert 0 < len(first) < 60
        assert embed(*words) == 0
        for path in out.glob("*.npz"):
            with np.load(path) as found:
                assert found["cls"].shape == (24, 128)
            assert first.get(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
        assert len(list(out.glob("*.npz"))) == 60


class TestRegistry:
    def test_a_cohort(self, weights: Path, registry: Registry, tmp_path: Path) -> None:
        chosen = registry.volumes("role = 'image' AND sequence = 'T1'", limit=3)
        ids = ", ".join(f"'{row.volume_id}'" for row in chosen)
        freeze(registry, "three", f"volume_id IN ({ids})")
        out = tmp_path / "t.parquet"
        words = ("--registry", registry.path, "--cohort", "three")
        assert embed(weights, *words, "--out", out, "--level", "volume") == 0
        assert [row["volume"] for row in rows(out)] == [row.volume_id for row in chosen]
        vector = Predictor(core_mri.load_model(weights, device="cpu")).embed(
            registry.read(chosen[0])
        )
        assert np.allclose(rows(out)[0]["embedding"], vector.cls.mean(0), atol=1e-6)

    def test_nothing_fits(
        self,
        weights: Path,
        registry: Registry,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        words = ("--registry", registry.path, "--where", "region = 'moon'")
        assert embed(weights, *words, "--out", tmp_path / "t.parquet") == 1
        assert "DATA-09" in capsys.readouterr().err

"""`core-mri evaluate` on raw data: protocol, leaderboard layout, resuming, failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from core_mri.__main__ import main
from core_mri.files import write_kspace
from core_mri.physics import mask_seed, undersampling_mask
from downstream.reconstruction.scores import volume_scores
from tests.downstream.test_reconstruct import line_mask, make_samples, make_scan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = tmp_path / "kspace"
    files.mkdir()
    for number, acquisition in enumerate(("CORPD_FBK", "CORPD_FBK", "AXT2")):
        samples = (1 + number) * make_samples(slices=2, height=48, width=100)
        write_kspace(make_scan(samples, acquisition=acquisition), files / f"file{number}.h5")
    write_kspace(make_scan(make_samples(slices=1), line_mask(), acquisition="AXT2"),
                 files / "masked.h5")  # fmt: skip
    return files


def run(folder: Path, *more: object) -> int:
    words = ["--kspace", folder, "--out", folder.parent / "out", *more]
    return main(["evaluate", "reconstruction", *map(str, words)])


FAST = ("--sources", "zero-filled", "cg-sense")


def test_scores_by_acquisition(folder: Path, capsys: Any) -> None:
    assert run(folder, *FAST) == 0
    out = folder.parent / "out"
    results = json.loads((out / "results.json").read_text())
    tasks = {row["task"] for row in results["summary"]}
    assert tasks == {"CORPD_FBK 4x", "CORPD_FBK 8x", "AXT2 4x", "AXT2 8x", "AXT2 2x"}
    (row,) = (
        r for r in results["summary"]
        if (r["task"], r["weights"], r["metric"]) == ("CORPD_FBK 4x", "zero-filled", "PSNR")
    )  # fmt: skip
    values = [
        c["value"] for c in results["cells"]
        if (c["task"], c["weights"], c["metric"]) == ("CORPD_FBK 4x", "zero-filled", "PSNR")
    ]  # fmt: skip
    assert row["n"] == 2
    assert row["mean"] == pytest.approx(np.mean(values))
    methods = {c["task"][-2:]: c["method"] for c in results["cells"]}
    assert methods == {"4x": "simulated undersampling", "8x": "simulated undersampling",
                       "2x": "as acquired"}  # fmt: skip
    assert "CORPD_FBK 4x" in capsys.readouterr().out
    assert "simulated undersampling" in (out / "report.html").read_text()


def test_leaderboard_layout_and_protocol(folder: Path) -> None:
    """The images in the submission are those of fastMRI's mask, scored by its rules."""
    run(folder, *FAST)
    out = folder.parent / "out"
    names = sorted(p.name for p in (out / "submissions/cg-sense-4x/reconstructions").iterdir())
    assert names == ["file0.h5", "file1.h5", "file2.h5"]
    with h5py.File(out / "submissions/zero-filled-4x/reconstructions/file0.h5") as file:
        images = file["reconstruction"][()]
    assert images.shape == (2, 48, 100)
    assert images.dtype == np.float32
    samples = make_samples(slices=2, height=48, width=100)
    mask = undersampling_mask("random", (48, 100), center_fractions=[0.08], accelerations=[4],
                              seed=mask_seed("file0.h5"))  # fmt: skip
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(samples * mask.numpy(), axes=(2, 3)),
                                         norm="ortho"), axes=(2, 3))  # fmt: skip
    np.testing.assert_allclose(images, np.sqrt((np.abs(coils) ** 2).sum(1)), rtol=1e-3, atol=1e-5)
    with h5py.File(folder / "file0.h5") as file:
        expected = volume_scores(file["reconstruction_rss"][()], images)
    cells = json.loads((out / "results.json").read_text())["cells"]
    for metric, value in expected.items():
        found = [c["value"] for c in cells if c["structure"] == "file0" and c["metric"] == metric
                 and c["weights"] == "zero-filled" and c["task"] == "CORPD_FBK 4x"]  # fmt: skip
        assert found == [pytest.approx(value, rel=1e-4)]


def test_same_command_computes_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, *FAST)
    before = (folder.parent / "out" / "results.json").read_bytes()
    from downstream.reconstruction import suite

    monkeypatch.setattr(suite, "reconstruct_file", lambda _: pytest.fail("computed again"))
    assert run(folder, *FAST) == 0
    assert (folder.parent / "out" / "results.json").read_bytes() == before


def test_a_broken_file_is_recorded_and_the_rest_scored(folder: Path, capsys: Any) -> None:
    content = (folder / "file1.h5").read_bytes()
    (folder / "file1.h5").write_bytes(content[: len(content) // 3])
    assert run(folder, *FAST) == 1
    results = json.loads((folder.parent / "out" / "results.json").read_text())
    assert {f["cell"].split("-")[-2] for f in results["failed"]} == {"file1"}
    assert all("DATA-0" in f["error"] for f in results["failed"])
    assert any(c["structure"] == "file0" for c in results["cells"])


def test_volumes_of_a_patient_count_once(folder: Path) -> None:
    for number in range(2):
        with h5py.File(folder / f"file{number}.h5", "a") as file:
            file.attrs["patient_id"] = "planted-identifier"
    run(folder, *FAST)
    text = (folder.parent / "out" / "results.json").read_text()
    rows = [r for r in json.loads(text)["summary"] if r["task"] == "CORPD_FBK 4x"]
    assert {r["n"] for r in rows} == {1}
    assert "planted" not in text


def test_no_files(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "kspace").mkdir()
    assert run(tmp_path / "kspace") == 1
    assert "DATA-01" in capsys.readouterr().err


def test_unknown_source(folder: Path, capsys: Any) -> None:
    assert run(folder, "--sources", "wavlet") == 2
    assert "got wavlet" in capsys.readouterr().err

"""`core-mri reconstruct` as a user runs it: files in and out, geometry, resuming, odd input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import core_mri
from core_mri.__main__ import main
from core_mri.files import KSpace, KSpaceHeader, read_kspace, write_kspace
from core_mri.metrics import psnr
from core_mri.physics import fft2c, root_sum_of_squares
from tests.core_mri.simulated_scan import bodies, coil_profiles

LPS_AFFINE = (0.0, 1.25, 0.0, -60.0, 0.0, 0.0, -1.5, 50.0, -4.0, 0.0, 0.0, 30.0, 0.0, 0.0, 0.0, 1.0)


def make_samples(slices: int = 3, coils: int = 6, height: int = 64, width: int = 56) -> np.ndarray:
    image, maps = bodies(height, width), coil_profiles(coils, height, width)
    stack = torch.stack([fft2c(maps * image * (1 + 0.3 * s)) for s in range(slices)])
    grain = np.random.default_rng(0).normal(size=(2, *stack.shape)).astype(np.float32)
    return (stack + 0.002 * torch.complex(*torch.from_numpy(grain))).numpy()


def make_scan(samples: np.ndarray, mask: np.ndarray | None = None, **changes: Any) -> KSpace:
    height, width = samples.shape[2:]
    facts: dict[str, Any] = {
        "encoded_matrix": (height, width, 1), "recon_matrix": (height, width, 1),
        "encoded_fov_mm": (80.0, 84.0, 4.0), "recon_fov_mm": (80.0, 84.0, 4.0),
        "phase_center": width // 2, "phase_count": width, "facts": {"Modality": "MR"},
    }  # fmt: skip
    reference = root_sum_of_squares(core_mri.physics.ifft2c(torch.from_numpy(samples)), 1).numpy()
    return KSpace.from_slices(
        header=KSpaceHeader(**(facts | changes)),
        shape=samples.shape,  # type: ignore[arg-type]
        read_slice=lambda i: samples[i] if mask is None else samples[i] * mask,
        mask=mask,
        target=lambda i: reference[i],
    )


def line_mask(width: int = 56, step: int = 3, center: int = 14) -> np.ndarray:
    mask = np.zeros(width, dtype=bool)
    mask[::step] = True
    mask[width // 2 - center // 2 : width // 2 + center // 2] = True
    return mask


@pytest.fixture
def full(tmp_path: Path) -> Path:
    write_kspace(make_scan(make_samples()), tmp_path / "full.h5")
    return tmp_path / "full.h5"


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    write_kspace(make_scan(make_samples(), line_mask()), tmp_path / "masked.h5")
    return tmp_path / "masked.h5"


def reconstruct(*words: object) -> int:
    return main(["reconstruct", *map(str, words)])


def images_of(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        assert list(file) == ["reconstruction"]
        assert file["reconstruction"].dtype == np.float32
        return file["reconstruction"][()]


def reference_of(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["reconstruction_rss"][()]


class TestOutputs:
    @pytest.mark.parametrize("source", ["zero-filled", "cg-sense", "tv", "wavelet"])
    def test_hdf5(self, source: str, masked: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out" / "masked.h5"
        assert reconstruct(source, masked, "--out", out) == 0
        images = images_of(out)
        assert images.shape == (3, 64, 56)
        best = {"zero-filled": 17, "cg-sense": 27, "tv": 30, "wavelet": 33}
        assert psnr(reference_of(masked), images) > best[source]
        printed = capsys.readouterr().out
        assert "3 slices of 64x56" in printed
        assert "against reconstruction_rss: NMSE" in printed
        assert not list(tmp_path.glob("out/.*"))

    def test_a_mask_in_the_file_wins(self, masked: Path, tmp_path: Path) -> None:
        own, asked = tmp_path / "a.h5", tmp_path / "b.h5"
        reconstruct("zero-filled", masked, "--out", own)
        reconstruct("zero-filled", masked, "--out", asked, "--mask", "random", "--acceleration", 8)
        np.testing.assert_array_equal(images_of(own), images_of(asked))

    def test_drawn_masks(self, full: Path, tmp_path: Path, capsys: Any) -> None:
        """fastMRI's seed of the file name by default; the score says it is simulated."""
        words = ("--mask", "random", "--acceleration", 3, "--center-fraction", 0.25)
        for name, more in (("a", ()), ("b", ("--seed", "FILE")), ("c", ("--seed", 5))):
            out = tmp_path / f"{name}.h5"
            assert reconstruct("zero-filled", full, "--out", out, *words, *more) == 0
        assert "undersampling simulated" in capsys.readouterr().out
        np.testing.assert_array_equal(images_of(tmp_path / "a.h5"), images_of(tmp_path / "b.h5"))
        assert not np.array_equal(images_of(tmp_path / "a.h5"), images_of(tmp_path / "c.h5"))

    def test_true_geometry_of_ismrmrd(self, tmp_path: Path) -> None:
        scan = make_scan(make_samples(), line_mask(), affine=LPS_AFFINE,
                         recon_fov_mm=(60.0, 84.0, 4.0))  # fmt: skip
        write_kspace(scan, tmp_path / "a.h5", "ismrmrd")
        with read_kspace(tmp_path / "a.h5") as kspace:
            affine = np.reshape(kspace.header.affine, (4, 4))
            assert kspace.shape == (3, 6, 64, 56)
        assert reconstruct("wavelet", tmp_path / "a.h5", "--out", tmp_path / "a.nii.gz") == 0
        volume = core_mri.read_volume(tmp_path / "a.nii.gz")
        assert volume.shape == (56, 48, 3)
        # The voxel in the middle of the readout lies where it lay before the crop.
        np.testing.assert_allclose(
            volume.affine @ (10, 24, 2, 1), affine @ (2, 32, 10, 1), atol=1e-3
        )
        assert not volume.facts.get("assumed_geometry")
        assert reconstruct("wavelet", tmp_path / "a.h5", "--out", tmp_path / "dicom") == 0
        series = core_mri.read_volume(tmp_path / "dicom")
        assert series.same_grid(volume.reorient(series.orientation))
        np.testing.assert_allclose(
            series.array, volume.reorient(series.orientation).array, atol=series.array.max() / 60000
        )

    def test_declared_geometry_of_fastmri(self, masked: Path, tmp_path: Path, capsys: Any) -> None:
        assert reconstruct("zero-filled", masked, "--out", tmp_path / "dicom") == 0
        assert "geometry is synthetic" in capsys.readouterr().err
        volume = core_mri.read_volume(tmp_path / "dicom")
        assert "synthetic geometry" in str(volume.facts["SeriesDescription"])
        np.testing.assert_allclose(sorted(volume.spacing_mm), [80 / 64, 84 / 56, 4], rtol=1e-4)

    def test_report(self, full: Path, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        words = ("--mask", "random", "--acceleration", 3, "--center-fraction", 0.25)
        out = tmp_path / "a.h5"
        assert reconstruct("wavelet", full, "--out", out, "--report", page, *words) == 0
        text = page.read_text()
        for expected in ("Undersampling is simulated", "5 times as bright", "CPU s", "PSNR"):
            assert expected in text
        assert "synthetic: none is stated" in text


class TestResume:
    def test_continues_where_it_stopped(
        self, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from downstream.reconstruction.engine import Solver

        out, done = tmp_path / "a.h5", []
        real = Solver.reconstruct_slice

        def failing(solver: Solver, samples: Any, name: str) -> Any:
            if name.endswith("slice 2"):
                raise KeyboardInterrupt
            return real(solver, samples, name)

        def counted(solver: Solver, samples: Any, name: str) -> Any:
            done.append(name)
            return real(solver, samples, name)

        monkeypatch.setattr(Solver, "reconstruct_slice", failing)
        assert reconstruct("wavelet", masked, "--out", out) == 130
        assert not out.exists()
        monkeypatch.setattr(Solver, "reconstruct_slice", counted)
        assert reconstruct("wavelet", masked, "--out", out) == 0
        assert [name[-1] for name in done] == ["2"]
        assert images_of(out).shape == (3, 64, 56)
        assert not list(tmp_path.glob(".a.h5*"))

    def test_other_settings_start_anew(
        self, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from downstream.reconstruction import stream

        real = stream.write_output
        monkeypatch.setattr(
            stream, "write_output", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        out = tmp_path / "a.h5"
        assert reconstruct("zero-filled", masked, "--out", out) == 130
        monkeypatch.setattr(stream, "write_output", real)
        assert reconstruct("cg-sense", masked, "--out", out) == 0
        assert psnr(reference_of(masked), images_of(out)) > 27

    def test_sources_are_never_changed(self, masked: Path, tmp_path: Path) -> None:
        before = masked.read_bytes()
        reconstruct("wavelet", masked, "--out", tmp_path / "a.nii")
        assert masked.read_bytes() == before


class TestOddInput:
    """It works, or the message says what was found and what is needed."""

    def run(
        self, samples: np.ndarray, tmp_path: Path, *words: object, **changes: Any
    ) -> np.ndarray:
        write_kspace(make_scan(samples, **changes), tmp_path / "a.h5")
        assert reconstruct("wavelet", tmp_path / "a.h5", "--out", tmp_path / "o.h5", *words) == 0
        return images_of(tmp_path / "o.h5")

    def test_single_coil(self, tmp_path: Path) -> None:
        images = self.run(make_samples(coils=1), tmp_path, mask=line_mask())
        assert psnr(bodies(64, 56).abs()[None], images[:1]) > 17

    def test_single_coil_without_a_coil_axis(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace"] = make_samples(coils=1)[:, 0]
        assert reconstruct("wavelet", tmp_path / "a.h5", "--out", tmp_path / "o.h5") == 0
        assert psnr(bodies(64, 56).abs()[None], images_of(tmp_path / "o.h5")[:1]) > 30

    def test_one_slice(self, tmp_path: Path) -> None:
        assert self.run(make_samples(slices=1), tmp_path, mask=line_mask()).shape == (1, 64, 56)

    def test_acceleration_one(self, tmp_path: Path) -> None:
        images = self.run(make_samples(), tmp_path)
        assert psnr(bodies(64, 56).abs()[None], images[:1]) > 33

    def test_odd_sizes(self, tmp_path: Path) -> None:
        samples = make_samples(height=63, width=55)
        images = self.run(samples, tmp_path, mask=line_mask(55))
        assert psnr(bodies(63, 55).abs()[None], images[:1]) > 30

    def test_lines_of_zeros_count_as_missing(self, tmp_path: Path) -> None:
        """No mask is stated, a third of the outer lines is empty."""
        samples = make_samples() * ~np.isin(np.arange(56), [3, 9, 14, 19, 37, 41, 44, 50])
        images = self.run(samples.astype(np.complex64), tmp_path)
        assert psnr(bodies(64, 56).abs()[None], images[:1]) > 33

    def test_a_silent_slice(self, tmp_path: Path) -> None:
        samples = make_samples()
        samples[1] = 0
        images = self.run(samples, tmp_path, mask=line_mask())
        assert not images[1].any()
        assert images[2].any()

    def test_padding_counts_as_zeros(self, tmp_path: Path) -> None:
        """Lines beyond the limits of the header were never to be measured: nothing is made up."""
        samples = make_samples()
        samples[..., :8] = samples[..., 48:] = 0
        images = self.run(samples, tmp_path, phase_center=20, phase_count=40)
        expected = root_sum_of_squares(core_mri.physics.ifft2c(torch.from_numpy(samples[0])), 0)
        assert psnr(expected[None], images[:1]) > 35

    def test_not_finite(self, tmp_path: Path, capsys: Any) -> None:
        samples = make_samples()
        samples[1, 2, 3, 28] = np.nan
        write_kspace(make_scan(samples), tmp_path / "a.h5")
        assert reconstruct("wavelet", tmp_path / "a.h5", "--out", tmp_path / "o.h5") == 1
        assert "DATA-04" in (message := capsys.readouterr().err)
        assert "1 of 21504 samples of slice 1 are not finite" in message
        assert not (tmp_path / "o.h5").exists()

    def test_no_center(self, tmp_path: Path, capsys: Any) -> None:
        mask = line_mask()
        mask[28] = False
        write_kspace(make_scan(make_samples(), mask), tmp_path / "a.h5")
        assert reconstruct("wavelet", tmp_path / "a.h5", "--out", tmp_path / "o.h5") == 1
        message = capsys.readouterr().err
        assert "DATA-21" in message
        assert (
            "slice 0: the center of k-space, line 28 of 56, is missing. Use zero-filled" in message
        )
        assert reconstruct("zero-filled", tmp_path / "a.h5", "--out", tmp_path / "o.h5") == 0

    def test_no_calibration_region(self, tmp_path: Path, capsys: Any) -> None:
        mask = line_mask(step=2, center=2)
        write_kspace(make_scan(make_samples(), mask), tmp_path / "a.h5")
        assert reconstruct("cg-sense", tmp_path / "a.h5", "--out", tmp_path / "o.h5") == 1
        assert "fully sampled lines, at least 4 are needed" in capsys.readouterr().err

    def test_number_of_coils_changes(self, tmp_path: Path, capsys: Any) -> None:
        write_kspace(make_scan(make_samples(), affine=LPS_AFFINE), tmp_path / "a.h5", "ismrmrd")
        with h5py.File(tmp_path / "a.h5", "a") as file:
            rows = file["dataset/data"][:]
            rows["head"]["active_channels"][5] = 4
            file["dataset/data"][:] = rows
        assert reconstruct("wavelet", tmp_path / "a.h5", "--out", tmp_path / "o.h5") == 1
        assert "number of coils changes within the scan: 4 and 6" in capsys.readouterr().err

    def test_no_such_volume(self, masked: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "o.h5"
        assert reconstruct("wavelet", masked, "--out", out, "--volume", 2) == 2
        assert "it holds 1 (0 to 0)" in capsys.readouterr().err

    def test_wrong_source(self, masked: Path, tmp_path: Path, capsys: Any) -> None:
        assert reconstruct("wavlet", masked, "--out", tmp_path / "o.h5") == 2
        assert "must be one of zero-filled, cg-sense, tv, wavelet" in capsys.readouterr().err

    def test_folder_that_holds_something(self, masked: Path, tmp_path: Path) -> None:
        (tmp_path / "dicom").mkdir()
        (tmp_path / "dicom" / "precious.txt").write_text("kept")
        assert reconstruct("wavelet", masked, "--out", tmp_path / "dicom") == 2
        assert (tmp_path / "dicom" / "precious.txt").read_text() == "kept"

    def test_partial_fourier(self, tmp_path: Path) -> None:
        mask = np.ones(56, dtype=bool)
        mask[37:] = False
        write_kspace(make_scan(make_samples(), mask), tmp_path / "a.h5")
        scores = {}
        for kind in ("none", "homodyne", "pocs"):
            out = tmp_path / f"{kind}.h5"
            words = ("--out", out, "--partial-fourier", kind)
            assert reconstruct("zero-filled", tmp_path / "a.h5", *words) == 0
            scores[kind] = psnr(reference_of(tmp_path / "a.h5"), images_of(out))
        assert min(scores["homodyne"], scores["pocs"]) > scores["none"] + 1

    def test_partial_fourier_of_the_header(self, tmp_path: Path) -> None:
        """A side that the limits cut short is missing, not padding."""
        samples = make_samples()
        samples[..., :19] = 0
        limits = {"phase_center": 9, "phase_count": 37}
        zeros = self.run(samples, tmp_path, **limits)
        filled = self.run(samples, tmp_path, "--partial-fourier", "pocs", **limits)
        truth = bodies(64, 56).abs()[None]
        assert min(psnr(truth, zeros[:1]), psnr(truth, filled[:1])) > 27


class TestBackends:
    @pytest.mark.parametrize("backend", ["sigpy", "bart"])
    @pytest.mark.parametrize("source", ["cg-sense", "tv", "wavelet"])
    def test_agrees(self, backend: str, source: str, masked: Path, tmp_path: Path) -> None:
        if backend == "bart" and shutil.which("bart") is None:
            pytest.skip("BART is not installed")
        out = tmp_path / "o.h5"
        words = ("--backend", backend, "--iterations", 60)
        assert reconstruct(source, masked, "--out", out, *words) == 0
        assert psnr(reference_of(masked), images_of(out)) > 24

    def test_bart_that_is_not_there(
        self, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        out = tmp_path / "o.h5"
        assert reconstruct("tv", masked, "--out", out, "--backend", "bart") == 2
        assert "CONFIG-06: BART is not installed" in capsys.readouterr().err

    def test_backend_without_that_source(self, masked: Path, tmp_path: Path) -> None:
        words = ("--out", tmp_path / "o.h5", "--backend", "bart")
        assert reconstruct("zero-filled", masked, *words) == 2

    def test_grappa(self, tmp_path: Path) -> None:
        pytest.importorskip("pygrappa")
        write_kspace(make_scan(make_samples(coils=8), line_mask(step=2)), tmp_path / "a.h5")
        assert reconstruct("grappa", tmp_path / "a.h5", "--out", tmp_path / "o.h5") == 0
        assert psnr(reference_of(tmp_path / "a.h5"), images_of(tmp_path / "o.h5")) > 27


@pytest.mark.data
class TestRealScans:
    def test_brain(self, shared_data: Path, tmp_path: Path) -> None:
        """Eightfold undersampled: noise-like artifacts of zero-filling in air are gone."""
        path = shared_data / "kspace" / "brain_8ch_cartesian_ksp.npy"
        air = {}
        for source in ("zero-filled", "wavelet"):
            assert reconstruct(source, path, "--out", tmp_path / f"{source}.h5") == 0
            image = images_of(tmp_path / f"{source}.h5")[0]
            assert image.shape == (230, 180)
            air[source] = image[:8].mean() / np.quantile(image, 0.9)
        assert air["wavelet"] < 0.25 * air["zero-filled"]

    def test_phantom(self, shared_data: Path, tmp_path: Path) -> None:
        """R = 3 and calibration lines: no alias beside the bottles, and the scan's own geometry."""
        path = shared_data / "kspace" / "phantom_14ch_R3_ismrmrd.h5"
        alias = {}
        for source in ("zero-filled", "cg-sense", "wavelet"):
            assert reconstruct(source, path, "--out", tmp_path / f"{source}.nii") == 0
            volume = core_mri.read_volume(tmp_path / f"{source}.nii")
            assert volume.shape == (144, 192, 1)
            beside = np.asarray(volume.array)[125:, 40:70, 0]
            alias[source] = beside.mean() / np.quantile(volume.array, 0.9)
        assert alias["cg-sense"] < 0.5 * alias["zero-filled"]
        assert alias["wavelet"] < 0.3 * alias["zero-filled"]
        np.testing.assert_allclose(volume.spacing_mm, (210 / 144, 280 / 192, 8), rtol=1e-4)
        assert not volume.facts.get("assumed_geometry")

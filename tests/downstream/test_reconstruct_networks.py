"""Networks as sources of `core-mri reconstruct` and `evaluate`, and the guards of every result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import core_mri
from core_mri.__main__ import main
from core_mri.errors import CoreMRIError, DataError, WeightsError
from core_mri.files import read_kspace, write_kspace
from core_mri.models import create_reconstructor
from core_mri.models.registry import UnetConfig
from core_mri.physics import draw_mask, fft2c, mask_seed, zero_padding
from core_mri.physics.phantoms import phantom_volume
from downstream.reconstruction.halves import halves
from tests.core_mri.simulated_scan import coil_profiles
from tests.downstream.test_reconstruct import LPS_AFFINE, line_mask, make_samples, make_scan

DRAWN = ("--mask", "random", "--acceleration", 3, "--center-fraction", 0.25)


def reconstruct(*words: object) -> int:
    return main(["reconstruct", *map(str, words)])


def dataset(path: Path, name: str = "reconstruction") -> np.ndarray:
    with h5py.File(path) as file:
        return file[name][()]


@pytest.fixture
def full(tmp_path: Path) -> Path:
    write_kspace(make_scan(make_samples()), tmp_path / "full.h5")
    return tmp_path / "full.h5"


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    write_kspace(make_scan(make_samples(), line_mask()), tmp_path / "masked.h5")
    return tmp_path / "masked.h5"


@pytest.fixture
def varnet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return core_mri.save_model(core_mri.create_model("varnet_micro"), tmp_path / "varnet")


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return core_mri.save_model(core_mri.create_model("recon_unet_micro"), tmp_path / "unet")


class TestSources:
    def test_what_the_network_itself_makes(self, full: Path, varnet: Path, tmp_path: Path) -> None:
        """fastMRI's mask of the file name and its number of center lines."""
        assert reconstruct(varnet, full, "--out", tmp_path / "a.h5", *DRAWN) == 0
        drawn = draw_mask("random", (64, 56), center_fractions=[0.25], accelerations=[3],
                          seed=mask_seed("full.h5"))  # fmt: skip
        mask = drawn.mask.reshape(-1)
        model: Any = core_mri.load_model(varnet, device="cpu")
        expected = model.reconstruct(
            torch.from_numpy(make_samples()) * mask, mask, size=(64, 56),
            num_low=drawn.num_low_frequencies,
        )  # fmt: skip
        np.testing.assert_allclose(dataset(tmp_path / "a.h5"), expected, rtol=1e-4, atol=1e-5)

    def test_padding_is_not_measured(self, varnet: Path, tmp_path: Path) -> None:
        """As fastMRI zeroes the mask beyond the limits of the header, one line more or less."""
        samples = make_samples(slices=1)
        samples[..., :8] = samples[..., 45:] = 0
        scan = make_scan(samples, phase_center=20, phase_count=37)
        write_kspace(scan, tmp_path / "padded.h5")
        out = tmp_path / "a.h5"
        assert reconstruct(varnet, tmp_path / "padded.h5", "--out", out, *DRAWN) == 0
        drawn = draw_mask("random", (64, 56), center_fractions=[0.25], accelerations=[3],
                          seed=mask_seed("padded.h5"))  # fmt: skip
        mask = zero_padding(drawn.mask.reshape(-1), 8, 45)
        model: Any = core_mri.load_model(varnet, device="cpu")
        expected = model.reconstruct(torch.from_numpy(samples) * mask, mask, size=(64, 56),
                                     num_low=drawn.num_low_frequencies)  # fmt: skip
        np.testing.assert_allclose(dataset(out), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("ending", [".h5", ".nii.gz", ""])
    def test_outputs_and_predictor(
        self, ending: str, unet: Path, tmp_path: Path, capsys: Any
    ) -> None:
        scan = make_scan(make_samples(), line_mask(), affine=LPS_AFFINE,
                         recon_fov_mm=(60.0, 84.0, 4.0))  # fmt: skip
        write_kspace(scan, tmp_path / "a.h5", "ismrmrd")
        out, page = tmp_path / f"out{ending}", tmp_path / "page.html"
        assert reconstruct(unet, tmp_path / "a.h5", "--out", out, "--report", page) == 0
        assert "residual of the measured samples" in capsys.readouterr().out
        assert "residual" in page.read_text()
        predictor = core_mri.Predictor(core_mri.load_model(unet, device="cpu"))  # type: ignore[arg-type]
        with read_kspace(tmp_path / "a.h5") as kspace:
            volume = predictor.reconstruct(kspace)
        assert volume.shape == (56, 48, 3)
        if ending == ".h5":
            np.testing.assert_array_equal(dataset(out).transpose(2, 1, 0), volume.array)
        else:
            read = core_mri.read_volume(out)
            assert read.same_grid(volume.reorient(read.orientation))
            expected = volume.reorient(read.orientation).array
            np.testing.assert_allclose(read.array, expected, atol=np.abs(expected).max() / 60000)

    def test_arrays_through_the_predictor(self, varnet: Path) -> None:
        model: Any = core_mri.load_model(varnet, device="cpu")
        samples, mask = make_samples() * line_mask(), torch.from_numpy(line_mask())
        volume = core_mri.Predictor(model).reconstruct(samples)
        expected = model.reconstruct(torch.from_numpy(samples), mask, size=(64, 56))
        np.testing.assert_allclose(volume.array.transpose(2, 1, 0), expected, rtol=1e-5)
        assert volume.facts["assumed_geometry"]

    def test_checkpoints_of_fastmri(self, masked: Path, tmp_path: Path) -> None:
        model = core_mri.create_model("recon_unet_micro")
        torch.save(model.state_dict(), tmp_path / "unet.pt")
        core_mri.save_model(model, tmp_path / "folder")
        for name, source in (("a", f"fastmri-unet:{tmp_path / 'unet.pt'}"), ("b", "folder")):
            source = source if ":" in source else str(tmp_path / source)
            assert reconstruct(source, masked, "--out", tmp_path / f"{name}.h5") == 0
        np.testing.assert_array_equal(dataset(tmp_path / "a.h5"), dataset(tmp_path / "b.h5"))

    def test_other_weights_in_the_same_folder_start_anew(
        self, masked: Path, unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from downstream.reconstruction import stream

        real, out = stream.write_output, tmp_path / "a.h5"
        monkeypatch.setattr(
            stream, "write_output", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert reconstruct(unet, masked, "--out", out) == 130
        torch.manual_seed(1)
        core_mri.save_model(core_mri.create_model("recon_unet_micro"), unet)
        monkeypatch.setattr(stream, "write_output", real)
        assert reconstruct(unet, masked, "--out", out) == 0
        assert reconstruct(unet, masked, "--out", tmp_path / "b.h5") == 0
        np.testing.assert_array_equal(dataset(out), dataset(tmp_path / "b.h5"))


class TestOddInput:
    def run(self, source: Path, scan: Any, tmp_path: Path, *words: object) -> np.ndarray:
        write_kspace(scan, tmp_path / "scan.h5")
        assert reconstruct(source, tmp_path / "scan.h5", "--out", tmp_path / "o.h5", *words) == 0
        images = dataset(tmp_path / "o.h5")
        assert np.isfinite(images).all()
        return images

    @pytest.mark.parametrize("kind", ["unet", "varnet"])
    def test_blank_slice(self, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        samples = make_samples(slices=2)
        samples[1] = 0
        scan = make_scan(samples, line_mask())
        images = self.run(request.getfixturevalue(kind), scan, tmp_path, "--error-map")
        assert images[0].any()
        assert not images[1].any()

    @pytest.mark.parametrize("kind", ["unet", "varnet"])
    def test_odd_sides(self, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        scan = make_scan(make_samples(slices=2, height=63, width=51), line_mask(51))
        images = self.run(request.getfixturevalue(kind), scan, tmp_path)
        assert images.shape == (2, 63, 51)

    def test_one_coil(self, unet: Path, tmp_path: Path) -> None:
        self.run(unet, make_scan(make_samples(coils=1), line_mask()), tmp_path)

    def test_no_center(self, unet: Path, varnet: Path, tmp_path: Path, capsys: Any) -> None:
        """VarNet needs it, a U-Net goes on; its residual cannot be told."""
        mask = line_mask()
        mask[27:30] = False
        self.run(unet, make_scan(make_samples(), mask), tmp_path, "--json")
        assert json.loads(capsys.readouterr().out)["residual"] == [None] * 3
        out = tmp_path / "v.h5"
        assert reconstruct(varnet, tmp_path / "scan.h5", "--out", out) == 1
        message = capsys.readouterr().err
        assert "DATA-21" in message
        assert "slice 0" in message

    @pytest.mark.parametrize("coils", ["single", "multi"])
    def test_another_coil_mode(self, coils: str, tmp_path: Path, capsys: Any) -> None:
        model = core_mri.create_model("recon_unet_micro", coils=coils)
        core_mri.save_model(model, tmp_path / "w")
        number = 4 if coils == "single" else 1
        write_kspace(make_scan(make_samples(coils=number), line_mask()), tmp_path / "s.h5")
        assert reconstruct(tmp_path / "w", tmp_path / "s.h5", "--out", tmp_path / "o.h5") == 1
        message = capsys.readouterr().err
        assert "WEIGHTS-12" in message
        assert str(tmp_path / "s.h5") in message
        assert not (tmp_path / "o.h5").exists()

    def test_other_channels(self, masked: Path, tmp_path: Path, capsys: Any) -> None:
        model = create_reconstructor(UnetConfig(channels=4, pools=2, in_channels=2, out_channels=2))
        core_mri.save_model(model, tmp_path / "w")
        assert reconstruct(tmp_path / "w", masked, "--out", tmp_path / "o.h5") == 1
        assert "WEIGHTS-11" in capsys.readouterr().err

    def test_too_small_a_matrix(self, unet: Path, tmp_path: Path, capsys: Any) -> None:
        write_kspace(make_scan(make_samples(height=8, width=12)), tmp_path / "s.h5")
        assert reconstruct(unet, tmp_path / "s.h5", "--out", tmp_path / "o.h5") == 1
        assert "WEIGHTS-11" in (message := capsys.readouterr().err)
        assert "slice 0" in message

    def test_weights_that_do_not_reconstruct(
        self, masked: Path, tmp_path: Path, capsys: Any
    ) -> None:
        core_mri.save_model(core_mri.create_model("vit_micro_patch8"), tmp_path / "w")
        assert reconstruct(tmp_path / "w", masked, "--out", tmp_path / "o.h5") == 1
        assert "WEIGHTS-10: these weights (Encoder)" in capsys.readouterr().err

    def test_damaged_weights(self, masked: Path, unet: Path, tmp_path: Path, capsys: Any) -> None:
        tensors = unet / "model.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-100])
        assert reconstruct(unet, masked, "--out", tmp_path / "o.h5") == 1
        assert "WEIGHTS-01" in capsys.readouterr().err

    def test_weights_of_not_a_number(self, masked: Path, tmp_path: Path, capsys: Any) -> None:
        model = core_mri.create_model("recon_unet_micro")
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        core_mri.save_model(model, tmp_path / "w")
        assert reconstruct(tmp_path / "w", masked, "--out", tmp_path / "o.h5") == 1
        assert "DATA-40" in (message := capsys.readouterr().err)
        assert "slice 0" in message
        assert not (tmp_path / "o.h5").exists()

    def test_no_such_weights(self, masked: Path, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "o.h5"
        assert reconstruct(f"fastmri-unet:{tmp_path / 'none.pt'}", masked, "--out", out) == 1
        assert "WEIGHTS-01" in capsys.readouterr().err
        assert reconstruct(tmp_path / "none", masked, "--out", out) == 2
        assert "CONFIG-01" in capsys.readouterr().err

    def test_settings_of_solvers(self, masked: Path, unet: Path, tmp_path: Path) -> None:
        for words in (("--weight", 0.1), ("--iterations", 3), ("--maps", "low-resolution"),
                      ("--partial-fourier", "pocs"), ("--backend", "sigpy")):  # fmt: skip
            assert reconstruct(unet, masked, "--out", tmp_path / "o.h5", *words) == 2

    def test_predictor_of_another_model(self) -> None:
        encoder = core_mri.Predictor(core_mri.create_model("vit_micro_patch8"))
        with pytest.raises(WeightsError) as caught:
            encoder.reconstruct(make_samples())
        assert caught.value.code == "WEIGHTS-10"
        network = core_mri.Predictor(core_mri.create_model("recon_unet_micro"))
        with pytest.raises(CoreMRIError) as other:
            network.embed(core_mri.Volume(np.ones((8, 8, 2), np.float32), np.eye(4)))
        assert other.value.code == "WEIGHTS-02"
        for wrong in (np.ones((2, 3, 4), np.float32), np.ones((8, 8), np.complex64)):
            with pytest.raises(DataError):
                network.reconstruct(wrong)


class TestGuards:
    @pytest.mark.parametrize("source", ["zero-filled", "cg-sense", "wavelet", "unet", "varnet"])
    def test_residual(
        self, source: str, masked: Path, tmp_path: Path, capsys: Any,
        request: pytest.FixtureRequest,
    ) -> None:  # fmt: skip
        named = request.getfixturevalue(source) if source.endswith("net") else source
        assert reconstruct(named, masked, "--out", tmp_path / "a.h5", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert len(found["residual"]) == 3
        # Random weights contradict the samples, a solver explains them but for their noise.
        low, high = {"zero-filled": (0.02, 0.5), "unet": (0.1, 9), "varnet": (0.02, 9)}.get(
            source, (0.001, 0.02)
        )
        assert all(low < r < high for r in found["residual"])

    @pytest.mark.parametrize("source", ["zero-filled", "cg-sense"])
    def test_residual_of_all_columns(self, source: str, tmp_path: Path, capsys: Any) -> None:
        """That the image is cut to its field of view makes it explain no less: the rest is free."""
        found = []
        for columns in (56, 40):
            scan = make_scan(make_samples(), line_mask(), recon_matrix=(columns, columns, 1))
            write_kspace(scan, tmp_path / "a.h5")
            assert reconstruct(source, tmp_path / "a.h5", "--out", tmp_path / "o.h5", "--json") == 0
            assert dataset(tmp_path / "o.h5").shape == (3, columns, columns)
            found.append(json.loads(capsys.readouterr().out)["residual"])
        np.testing.assert_allclose(found[1], found[0], rtol=0.3)

    @pytest.mark.parametrize(
        ("source", "rate", "center"),
        [("zero-filled", 4, 0.08), ("cg-sense", 4, 0.1), ("wavelet", 6, 0.1)],
    )
    def test_error_map_in_hdf5(
        self, source: str, rate: int, center: float, tmp_path: Path, capsys: Any
    ) -> None:
        """Where the map is large the image is wrong, on a simulated scan of a phantom."""
        volume, _ = phantom_volume("brain", 3, "T2", size=128, num_slices=3)
        truth = np.ascontiguousarray(volume.array[:, :, 1].T, np.float32)[None]
        truth /= truth.max()
        y, x = np.mgrid[-1 : 1 : truth.shape[1] * 1j, -1 : 1 : truth.shape[2] * 1j]
        image = torch.from_numpy((truth[0] * np.exp(1j * (x + y * y))).astype(np.complex64))
        samples = fft2c(coil_profiles(6, *truth.shape[1:]) * image)[None].numpy()
        grain = np.random.default_rng(0).normal(size=(2, *samples.shape)).astype(np.float32)
        samples = samples + 0.003 * (grain[0] + 1j * grain[1])
        write_kspace(make_scan(samples.astype(np.complex64)), tmp_path / "full.h5")
        out, page = tmp_path / "a.h5", tmp_path / "page.html"
        words = ("--error-map", "--report", page, "--json", "--mask", "random", "--seed", 1,
                 "--acceleration", rate, "--center-fraction", center)  # fmt: skip
        assert reconstruct(source, tmp_path / "full.h5", "--out", out, *words) == 0
        images, errors = dataset(out), dataset(out, "error_map")
        assert errors.shape == images.shape
        assert errors.dtype == np.float32
        found = correlation(errors, np.abs(images - truth))
        assert '"error_map": "' + str(out) in capsys.readouterr().out
        print(f"\ncorrelation of error map and error, {source}, {rate}x: {found:.2f}")
        assert found > 0.5
        assert "Where two halves of the samples" in page.read_text()

    def test_error_map_beside_a_volume(self, masked: Path, tmp_path: Path) -> None:
        words = ("--error-map", "--out")
        assert reconstruct("wavelet", masked, *words, tmp_path / "a.nii.gz") == 0
        image, error = (core_mri.read_volume(tmp_path / f"a{n}.nii.gz") for n in ("", "_error"))
        assert error.same_grid(image)
        assert float(np.max(error.array)) > 0
        assert reconstruct("wavelet", masked, *words, tmp_path / "dicom") == 0
        assert core_mri.read_volume(tmp_path / "dicom_error").shape == (56, 64, 3)

    def test_error_map_of_a_single_line(self, tmp_path: Path) -> None:
        """One half has nothing then."""
        mask = np.arange(56) == 20
        write_kspace(make_scan(make_samples(), mask, recon_matrix=(40, 40, 1)), tmp_path / "a.h5")
        out = tmp_path / "o.h5"
        assert reconstruct("zero-filled", tmp_path / "a.h5", "--out", out, "--error-map") == 0
        assert np.isfinite(dataset(out, "error_map")).all()

    def test_halves(self) -> None:
        mask = line_mask()
        first, second = halves(mask)
        center = np.zeros(56, dtype=bool)
        center[21:35] = True
        np.testing.assert_array_equal(first | second, mask)
        np.testing.assert_array_equal(first & second, mask & center)
        assert abs(int(first.sum()) - int(second.sum())) <= 1

    def test_halves_of_points(self) -> None:
        points = np.random.default_rng(0).random((40, 30)) < 0.4
        points[14:26, 9:21] = True
        first, second = halves(points)
        np.testing.assert_array_equal(first | second, points)
        assert (first & second)[14:26, 9:21].all()
        assert abs(int(first.sum()) - int(second.sum())) <= 1

    def test_halves_without_a_center(self) -> None:
        mask = np.arange(30) % 2 == 0
        mask[15] = False
        first, second = halves(mask)
        np.testing.assert_array_equal(first | second, mask)
        assert not (first & second).any()


@pytest.mark.data
def test_real_phantom(shared_data: Path, varnet: Path, tmp_path: Path, capsys: Any) -> None:
    """Random weights on the real scan: what a network sees and where its image lies."""
    path = shared_data / "kspace" / "phantom_14ch_R3_ismrmrd.h5"
    for name, source in (("net", str(varnet)), ("solver", "cg-sense")):
        assert reconstruct(source, path, "--out", tmp_path / f"{name}.nii", "--json") == 0
        (residual,) = json.loads(capsys.readouterr().out)["residual"]
        assert 0.005 < residual < (0.03 if name == "solver" else 1)
    image, other = (core_mri.read_volume(tmp_path / f"{n}.nii") for n in ("net", "solver"))
    assert image.same_grid(other)
    assert np.isfinite(image.array).all()


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


class TestSuite:
    def test_weights_compete(self, unet: Path, varnet: Path, tmp_path: Path) -> None:
        scan = make_scan(make_samples(slices=2, height=48, width=100), acquisition="CORPD_FBK")
        write_kspace(scan, tmp_path / "scan.h5")
        out = tmp_path / "out"
        words = ["evaluate", "reconstruction", "--kspace", str(tmp_path / "scan.h5"), "--out",
                 str(out), "--sources", "zero-filled", str(unet), f"mine={varnet}"]  # fmt: skip
        assert main(words) == 0
        results = json.loads((out / "results.json").read_text())
        assert {row["weights"] for row in results["summary"]} == {"zero-filled", "unet", "mine"}
        metrics = {row["metric"] for row in results["summary"]}
        assert metrics == {"NMSE", "PSNR", "SSIM", "residual"}
        assert (out / "submissions/mine-4x/reconstructions/scan.h5").is_file()
        before = (out / "results.json").read_bytes()
        assert main(words) == 0
        assert (out / "results.json").read_bytes() == before

    def test_one_name_for_two(self, unet: Path, tmp_path: Path, capsys: Any) -> None:
        words = ["evaluate", "reconstruction", "--kspace", str(tmp_path), "--out",
                 str(tmp_path / "out"), "--sources", str(unet), f"unet={unet}"]  # fmt: skip
        assert main(words) == 2
        assert "NAME=WEIGHTS" in capsys.readouterr().err

    def test_weights_for_other_coils_fail_alone(self, full: Path, tmp_path: Path) -> None:
        model = core_mri.create_model("recon_unet_micro", coils="single")
        core_mri.save_model(model, tmp_path / "single")
        out = tmp_path / "out"
        words = ["evaluate", "reconstruction", "--kspace", str(full), "--out", str(out),
                 "--sources", "zero-filled", str(tmp_path / "single"),
                 "--undersampling.0.center-fraction", "0.2",
                 "--undersampling.1.center-fraction", "0.1"]  # fmt: skip
        assert main(words) == 1
        results = json.loads((out / "results.json").read_text())
        assert all("WEIGHTS-12" in failed["error"] for failed in results["failed"])
        assert {cell["weights"] for cell in results["cells"]} == {"zero-filled"}

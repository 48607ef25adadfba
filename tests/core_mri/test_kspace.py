"""Raw data in and out: values, headers, and files that lie."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from core_mri.errors import CoreMRIError
from core_mri.files.kspace import KSpace, KSpaceHeader, read_kspace, write_kspace
from core_mri.physics import fft2c, fftnc, ifft2c, root_sum_of_squares

XML = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<subjectInformation><patientName>Planted Name</patientName><patientID>77</patientID>
</subjectInformation><acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor>
<systemFieldStrength_T>2.89</systemFieldStrength_T></acquisitionSystemInformation><encoding>
<encodedSpace><matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize><fieldOfView_mm><x>280</x>
<y>140</y><z>4.5</z></fieldOfView_mm></encodedSpace><reconSpace><matrixSize><x>20</x><y>20</y>
<z>1</z></matrixSize><fieldOfView_mm><x>140</x><y>140</y><z>4.5</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>
<center>{center}</center></kspace_encoding_step_1></encodingLimits><trajectory>{trajectory}</trajectory>
</encoding><sequenceParameters><TR>2500</TR><TE>32.5</TE><flipAngle_deg>140</flipAngle_deg>
</sequenceParameters></ismrmrdHeader>"""


def xml(x: int = 40, y: int = 31, center: int = 15, last: int = 30,
        trajectory: str = "cartesian") -> str:  # fmt: skip
    return XML.format(x=x, y=y, center=center, last=last, trajectory=trajectory)


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*shape, 2)).astype(np.float32).view(np.complex64)[..., 0]


def save(path: Path, kspace: np.ndarray, header: str | None = None, **extra: Any) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = header or xml(kspace.shape[-2], kspace.shape[-1])
        for name, value in extra.items():
            if isinstance(value, np.ndarray):
                file[name] = value
            else:
                file.attrs[name] = value
    return path


def whole(kspace: KSpace, volume: int = 0) -> np.ndarray:
    return np.stack([kspace.read_slice(i, volume) for i in range(kspace.shape[0])])


def scan(shape: tuple[int, int, int, int], seed: int = 0, **options: Any) -> KSpace:
    """A scan made of an array."""
    samples = draw((options.get("num_volumes", 1), *shape), seed)
    mask = options.pop("mask", None)
    if mask is not None:
        samples = samples * mask
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (4.0, 0.9, 1.1)
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    header = KSpaceHeader(
        encoded_matrix=(shape[2], shape[3], 1), recon_matrix=(shape[2] // 2, shape[3], 1),
        encoded_fov_mm=(0.9 * shape[2], 1.1 * shape[3], 4.0),
        recon_fov_mm=(0.45 * shape[2], 1.1 * shape[3], 4.0),
        phase_center=shape[3] // 2 - 1, phase_count=shape[3] - 3, acceleration=2.0,
        affine=options.pop("affine", tuple(affine.ravel())),
        acquisition="AXT2",
        facts={"EchoTime": 12.5, "Manufacturer": "GE", "PatientName": "Planted"},
    )  # fmt: skip
    read = (lambda i, v: samples[v, i]) if len(samples) > 1 else lambda i: samples[0, i]
    return KSpace.from_slices(header=header, shape=shape, read_slice=read, mask=mask, **options)


def code_of(path: Path) -> str:
    with pytest.raises(CoreMRIError) as caught:
        read_kspace(path)
    assert str(path) in str(caught.value)
    assert "Planted" not in str(caught.value)
    return caught.value.code


class TestRoundTrip:
    @pytest.mark.parametrize("layout", ["fastmri", "ismrmrd"])
    @pytest.mark.parametrize(
        "shape", [(3, 4, 24, 20), (1, 1, 7, 5), (2, 3, 11, 16), (4, 2, 16, 13), (1, 5, 30, 31)]
    )
    def test_values_mask_and_header(
        self, layout: Any, shape: tuple[int, int, int, int], tmp_path: Path
    ) -> None:
        mask = np.random.default_rng(1).random(shape[3]) < 0.6
        mask[shape[3] // 2] = True
        for number, chosen in enumerate((None, mask)):
            original = scan(shape, seed=number, mask=chosen)
            write_kspace(original, tmp_path / "a.h5", layout)
            with read_kspace(tmp_path / "a.h5") as back:
                assert back.shape == shape
                assert back.layout == layout
                np.testing.assert_array_equal(whole(back), whole(original))
                got = back.mask()
                if chosen is None:
                    assert got is None or got.all()
                else:
                    np.testing.assert_array_equal(got, chosen)
                for name in ("encoded_matrix", "recon_matrix", "encoded_fov_mm", "recon_fov_mm",
                             "phase_center", "phase_count", "acceleration"):  # fmt: skip
                    assert getattr(back.header, name) == pytest.approx(
                        getattr(original.header, name)
                    ), name
                assert back.header.facts["EchoTime"] == 12.5
                assert back.header.facts["Manufacturer"] == "GE"

    def test_geometry_survives_ismrmrd(self, tmp_path: Path) -> None:
        original = scan((4, 2, 12, 10))
        write_kspace(original, tmp_path / "a.h5", "ismrmrd")
        with read_kspace(tmp_path / "a.h5") as back:
            assert back.header.affine is not None
            np.testing.assert_allclose(back.header.affine, original.header.affine, atol=1e-3)

    @pytest.mark.parametrize("first", ["fastmri", "ismrmrd"])
    def test_across_layouts(self, first: Any, tmp_path: Path) -> None:
        other = {"fastmri": "ismrmrd", "ismrmrd": "fastmri"}[first]
        original = scan((2, 3, 12, 11), affine=None)
        write_kspace(original, tmp_path / "a.h5", first)
        with read_kspace(tmp_path / "a.h5") as kspace:
            write_kspace(kspace, tmp_path / "b.h5", other)  # type: ignore[arg-type]
        with read_kspace(tmp_path / "b.h5") as back:
            np.testing.assert_array_equal(whole(back), whole(original))
            assert back.header.phase_center == original.header.phase_center

    def test_several_volumes(self, tmp_path: Path) -> None:
        original = scan((2, 3, 8, 9), num_volumes=3)
        write_kspace(original, tmp_path / "a.h5", "ismrmrd")
        with read_kspace(tmp_path / "a.h5") as back:
            assert back.num_volumes == 3
            for volume in range(3):
                np.testing.assert_array_equal(whole(back, volume), whole(original, volume))
        with pytest.raises(CoreMRIError, match="CONFIG-05"):
            write_kspace(original, tmp_path / "b.h5", "fastmri")

    def test_header_through_json(self) -> None:
        header = scan((1, 2, 4, 6)).header
        again = KSpaceHeader.from_mapping(json.loads(json.dumps(header.to_mapping())))
        assert again == header

    @pytest.mark.parametrize("layout", ["fastmri", "ismrmrd"])
    def test_nobody_is_named_in_what_we_write(self, layout: Any, tmp_path: Path) -> None:
        write_kspace(scan((1, 2, 8, 9)), tmp_path / "a.h5", layout)
        assert b"Planted" not in (tmp_path / "a.h5").read_bytes()

    def test_a_full_disk_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = scan((1, 2, 8, 9))

        def full(*_: object) -> np.ndarray:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(original, "read_slice", full)
        for layout in ("fastmri", "ismrmrd"):
            with pytest.raises(CoreMRIError, match="DATA-07"):
                write_kspace(original, tmp_path / "a.h5", layout)  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []


class TestFastMri:
    def test_multicoil(self, tmp_path: Path) -> None:
        samples, target = draw((3, 4, 40, 31)), np.random.default_rng(0).random((3, 20, 20))
        path = save(tmp_path / "file1.h5", samples, xml(center=15, last=28), max=7.5, norm=9.25,
                    acquisition="CORPD_FBK", patient_id="abc",
                    reconstruction_rss=target.astype(np.float32))  # fmt: skip
        with read_kspace(path) as kspace:
            np.testing.assert_array_equal(whole(kspace), samples)
            np.testing.assert_array_equal(kspace.target(2), target[2].astype(np.float32))
            header = kspace.header
            assert (header.encoded_matrix, header.recon_matrix) == ((40, 31, 1), (20, 20, 1))
            assert (header.padding_left, header.padding_right) == (0, 29)
            assert (header.target_max, header.target_norm) == (7.5, 9.25)
            assert header.acquisition == "CORPD_FBK"
            assert header.affine is None
            assert kspace.mask() is None
            assert header.facts["PatientID"] == "abc"
            assert (header.facts["EchoTime"], header.facts["FlipAngle"]) == (32.5, 140)

    def test_padding_of_the_header(self, tmp_path: Path) -> None:
        """encoded y // 2 - center, and maximum + 1 lines from there (fastMRI mri_data.py)."""
        path = save(tmp_path / "a.h5", draw((1, 2, 40, 31)), xml(center=12, last=24))
        with read_kspace(path) as kspace:
            assert (kspace.header.padding_left, kspace.header.padding_right) == (3, 28)

    def test_single_coil(self, tmp_path: Path) -> None:
        samples = draw((3, 40, 31))
        target = np.ones((3, 20, 20), np.float32)
        path = save(tmp_path / "a.h5", samples, reconstruction_esc=target)
        with read_kspace(path) as kspace:
            assert kspace.shape == (3, 1, 40, 31)
            assert kspace.single_coil
            assert kspace.target_name == "reconstruction_esc"
            np.testing.assert_array_equal(whole(kspace)[:, 0], samples)
            write_kspace(kspace, tmp_path / "b.h5")
        with h5py.File(tmp_path / "b.h5") as file:
            assert file["kspace"].shape == (3, 40, 31)
            assert "reconstruction_esc" in file

    def test_masked_test_file(self, tmp_path: Path) -> None:
        mask = np.arange(31) % 4 == 0
        path = save(tmp_path / "a.h5", draw((2, 3, 40, 31)) * mask, mask=mask, acceleration=4,
                    num_low_frequency=2)  # fmt: skip
        with read_kspace(path) as kspace:
            np.testing.assert_array_equal(kspace.mask(), mask)
            assert kspace.header.acceleration == 4
            assert kspace.header.num_low_frequencies == 2

    def test_prostate_averages_interleave_their_lines(self, tmp_path: Path) -> None:
        full = draw((2, 3, 40, 31))
        odd, even = np.arange(31) % 2 == 1, np.arange(31) % 2 == 0
        averages = np.stack([full * odd, full * even, 3 * full * odd])
        path = save(tmp_path / "a.h5", averages, calibration_data=draw((2, 3, 4, 4)))
        with read_kspace(path) as kspace:
            assert kspace.shape == (2, 3, 40, 31)
            np.testing.assert_allclose(whole(kspace), full * (even + 2.0 * odd), rtol=1e-6)

    def test_without_header(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["kspace"] = draw((2, 3, 10, 9))
        with read_kspace(tmp_path / "a.h5") as kspace:
            assert kspace.header.encoded_matrix == (10, 9, 1)

    def test_a_slice_is_read_not_the_volume(self, tmp_path: Path) -> None:
        import tracemalloc

        save(tmp_path / "a.h5", draw((40, 4, 64, 64)), xml(64, 64))
        tracemalloc.start()
        with read_kspace(tmp_path / "a.h5") as kspace:
            kspace.read_slice(3)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * (4 * 64 * 64 * 8)


class TestIsmrmrd:
    """Files written by the `ismrmrd` package."""

    def write(
        self, path: Path, readouts: list[tuple[np.ndarray, dict[str, Any]]], header: str
    ) -> Path:
        import ismrmrd

        data = ismrmrd.Dataset(str(path), mode="w")
        data.write_xml_header(header)
        for samples, changes in readouts:
            acquisition = ismrmrd.Acquisition.from_array(samples)
            for name, value in {"center_sample": samples.shape[1] // 2, **changes}.items():
                if name == "flags":
                    for flag in value:
                        acquisition.setFlag(flag)
                elif hasattr(acquisition.idx, name):
                    setattr(acquisition.idx, name, value)
                elif name in ("position", "read_dir", "phase_dir", "slice_dir"):
                    getattr(acquisition, name)[:] = value
                else:
                    setattr(acquisition, name, value)
            data.append_acquisition(acquisition)
        data.close()
        return path

    def lines(self, grid: np.ndarray, **changes: Any) -> list[tuple[np.ndarray, dict[str, Any]]]:
        return [
            (np.ascontiguousarray(grid[:, :, line]), {"kspace_encode_step_1": line, **changes})
            for line in range(grid.shape[2])
        ]

    def test_lines_go_where_the_center_puts_them(self, tmp_path: Path) -> None:
        """Partial Fourier: 20 of 31 lines, the center of k-space is line 4."""
        grid = draw((2, 20, 20))
        path = self.write(tmp_path / "a.h5", self.lines(grid), xml(20, 31, center=4, last=19)
                          .replace("<x>280</x>", "<x>140</x>"))  # fmt: skip
        with read_kspace(path) as kspace:
            got = kspace.read_slice(0)
            np.testing.assert_array_equal(got[:, :, 11:], grid)
            assert not got[:, :, :11].any()
            assert kspace.mask().tolist() == [False] * 11 + [True] * 20

    def test_oversampling_is_removed_in_image_space(self, tmp_path: Path) -> None:
        image = torch.zeros(1, 40, 31, dtype=torch.complex64)
        image[0, 14:26, 8:20] = torch.from_numpy(draw((12, 12)))
        path = self.write(tmp_path / "a.h5", self.lines(fft2c(image).numpy()), xml())
        with read_kspace(path) as kspace:
            assert kspace.shape == (1, 1, 20, 31)
            assert kspace.header.encoded_fov_mm == pytest.approx((140, 140, 4.5))
            back = ifft2c(torch.from_numpy(kspace.read_slice(0)))
            torch.testing.assert_close(back, image[:, 10:30], rtol=0, atol=1e-5)
        with read_kspace(path, remove_oversampling=False) as kspace:
            assert kspace.shape == (1, 1, 40, 31)

    def test_noise_becomes_white(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        mix = rng.standard_normal((4, 4)) + 1j * rng.standard_normal((4, 4))
        noise = (mix @ draw((4, 40 * 200), 5)).reshape(4, 200, 40).astype(np.complex64)
        scans = [(noise[:, k], {"flags": [19], "sample_time_us": 5.0}) for k in range(100)]
        grid = noise[:, 100:131].transpose(0, 2, 1)
        scans += self.lines(grid, sample_time_us=5.0)
        header = xml().replace("<x>280</x>", "<x>140</x>")
        path = self.write(tmp_path / "a.h5", scans, header)
        with read_kspace(path) as kspace:
            samples = kspace.read_slice(0).reshape(4, -1)
            covariance = samples @ samples.conj().T / samples.shape[1]
            np.testing.assert_allclose(covariance, 2 * np.eye(4), atol=0.25)
            assert kspace.shape[0] == 1
        with read_kspace(path, whiten=False) as kspace:
            np.testing.assert_array_equal(kspace.read_slice(0), grid)

    def test_a_longer_dwell_time_means_less_noise(self, tmp_path: Path) -> None:
        noise = [(draw((2, 40), k), {"flags": [19], "sample_time_us": 2.0}) for k in range(50)]
        grid = draw((2, 40, 31), 99)
        header = xml().replace("<x>280</x>", "<x>140</x>")
        energy = []
        for number, dwell in enumerate((2.0, 8.0)):
            scans = noise + self.lines(grid, sample_time_us=dwell)
            with read_kspace(self.write(tmp_path / f"{number}.h5", scans, header)) as kspace:
                energy.append(np.linalg.norm(kspace.read_slice(0)))
        assert energy[1] / energy[0] == pytest.approx(2, rel=1e-4)

    def test_averages_slices_repetitions_and_what_is_no_image(self, tmp_path: Path) -> None:
        header = xml(20, 9, center=4, last=8).replace("<x>280</x>", "<x>140</x>")
        grids = draw((2, 3, 2, 2, 20, 9))  # repetition, slice, average, coil, x, y
        scans = []
        for repetition in range(2):
            for number in (2, 0, 1):  # interleaved, and counted in the order of time
                for average in range(2):
                    scans += self.lines(
                        grids[repetition, number, average], slice=number, average=average,
                        repetition=repetition, position=(0, 0, -5.0 * number),
                        slice_dir=(0, 0, 1), read_dir=(1, 0, 0), phase_dir=(0, 1, 0),
                    )  # fmt: skip
        scans += [(draw((2, 20)), {"flags": [flag]}) for flag in (23, 24, 26, 27, 28)]
        with read_kspace(self.write(tmp_path / "a.h5", scans, header)) as kspace:
            assert (kspace.shape, kspace.num_volumes) == ((3, 2, 20, 9), 2)
            for repetition in range(2):
                # Slice 2 lies lowest, so it comes first.
                np.testing.assert_allclose(
                    whole(kspace, repetition), grids[repetition].mean(axis=1)[::-1], atol=1e-6
                )
            affine = np.array(kspace.header.affine).reshape(4, 4)
            np.testing.assert_allclose(affine @ (0, 10, 4, 1), (0, 0, -10, 1), atol=1e-5)
            np.testing.assert_allclose(affine @ (2, 10, 4, 1), (0, 0, 0, 1), atol=1e-5)
            np.testing.assert_allclose(affine[:3, 1], (-7, 0, 0), atol=1e-5)  # LPS x is left

    def test_reversed_and_asymmetric_readouts(self, tmp_path: Path) -> None:
        header = xml(20, 9, center=4, last=8).replace("<x>280</x>", "<x>140</x>")
        grid = draw((2, 20, 9))
        scans = []
        for line in range(9):
            samples = np.ascontiguousarray(grid[:, :, line])
            if line % 3 == 1:
                scans.append(
                    (np.ascontiguousarray(samples[:, ::-1]),
                              {"flags": [22], "center_sample": 9, "kspace_encode_step_1": line})
                )  # fmt: skip
            elif line % 3 == 2:  # the first 6 samples before the echo are not acquired
                scans.append((np.ascontiguousarray(samples[:, 6:]),
                              {"center_sample": 4, "kspace_encode_step_1": line}))  # fmt: skip
            else:
                scans.append((samples, {"kspace_encode_step_1": line}))
        with read_kspace(self.write(tmp_path / "a.h5", scans, header)) as kspace:
            got = kspace.read_slice(0)
        expected = grid.copy()
        expected[:, :6, 2::3] = 0
        np.testing.assert_array_equal(got, expected)

    def test_partitions_become_slices(self, tmp_path: Path) -> None:
        header = xml(20, 9, center=4, last=8).replace("<x>280</x>", "<x>140</x>").replace(
            "<z>1</z>", "<z>6</z>"
        )  # fmt: skip
        image = draw((6, 2, 20, 9))
        grid = fftnc(torch.from_numpy(image), (0,)).numpy()
        scans = []
        for z in range(6):
            scans += self.lines(grid[z].astype(np.complex64), kspace_encode_step_2=z)
        with read_kspace(self.write(tmp_path / "a.h5", scans, header)) as kspace:
            assert kspace.shape == (6, 2, 20, 9)
            np.testing.assert_allclose(whole(kspace), image, atol=1e-5)

    def test_what_we_write_opens_with_the_package(self, tmp_path: Path) -> None:
        import ismrmrd

        original = scan((2, 3, 8, 9))
        write_kspace(original, tmp_path / "a.h5", "ismrmrd")
        data = ismrmrd.Dataset(str(tmp_path / "a.h5"), mode="r")
        header = ismrmrd.xsd.CreateFromDocument(data.read_xml_header())
        assert header.encoding[0].encodedSpace.matrixSize.x == 8
        assert header.acquisitionSystemInformation.receiverChannels == 3
        assert data.number_of_acquisitions() == 18
        readout = data.read_acquisition(12)
        assert (readout.idx.slice, readout.idx.kspace_encode_step_1) == (1, 3)
        np.testing.assert_array_equal(readout.data, original.read_slice(1)[:, :, 3])
        data.close()


class TestNumpy:
    def test_lines_and_points(self, tmp_path: Path) -> None:
        samples = draw((4, 10, 12))
        np.save(tmp_path / "a.npy", samples)
        with read_kspace(tmp_path / "a.npy") as kspace:
            assert kspace.shape == (1, 4, 10, 12)
            assert kspace.mask().all()
            np.testing.assert_array_equal(kspace.read_slice(0), samples)
        lines = np.arange(12) % 3 == 0
        np.save(tmp_path / "b.npy", samples * lines)
        np.testing.assert_array_equal(read_kspace(tmp_path / "b.npy").mask(), lines)
        points = np.random.default_rng(0).random((10, 12)) < 0.4
        np.save(tmp_path / "c.npy", (samples * points)[None])
        np.testing.assert_array_equal(read_kspace(tmp_path / "c.npy").mask(), points)

    def test_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "real.npy", np.zeros((2, 3, 4)))
        np.save(tmp_path / "flat.npy", draw((3, 4)))
        np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        whole_file = (tmp_path / "flat.npy").read_bytes()
        (tmp_path / "cut.npy").write_bytes(whole_file[:-8])
        codes = {
            name: code_of(tmp_path / f"{name}.npy") for name in ("real", "flat", "objects", "cut")
        }
        assert codes == {
            "real": "DATA-03",
            "flat": "DATA-14",
            "objects": "DATA-03",
            "cut": "DATA-02",
        }


class TestHostile:
    def test_links_and_virtual_data(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret.h5"
        save(secret, draw((1, 2, 10, 9)), xml(10, 9))
        np.zeros(180, np.complex64).tofile(tmp_path / "raw.bin")

        def external(file: h5py.File) -> None:
            file["kspace"] = h5py.ExternalLink(str(secret), "/kspace")

        def soft(file: h5py.File) -> None:
            file["kspace"] = h5py.SoftLink("/elsewhere")

        def virtual(file: h5py.File) -> None:
            layout = h5py.VirtualLayout((1, 2, 10, 9), np.complex64)
            layout[:] = h5py.VirtualSource(str(secret), "kspace", (1, 2, 10, 9))
            file.create_virtual_dataset("kspace", layout)

        def storage(file: h5py.File) -> None:
            file.create_dataset("kspace", (1, 2, 10, 9), np.complex64,
                                external=[(str(tmp_path / "raw.bin"), 0, 1440)])  # fmt: skip

        def deep(file: h5py.File) -> None:
            file["kspace"] = draw((1, 2, 10, 9))
            file["a/b/c"] = h5py.ExternalLink(str(secret), "/kspace")

        for number, make in enumerate((external, soft, virtual, storage, deep)):
            with h5py.File(tmp_path / f"{number}.h5", "w") as file:
                make(file)
            assert code_of(tmp_path / f"{number}.h5") == "DATA-13", make.__name__

    def test_bombs_take_no_memory(self, tmp_path: Path) -> None:
        import tracemalloc

        with h5py.File(tmp_path / "empty.h5", "w") as file:
            file.create_dataset(
                "kspace", (1000, 16, 640, 640), np.complex64, chunks=(1, 1, 640, 640)
            )
        with h5py.File(tmp_path / "zeros.h5", "w") as file:
            stored = file.create_dataset("kspace", (40, 16, 640, 640), np.complex64,
                                         chunks=(1, 16, 640, 640), compression="gzip")  # fmt: skip
            block = zlib.compress(bytes(16 * 640 * 640 * 8), 9)
            for k in range(40):
                stored.id.write_direct_chunk((k, 0, 0, 0), block)
        tracemalloc.start()
        assert code_of(tmp_path / "empty.h5") == code_of(tmp_path / "zeros.h5") == "DATA-13"
        assert tracemalloc.get_traced_memory()[1] < 2**21
        tracemalloc.stop()

    def test_entities_in_the_header(self, tmp_path: Path) -> None:
        evil = xml(10, 9).replace(
            "<ismrmrdHeader", '<!DOCTYPE a [<!ENTITY b "Planted">]><ismrmrdHeader'
        )
        assert code_of(save(tmp_path / "a.h5", draw((1, 2, 10, 9)), evil)) == "DATA-13"

    def test_cut_anywhere(self, tmp_path: Path) -> None:
        for name, layout in (("a.h5", "fastmri"), ("b.h5", "ismrmrd")):
            write_kspace(scan((2, 2, 12, 10)), tmp_path / name, layout)  # type: ignore[arg-type]
            content = (tmp_path / name).read_bytes()
            for keep in range(0, len(content) - 1, max(1, len(content) // 25)):
                (tmp_path / name).write_bytes(content[:keep])
                with pytest.raises(CoreMRIError) as caught, read_kspace(tmp_path / name) as kspace:
                    whole(kspace)
                assert caught.value.code in ("DATA-02", "DATA-03", "DATA-13", "DATA-14"), keep

    @pytest.mark.parametrize("seed", range(8))
    def test_flipped_bytes_raise_only_our_errors(self, seed: int, tmp_path: Path) -> None:
        rng = np.random.default_rng(seed)
        path = tmp_path / "a.h5"
        write_kspace(scan((1, 2, 12, 10)), path, ("fastmri", "ismrmrd")[seed % 2])  # type: ignore[arg-type]
        content = bytearray(path.read_bytes())
        for place in rng.integers(0, len(content), 30):
            content[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(content))
        try:
            with read_kspace(path) as kspace:
                whole(kspace)
        except CoreMRIError:
            pass


class TestRefused:
    def test_codes(self, tmp_path: Path) -> None:
        samples = draw((1, 2, 40, 31))
        (tmp_path / "text.h5").write_text("Dear colleague")
        (tmp_path / "empty.h5").touch()
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["image"] = np.zeros((3, 3))
        with h5py.File(tmp_path / "group.h5", "w") as file:
            file.create_group("kspace")
        assert code_of(tmp_path / "none.h5") == "DATA-01"
        assert code_of(tmp_path / "text.h5") == "DATA-03"
        assert code_of(tmp_path / "empty.h5") == "DATA-02"
        assert code_of(tmp_path / "other.h5") == code_of(tmp_path / "group.h5") == "DATA-03"
        assert code_of(save(tmp_path / "a.h5", samples.real)) == "DATA-03"
        assert code_of(save(tmp_path / "b.h5", samples[0, 0])) == "DATA-14"
        assert code_of(save(tmp_path / "c.h5", samples, xml(44, 31))) == "DATA-14"
        assert code_of(save(tmp_path / "d.h5", samples, "<no")) == "DATA-02"
        assert code_of(save(tmp_path / "e.h5", samples, mask=np.ones(30))) == "DATA-14"
        assert code_of(save(tmp_path / "f.h5", samples, xml(trajectory="radial"))) == "DATA-14"
        breast = np.zeros((2, 3, 4, 5, 6), np.float32)
        assert code_of(save(tmp_path / "g.h5", breast, xml(5, 6))) == "DATA-14"
        diffusion = {"phase_correction": np.zeros(3)}
        assert code_of(save(tmp_path / "h.h5", samples, **diffusion)) == "DATA-14"

    def test_not_cartesian_ismrmrd(self, tmp_path: Path) -> None:
        write_kspace(scan((1, 2, 8, 9)), tmp_path / "a.h5", "ismrmrd")
        with h5py.File(tmp_path / "a.h5", "a") as file:
            file["dataset/xml"][0] = file["dataset/xml"][0].replace(b"cartesian", b"spiral")
        assert code_of(tmp_path / "a.h5") == "DATA-14"

    def test_ismrmrd_outside_its_matrix(self, tmp_path: Path) -> None:
        write_kspace(scan((1, 2, 8, 9)), tmp_path / "a.h5", "ismrmrd")
        with h5py.File(tmp_path / "a.h5", "a") as file:
            table = file["dataset/data"]
            rows = table[:]
            rows["head"]["idx"]["kspace_encode_step_1"][4] = 400
            table[:] = rows
        assert code_of(tmp_path / "a.h5") == "DATA-14"

    @pytest.mark.parametrize(
        ("name", "converter"),
        [("P1.7", "ge_to_ismrmrd"), ("a.raw", "philips_to_ismrmrd"), ("fid", "bruker_to_ismrmrd")],
    )
    def test_vendor_formats_name_their_converter(
        self, name: str, converter: str, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_bytes(bytes(100))
        with pytest.raises(CoreMRIError, match=f"DATA-14.*{converter}"):
            read_kspace(tmp_path / name)


@pytest.mark.data
class TestRealScans:
    def test_phantom(self, shared_data: Path) -> None:
        """One noise scan, 48 lines of calibration, R = 3; two bottles of the same width."""
        with read_kspace(shared_data / "kspace" / "phantom_14ch_R3_ismrmrd.h5") as kspace:
            assert kspace.shape == (1, 14, 192, 144)
            assert kspace.header.acceleration == 3
            lines = np.flatnonzero(kspace.mask())
            samples = kspace.read_slice(0)
            corner = ifft2c(torch.from_numpy(samples))[:, :10, :].numpy()
            # Air holds white noise only, scaled by the part of the lines that was acquired.
            deviation = corner.real.std(axis=(1, 2)) / np.sqrt(len(lines) / 144)
            np.testing.assert_allclose(deviation, 1, atol=0.25)
            image = root_sum_of_squares(ifft2c(torch.from_numpy(samples)), 0)
            assert float(image[50:60, 50:70].mean() / image[:8].mean()) > 10

    def test_brain(self, shared_data: Path) -> None:
        with read_kspace(shared_data / "kspace" / "brain_8ch_cartesian_ksp.npy") as kspace:
            assert kspace.shape == (1, 8, 230, 180)
            mask = kspace.mask()
            assert mask.shape == (230, 180)
            assert mask[103:127, 78:102].mean() > 0.9

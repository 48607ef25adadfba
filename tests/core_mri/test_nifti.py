from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from core_mri.errors import CODES, CoreMRIError, DataError, GeometryError
from core_mri.files import read_volume, write_volume
from core_mri.files.nifti import read_nifti, write_nifti
from core_mri.physics.phantoms import REGIONS, phantom_volume
from core_mri.volume import Volume

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def by_nibabel(
    path: Path,
    array: npt.NDArray[np.generic],
    affine: npt.NDArray[np.float64] | None = None,
    edit: Callable[[nibabel.Nifti1Header], None] | None = None,
) -> Path:
    """A file written by nibabel, its header changed afterwards byte by byte."""
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype)
    if edit is None:
        nibabel.save(image, path)
        return path
    content = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    edit(header)
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


def whole_numbers(dtype: str = "i2") -> npt.NDArray[np.generic]:
    return np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_values_and_type(self, dtype: str, suffix: str, tmp_path: Path) -> None:
        limits = np.finfo(dtype) if dtype[0] == "f" else np.iinfo(dtype)
        array = np.array([[[limits.min, 0, 1, limits.max]]], dtype=dtype)
        write_nifti(Volume(array, np.eye(4)), tmp_path / f"a{suffix}")
        back = read_nifti(tmp_path / f"a{suffix}")
        assert back.array.dtype == array.dtype
        np.testing.assert_array_equal(back.array, array)

    @pytest.mark.parametrize("region", REGIONS)
    def test_geometry(self, region: str, tmp_path: Path) -> None:
        image, label = phantom_volume(region, 2, size=24, num_slices=5)
        for volume in (image, label):
            write_volume(volume, tmp_path / "a.nii.gz")
            back = read_nifti(tmp_path / "a.nii.gz", kind=volume.kind)
            np.testing.assert_array_equal(back.array, volume.array)
            # The format holds single precision.
            np.testing.assert_allclose(back.affine, volume.affine, atol=1e-4)
            assert (back.kind, back.array.dtype) == (volume.kind, volume.array.dtype)

    def test_others_read_the_same(self, tmp_path: Path) -> None:
        image, _ = phantom_volume("knee", 0, size=16, num_slices=4)
        write_nifti(image, tmp_path / "a.nii.gz")
        other = nibabel.load(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(other.dataobj), image.array)
        np.testing.assert_allclose(other.affine, image.affine, atol=1e-4)
        np.testing.assert_allclose(other.get_qform(coded=True)[0], image.affine, atol=1e-3)
        assert other.header["descrip"].item() == b""

    def test_shear_goes_to_the_sform_only(self, tmp_path: Path) -> None:
        affine = np.eye(4)
        affine[0, 2] = 0.4
        write_nifti(Volume(whole_numbers(), affine), tmp_path / "a.nii")
        assert nibabel.load(tmp_path / "a.nii").header["qform_code"] == 0
        np.testing.assert_allclose(read_nifti(tmp_path / "a.nii").affine, affine)

    def test_time_axis(self, tmp_path: Path) -> None:
        array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
        write_nifti(Volume(array, np.eye(4)), tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz").array, array)

    def test_same_volume_same_bytes_whatever_the_name(self, tmp_path: Path) -> None:
        volume = Volume(whole_numbers(), np.eye(4))
        write_nifti(volume, tmp_path / "a.nii.gz")
        write_nifti(volume, tmp_path / "another.nii.gz")
        content = (tmp_path / "a.nii.gz").read_bytes()
        assert content == (tmp_path / "another.nii.gz").read_bytes()
        # Flags without file name, modification time 0 (RFC 1952).
        assert content[3] & 0b1000 == 0
        assert content[4:8] == b"\0\0\0\0"

    def test_bool_and_half_become_the_nearest_type(self, tmp_path: Path) -> None:
        for dtype, stored in ((np.bool_, np.uint8), (np.float16, np.float32)):
            write_nifti(Volume(whole_numbers().astype(dtype), np.eye(4)), tmp_path / "a.nii")
            assert read_nifti(tmp_path / "a.nii").array.dtype == stored


class TestScaling:
    def scaled(self, tmp_path: Path, dtype: str, slope: float, intercept: float) -> Volume:
        def edit(header: nibabel.Nifti1Header) -> None:
            header["scl_slope"], header["scl_inter"] = slope, intercept

        return read_nifti(by_nibabel(tmp_path / "a.nii", whole_numbers(dtype), edit=edit))

    @pytest.mark.parametrize("slope", [0.0, np.nan, 1.0])
    def test_trivial_keeps_the_type(self, slope: float, tmp_path: Path) -> None:
        volume = self.scaled(tmp_path, "i2", slope, 0)
        assert volume.array.dtype == np.int16
        np.testing.assert_array_equal(volume.array, whole_numbers())

    def test_whole_numbers_stay_integers(self, tmp_path: Path) -> None:
        volume = self.scaled(tmp_path, "u2", 3, -7)
        assert volume.array.dtype.kind == "i"
        np.testing.assert_array_equal(volume.array, whole_numbers("i8") * 3 - 7)

    def test_fractions_become_floating_point(self, tmp_path: Path) -> None:
        volume = self.scaled(tmp_path, "i2", 0.25, 0.5)
        assert volume.array.dtype == np.float32
        np.testing.assert_array_equal(volume.array, whole_numbers() * 0.25 + 0.5)

    def test_nan_voxels_are_kept(self, tmp_path: Path) -> None:
        array = whole_numbers("f4")
        array[0, 0, 0] = np.nan
        volume = read_nifti(by_nibabel(tmp_path / "a.nii", array))
        np.testing.assert_array_equal(volume.array, array)


class TestGeometry:
    QFORM = np.diag([2.0, 3.0, 4.0, 1.0])
    SFORM = np.array([[0, 2.0, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])

    def both(self, tmp_path: Path, sform_code: int, qform_code: int) -> Volume:
        image = nibabel.Nifti1Image(whole_numbers(), None)
        image.set_sform(self.SFORM, sform_code)
        image.set_qform(self.QFORM, qform_code)
        image.header.set_zooms((2, 3, 4))
        nibabel.save(image, tmp_path / "a.nii")
        return read_nifti(tmp_path / "a.nii")

    @pytest.mark.parametrize("qform_code", [0, 1])
    def test_sform_comes_first(self, qform_code: int, tmp_path: Path) -> None:
        np.testing.assert_allclose(self.both(tmp_path, 2, qform_code).affine, self.SFORM)

    def test_qform_comes_second(self, tmp_path: Path) -> None:
        volume = self.both(tmp_path, 0, 1)
        np.testing.assert_allclose(volume.affine, self.QFORM)
        assert "assumed_geometry" not in volume.facts

    def test_neither_is_an_assumption_and_said_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        volume = self.both(tmp_path, 0, 0)
        assert volume.facts["assumed_geometry"] is True
        assert volume.spacing_mm == pytest.approx((2, 3, 4))
        assert "no orientation" in caplog.text

    @pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001)])
    def test_other_units_become_mm(self, unit: str, factor: float, tmp_path: Path) -> None:
        path = by_nibabel(
            tmp_path / "a.nii", whole_numbers(), self.QFORM, lambda h: h.set_xyzt_units(unit)
        )
        assert read_nifti(path).spacing_mm == pytest.approx((2 * factor, 3 * factor, 4 * factor))

    def test_two_dimensions_are_one_slice(self, tmp_path: Path) -> None:
        array = whole_numbers()[..., 0]
        np.testing.assert_array_equal(
            read_nifti(by_nibabel(tmp_path / "a.nii", array)).array, array[..., None]
        )

    def test_single_time_is_three_dimensions(self, tmp_path: Path) -> None:
        array = whole_numbers()[..., None, None]
        assert read_nifti(by_nibabel(tmp_path / "a.nii", array)).shape == (2, 3, 4)

    def test_nifti2_and_big_endian(self, tmp_path: Path) -> None:
        nibabel.save(nibabel.Nifti2Image(whole_numbers(), self.SFORM), tmp_path / "two.nii")
        header = nibabel.Nifti1Header(endianness=">")
        header.set_data_dtype(np.int16)
        big = nibabel.Nifti1Image(whole_numbers(), self.SFORM, header)
        nibabel.save(big, tmp_path / "big.nii")
        assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
        for name in ("two.nii", "big.nii"):
            volume = read_nifti(tmp_path / name)
            np.testing.assert_array_equal(volume.array, whole_numbers())
            np.testing.assert_allclose(volume.affine, self.SFORM)
            assert volume.array.dtype.isnative

    @pytest.mark.parametrize("spacing", [0.0, np.nan, np.inf])
    def test_impossible_spacing(self, spacing: float, tmp_path: Path) -> None:
        def edit(header: nibabel.Nifti1Header) -> None:
            header["pixdim"][2] = spacing

        path = by_nibabel(tmp_path / "a.nii", whole_numbers(), edit=edit)
        with pytest.raises(GeometryError, match=r"GEOMETRY-01.*a.nii"):
            read_nifti(path)

    def test_singular_sform(self, tmp_path: Path) -> None:
        def edit(header: nibabel.Nifti1Header) -> None:
            header["srow_z"] = 0

        path = by_nibabel(tmp_path / "a.nii", whole_numbers(), edit=edit)
        with pytest.raises(GeometryError, match=r"GEOMETRY-01.*a.nii"):
            read_nifti(path)


class TestLabels:
    def test_whole_floats_become_classes(self, tmp_path: Path) -> None:
        path = by_nibabel(tmp_path / "a.nii.gz", whole_numbers("f8"))
        volume = read_nifti(path, kind="label")
        assert (volume.kind, volume.array.dtype) == ("label", np.uint8)
        np.testing.assert_array_equal(volume.array, whole_numbers())

    @pytest.mark.parametrize("value", [0.5, np.nan])
    def test_other_values_are_no_classes(self, value: float, tmp_path: Path) -> None:
        array = whole_numbers("f4")
        array[1, 1, 1] = value
        with pytest.raises(DataError, match=r"DATA-03.*no label map"):
            read_nifti(by_nibabel(tmp_path / "a.nii", array), kind="label")

    def test_floats_cannot_be_written_as_labels(self, tmp_path: Path) -> None:
        volume = Volume(whole_numbers("f4"), np.eye(4), kind="label")
        with pytest.raises(DataError, match="DATA-03"):
            write_nifti(volume, tmp_path / "a.nii")
        assert not list(tmp_path.iterdir())


class TestDamage:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
    def test_cut_anywhere_is_refused(self, suffix: str, tmp_path: Path) -> None:
        write_nifti(Volume(whole_numbers(), np.eye(4)), tmp_path / f"a{suffix}")
        content = (tmp_path / f"a{suffix}").read_bytes()
        for length in range(0, len(content), 7):
            (tmp_path / f"cut{suffix}").write_bytes(content[:length])
            with pytest.raises(DataError, match=r"DATA-0[23]"):
                read_volume(tmp_path / f"cut{suffix}")

    def test_a_wrong_checksum_is_found(self, tmp_path: Path) -> None:
        write_nifti(Volume(whole_numbers(), np.eye(4)), tmp_path / "a.nii.gz")
        content = bytearray((tmp_path / "a.nii.gz").read_bytes())
        content[-8] ^= 1
        (tmp_path / "a.nii.gz").write_bytes(content)
        with pytest.raises(DataError, match="DATA-02"):
            read_nifti(tmp_path / "a.nii.gz")

    @pytest.mark.parametrize("seed", range(100))
    def test_flipped_bytes_raise_only_our_errors(
        self, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        rng = np.random.default_rng(seed)
        write_nifti(Volume(whole_numbers(), np.eye(4)), tmp_path / "a.nii")
        content = bytearray((tmp_path / "a.nii").read_bytes())
        for _ in range(int(rng.integers(1, 12))):
            content[rng.integers(len(content))] = rng.integers(256)
        (tmp_path / "a.nii").write_bytes(content)
        try:
            read_nifti(tmp_path / "a.nii")
            code = None
        except CoreMRIError as error:
            code = error.code
        assert code is None or code in CODES
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("packed", [False, True])
    def test_something_else_with_the_name(self, packed: bool, tmp_path: Path) -> None:
        text = b"These are notes, no image. " * 40
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(text) if packed else text)
        with pytest.raises(DataError, match=r"DATA-03.*a.nii.gz"):
            read_volume(tmp_path / "a.nii.gz")

    def test_colors(self, tmp_path: Path) -> None:
        rgb = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "a.nii")
        with pytest.raises(DataError, match=r"DATA-03.*no scalar image"):
            read_nifti(tmp_path / "a.nii")

    def test_five_dimensions(self, tmp_path: Path) -> None:
        path = by_nibabel(tmp_path / "a.nii", np.zeros((2, 2, 2, 2, 2), np.int16))
        with pytest.raises(GeometryError, match="GEOMETRY-02"):
            read_nifti(path)

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="DATA-01"):
            read_nifti(tmp_path / "a.nii")

    def test_no_place_to_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="DATA-07"):
            write_nifti(Volume(whole_numbers(), np.eye(4)), tmp_path / "file" / "a.nii")


class TestRealScans:
    def test_file_shipped_with_nibabel(self) -> None:
        spec = importlib.util.find_spec("nibabel")
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin).parent / "tests" / "data" / "anatomical.nii"
        volume = read_volume(path)
        other = nibabel.load(path)
        np.testing.assert_array_equal(volume.array, np.asanyarray(other.dataobj))
        np.testing.assert_allclose(volume.affine, other.affine)

    @pytest.mark.data
    def test_every_shared_file_as_nibabel_reads_it(self, shared_data: Path) -> None:
        paths = sorted(p for p in shared_data.rglob("*.nii*") if p.stat().st_size < 1_500_000)[:40]
        assert paths
        for path in paths:
            volume = read_volume(path)
            other = nibabel.load(path)
            np.testing.assert_allclose(volume.affine, other.affine, atol=1e-6)
            expected = np.squeeze(np.asanyarray(other.dataobj))
            np.testing.assert_allclose(np.squeeze(volume.array), expected, rtol=1e-6)

"""Analyze, PAR/REC, MINC, NIfTI pairs, pictures, `.npy`; which format a file has; hostile files."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from core_mri.errors import CoreMRIError
from core_mri.files.formats import companions, image_format
from core_mri.files.pictures_and_arrays import natural_order
from core_mri.files.scans import read_volume, write_volume
from core_mri.volume import Volume

NIBABEL_DATA = Path(nibabel.__file__).parent / "tests" / "data"
SPACING = (0.5, 0.75, 3.0)


def oblique(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.8, 1.2, 4.0)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def code_of(path: Path, **options: object) -> str:
    with pytest.raises(CoreMRIError) as caught:
        read_volume(path, **options)  # type: ignore[arg-type]
    assert path.name in str(caught.value)
    return caught.value.code


class TestFormat:
    def test_content_decides(self, tmp_path: Path) -> None:
        volume = Volume(np.zeros((3, 4, 5), np.uint8), np.eye(4))
        for suffix, form in ((".nii", "nifti"), (".nii.gz", "nifti"), (".nrrd", "nrrd"),
                             (".mha", "metaimage")):  # fmt: skip
            write_volume(volume, tmp_path / f"a{suffix}")
            assert image_format(tmp_path / f"a{suffix}") == form
        (tmp_path / "a.nrrd").rename(tmp_path / "scan.bin")
        assert image_format(tmp_path / "scan.bin") == "nrrd"
        write_volume(volume, tmp_path / "dicom")
        assert image_format(tmp_path / "dicom" / "0001.dcm") == "dicom"
        np.save(tmp_path / "a.npy", volume.array)
        assert image_format(tmp_path / "a.npy") == "npy"
        (tmp_path / "letter.txt").write_text("Dear colleague")
        assert image_format(tmp_path / "letter.txt") is None
        with pytest.raises(FileNotFoundError):
            image_format(tmp_path / "none")

    def test_companions(self, tmp_path: Path) -> None:
        for name in ("a.hdr", "a.img", "b.PAR", "b.REC", "c.raw", "d.hdr"):
            (tmp_path / name).touch()
        (tmp_path / "c.mhd").write_text("NDims = 3\nElementDataFile = c.raw\n")
        (tmp_path / "e.nhdr").write_text("NRRD0004\ndata file: c.raw\n\n")
        found = {p.name: [c.name for c in companions(p)] for p in sorted(tmp_path.iterdir())}
        assert {k: v for k, v in found.items() if v} == {
            "a.hdr": ["a.img"], "b.PAR": ["b.REC"], "c.mhd": ["c.raw"], "e.nhdr": ["c.raw"],
        }  # fmt: skip
        (tmp_path / "evil.mhd").write_text("ElementDataFile = /etc/hostname\n")
        with pytest.raises(CoreMRIError, match="DATA-13"):
            companions(tmp_path / "evil.mhd")


class TestNiftiPair:
    @pytest.mark.parametrize(
        "codes",
        ["".join(c) for p in itertools.permutations(["RL", "AP", "SI"])
         for c in itertools.product(*p)],
    )  # fmt: skip
    def test_every_orientation(self, codes: str, tmp_path: Path) -> None:
        array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
        volume = Volume(array, oblique(1)).reorient(codes)
        nibabel.Nifti1Pair(volume.array, volume.affine).to_filename(tmp_path / "a.hdr")
        for path in (tmp_path / "a.hdr", tmp_path):
            back = read_volume(path)
            np.testing.assert_array_equal(back.array, volume.array)
            np.testing.assert_allclose(back.affine, volume.affine, atol=1e-4)

    def test_voxels_missing_or_short(self, tmp_path: Path) -> None:
        nibabel.Nifti1Pair(np.ones((9, 9, 9)), np.eye(4)).to_filename(tmp_path / "a.hdr")
        content = (tmp_path / "a.img").read_bytes()
        (tmp_path / "a.img").write_bytes(content[:-9])
        assert code_of(tmp_path / "a.hdr") == "DATA-02"
        (tmp_path / "a.img").unlink()
        assert code_of(tmp_path / "a.hdr") == "DATA-01"


class TestAnalyze:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
    def test_values_and_spacing(self, dtype: type, tmp_path: Path) -> None:
        array = np.arange(24).reshape(2, 3, 4).astype(dtype)
        image = nibabel.AnalyzeImage(array, np.diag([*SPACING, 1.0]))
        image.to_filename(tmp_path / "a.hdr")
        volume = read_volume(tmp_path / "a.hdr")
        np.testing.assert_array_equal(volume.array, array)
        assert volume.spacing_mm == pytest.approx(SPACING)
        assert volume.facts == {"assumed_geometry": True}
        again = nibabel.AnalyzeImage.load(tmp_path / "a.hdr")
        np.testing.assert_allclose(volume.affine, again.affine)


class TestParRec:
    @pytest.mark.parametrize(
        "name", ["phantom_EPI_asc_CLEAR_2_1.PAR", "Phantom_EPI_3mm_cor_SENSE_8_1.PAR"]
    )
    def test_as_nibabel(self, name: str) -> None:
        path = NIBABEL_DATA / name
        if not path.with_suffix(".REC").exists():
            assert code_of(path) == "DATA-01"
            return
        image = nibabel.load(path)
        volume = read_volume(path)
        np.testing.assert_allclose(
            volume.array, np.squeeze(np.asanyarray(image.dataobj)), rtol=1e-5
        )
        np.testing.assert_allclose(volume.affine, image.affine)

    def test_cut(self, tmp_path: Path) -> None:
        name = "phantom_EPI_asc_CLEAR_2_1"
        (tmp_path / "a.PAR").write_bytes((NIBABEL_DATA / f"{name}.PAR").read_bytes())
        content = (NIBABEL_DATA / f"{name}.REC").read_bytes()
        (tmp_path / "a.REC").write_bytes(content[: len(content) // 2])
        assert code_of(tmp_path / "a.PAR") == "DATA-02"


class TestMinc:
    @pytest.mark.parametrize("name", ["tiny.mnc", "small.mnc", "minc1_1_scale.mnc", "minc2_4d.mnc"])
    def test_as_nibabel(self, name: str) -> None:
        image = nibabel.load(NIBABEL_DATA / name)
        volume = read_volume(NIBABEL_DATA / name)
        np.testing.assert_allclose(volume.array, np.asanyarray(image.dataobj), rtol=1e-5)
        np.testing.assert_allclose(volume.affine, image.affine)

    def test_minc2_cannot_lead_elsewhere(self, tmp_path: Path) -> None:
        import h5py

        path = tmp_path / "a.mnc"
        path.write_bytes((NIBABEL_DATA / "small.mnc").read_bytes())
        with h5py.File(path, "a") as file:
            file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/a")
        assert code_of(path) == "DATA-13"

    def test_cut(self, tmp_path: Path) -> None:
        for name in ("tiny.mnc", "small.mnc"):
            content = (NIBABEL_DATA / name).read_bytes()
            (tmp_path / "a.mnc").write_bytes(content[: len(content) // 2])
            assert code_of(tmp_path / "a.mnc") == "DATA-02"


class TestPictures:
    def save(self, folder: Path, array: np.ndarray, suffix: str = "png") -> None:
        folder.mkdir(exist_ok=True)
        for k in range(array.shape[2]):
            Image.fromarray(array[:, :, k].T).save(folder / f"slice{k}.{suffix}")

    @pytest.mark.parametrize(("dtype", "suffix"), [("u1", "png"), ("u2", "png"), ("u1", "bmp"),
                                                   ("u2", "tif"), ("f4", "tiff")])  # fmt: skip
    def test_stack_in_natural_order(self, dtype: str, suffix: str, tmp_path: Path) -> None:
        """slice2 before slice10."""
        array = np.arange(7 * 5 * 12).reshape(7, 5, 12).astype(dtype)
        self.save(tmp_path / "a", array, suffix)
        volume = read_volume(tmp_path / "a", spacing_mm=SPACING)
        np.testing.assert_array_equal(volume.array, array)
        assert volume.array.dtype == np.dtype(dtype)
        assert volume.spacing_mm == SPACING
        assert volume.orientation == "LPS"
        assert volume.facts == {"assumed_geometry": True}
        files = list((tmp_path / "a").iterdir())
        again = read_volume(files[::-1], spacing_mm=SPACING)
        np.testing.assert_array_equal(again.array, array)

    def test_natural_order(self) -> None:
        names = ["s1.png", "s2.png", "s10.png", "s10b.png", "t1.png"]
        paths = [Path(n) for n in reversed(names)]
        assert [p.name for p in sorted(paths, key=natural_order)] == names

    def test_labels_and_gray_that_is_stored_as_color(self, tmp_path: Path) -> None:
        mask = np.array([[0, 255], [3, 0]], np.uint8)
        Image.fromarray(mask).save(tmp_path / "m.png")
        volume = read_volume(tmp_path / "m.png", kind="label", spacing_mm=SPACING)
        assert (volume.kind, volume.array.dtype) == ("label", np.uint8)
        Image.fromarray(np.stack([mask] * 3, -1)).save(tmp_path / "c.png")
        same = read_volume(tmp_path / "c.png", spacing_mm=SPACING)
        np.testing.assert_array_equal(same.array, volume.array)

    def test_refused(self, tmp_path: Path) -> None:
        gray = np.random.default_rng(0).integers(0, 255, (40, 30)).astype(np.uint8)
        Image.fromarray(gray).save(tmp_path / "a.png")
        assert code_of(tmp_path / "a.png") == "GEOMETRY-01"
        content = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
        assert code_of(tmp_path / "a.png", spacing_mm=SPACING) == "DATA-02"
        (tmp_path / "b.png").write_text("no picture")
        assert code_of(tmp_path / "b.png", spacing_mm=SPACING) == "DATA-03"
        color = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
        Image.fromarray(color).save(tmp_path / "c.png")
        assert code_of(tmp_path / "c.png", spacing_mm=SPACING) == "DATA-03"
        frames = [Image.fromarray(gray), Image.fromarray(gray)]
        frames[0].save(tmp_path / "d.tif", save_all=True, append_images=frames[1:])
        assert code_of(tmp_path / "d.tif", spacing_mm=SPACING) == "DATA-03"
        self.save(tmp_path / "e", gray[:, :, None])
        Image.fromarray(gray[:9]).save(tmp_path / "e" / "slice9.png")
        with pytest.raises(CoreMRIError, match=r"GEOMETRY-02.*slice9"):
            read_volume(tmp_path / "e", spacing_mm=SPACING)

    def test_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.fromarray(np.zeros((300, 300), np.uint8)).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
        assert code_of(tmp_path / "a.png", spacing_mm=SPACING) == "DATA-13"

    @pytest.mark.data
    def test_real_pictures(self, shared_data: Path) -> None:
        folder = shared_data / "heart_sunnybrook"
        image = read_volume(folder / "images" / "SC-N-40-IM-0001-0220.png", spacing_mm=SPACING)
        mask = read_volume(
            folder / "labels" / "SC-N-40-IM-0001-0220.png", kind="label", spacing_mm=SPACING
        )
        assert image.shape == mask.shape == (256, 256, 1)
        assert np.unique(mask.array).tolist() == [0, 255]
        # Blood is bright in cine: the ventricle is above the mean of the picture.
        assert image.array[mask.array > 0].mean() > 1.5 * image.array.mean()


class TestNumpy:
    def test_axes_are_those_of_the_file(self, tmp_path: Path) -> None:
        for shape in ((4, 5), (4, 5, 6), (4, 5, 6, 2)):
            array = np.random.default_rng(0).random(shape)
            np.save(tmp_path / "a.npy", array)
            volume = read_volume(tmp_path / "a.npy", spacing_mm=SPACING)
            np.testing.assert_array_equal(volume.array.reshape(shape), array)
            assert volume.spacing_mm == SPACING

    def test_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        np.save(path, np.zeros((3, 4, 5)))
        assert code_of(path) == "GEOMETRY-01"
        np.save(path, np.zeros((3, 4, 5), complex))
        assert code_of(path, spacing_mm=SPACING) == "DATA-10"
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
        assert code_of(path, spacing_mm=SPACING) == "DATA-03"
        np.save(path, np.zeros((3, 4, 5)) + 0.5)
        assert code_of(path, kind="label", spacing_mm=SPACING) == "DATA-03"


class TestFolders:
    def test_text_beside_an_image_does_not_matter(self, tmp_path: Path) -> None:
        write_volume(Volume(np.ones((2, 3, 4), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
        (tmp_path / "README.txt").write_text("one scan")
        assert read_volume(tmp_path).shape == (2, 3, 4)

    def test_two_images_are_not_one(self, tmp_path: Path) -> None:
        for name in ("a.nii.gz", "b.nrrd"):
            write_volume(Volume(np.ones((2, 3, 4), np.uint8), np.eye(4)), tmp_path / name)
        with pytest.raises(CoreMRIError, match=r"DATA-03.*2 images.*a\.nii\.gz, b\.nrrd"):
            read_volume(tmp_path)


class TestNiftiBombs:
    def test_declared_size_takes_no_memory(self, tmp_path: Path) -> None:
        import tracemalloc

        header = nibabel.Nifti1Header()
        header.set_data_shape((30000, 30000, 30000))
        header.set_data_dtype(np.uint8)
        header["magic"], header["vox_offset"] = b"n+1", 352
        header.set_sform(np.eye(4), code=1)
        content = header.binaryblock + bytes(4)
        (tmp_path / "a.nii").write_bytes(content + bytes(1000))
        (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content + bytes(1000)))
        tracemalloc.start()
        assert code_of(tmp_path / "a.nii") == code_of(tmp_path / "b.nii.gz") == "DATA-02"
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()

    def test_honest_header_of_zeros_without_end(self, tmp_path: Path) -> None:
        volume = Volume(np.ones((4, 4, 4), np.uint8), np.eye(4))
        write_volume(volume, tmp_path / "a.nii")
        bomb = gzip.compress((tmp_path / "a.nii").read_bytes() + bytes(2**26), mtime=0)
        (tmp_path / "a.nii.gz").write_bytes(bomb)
        assert code_of(tmp_path / "a.nii.gz") == "DATA-13"

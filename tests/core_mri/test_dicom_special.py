"""Mosaics, time series in one file, packed files, two patients under one UID; segmentations."""

from __future__ import annotations

import gzip
import itertools
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from core_mri.errors import CoreMRIError
from core_mri.files import read_segmentation, read_volume, write_segmentation, write_volume
from core_mri.files.dicom import group_series, read_series
from core_mri.files.dicom_write import write_dicom_series
from core_mri.volume import Volume


def oblique(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.8, 1.2, 4.0)
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def series(folder: Path, volume: Volume, **facts: object) -> list[Path]:
    given = {"Modality": "MR", "PatientID": "P1", **facts}
    return write_dicom_series(volume, folder, facts=given, seed="s")


def code_of(path: Path) -> str:
    with pytest.raises(CoreMRIError) as caught:
        read_volume(path)
    return caught.value.code


class TestEveryOrientation:
    @pytest.mark.parametrize(
        "codes",
        ["".join(c) for p in itertools.permutations(["RL", "AP", "SI"])
         for c in itertools.product(*p)],
    )  # fmt: skip
    def test_a_marked_voxel_lies_where_the_header_alone_puts_it(
        self, codes: str, tmp_path: Path
    ) -> None:
        """PS3.3 C.7.6.2.1.1: position + column * row cosines * spacing + row * column cosines."""
        array = np.zeros((5, 4, 3), np.int16)
        volume = Volume(array, oblique(3)).reorient(codes)
        marked = tuple(n - 2 for n in volume.shape)
        voxels = np.zeros(volume.shape, np.int16)
        voxels[marked] = 77
        files = series(tmp_path / "a", volume.with_array(voxels))
        (point,) = [
            np.array(d.ImagePositionPatient, float)
            + column * np.array(d.ImageOrientationPatient[:3], float) * float(d.PixelSpacing[1])
            + row * np.array(d.ImageOrientationPatient[3:], float) * float(d.PixelSpacing[0])
            for d in map(pydicom.dcmread, files)
            for row, column in np.argwhere(d.pixel_array == 77)
        ]
        back = read_volume(sorted(files, reverse=True))
        (index,) = np.argwhere(back.array == 77)
        np.testing.assert_allclose((back.affine @ (*index, 1))[:3], point * (-1, -1, 1), atol=1e-3)

    def test_gantry_like_shear_is_kept(self, tmp_path: Path) -> None:
        affine = oblique(1)
        affine[:3, 2] += 0.3 * affine[:3, 1]
        volume = Volume(np.arange(60, dtype=np.int16).reshape(5, 4, 3), affine)
        files = series(tmp_path / "a", volume)
        back = read_volume(files)
        if back.array.flat[0] != volume.array.flat[0]:
            back = back.reorient(volume.orientation)
        assert back.same_grid(volume)


class TestMosaic:
    def make(self, folder: Path, slices: np.ndarray, affine: np.ndarray) -> Path:
        """A mosaic of ``[slice, row, column]`` made by hand from a single-slice file."""
        num, rows, columns = slices.shape
        tiles = int(np.ceil(np.sqrt(num)))
        picture = np.zeros((tiles * rows, tiles * columns), np.uint16)
        for k in range(num):
            top, left = k // tiles * rows, k % tiles * columns
            picture[top : top + rows, left : left + columns] = slices[k]
        # The corner of the whole picture, as if it were one slice around the same center.
        shift = ((tiles - 1) * columns / 2, (tiles - 1) * rows / 2)
        corner = affine.copy()
        corner[:3, 3] -= affine[:3, 0] * shift[0] + affine[:3, 1] * shift[1]
        (path,) = series(folder, Volume(picture.T[:, :, None], corner), Manufacturer="SIEMENS",
                         ImageType="ORIGINAL\\PRIMARY\\M\\MOSAIC")  # fmt: skip
        header = pydicom.dcmread(path)
        header.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        header.add_new(0x0019100A, "US", num)
        header.SpacingBetweenSlices = float(np.linalg.norm(affine[:3, 2]))
        header.save_as(path)
        return path

    @pytest.mark.parametrize("num", [2, 4, 7, 9])
    def test_slices_come_back_in_place(self, num: int, tmp_path: Path) -> None:
        affine = oblique(5)
        # The header states no normal, so slices follow the normal of the plane.
        lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
        if np.cross(lps[:, 0], lps[:, 1]) @ lps[:, 2] < 0:
            affine[:3, 2] *= -1
        slices = np.random.default_rng(0).integers(1, 999, (num, 6, 8)).astype(np.uint16)
        volume = read_volume(self.make(tmp_path / "a", slices, affine))
        np.testing.assert_array_equal(volume.array, slices.transpose(2, 1, 0))
        np.testing.assert_allclose(volume.affine, affine, atol=1e-3)

    def test_several_times_are_several_volumes(self, tmp_path: Path) -> None:
        affine, paths = np.diag([-1.0, -1.0, 2.0, 1.0]), []
        for k in range(3):
            slices = np.full((4, 6, 8), k + 1, np.uint16)
            path = self.make(tmp_path / str(k), slices, affine)
            header = pydicom.dcmread(path)
            header.SOPInstanceUID = f"1.2.3.{k}"
            header.AcquisitionNumber = header.InstanceNumber = k + 1
            header.save_as(path)
            paths.append(path)
        found = group_series(paths).series
        assert sorted(int(read_series(s).array.max()) for s in found) == [1, 2, 3]
        assert all(s.shape == (8, 6, 4) for s in found)

    @pytest.mark.data
    def test_as_nibabel(self, shared_data: Path) -> None:
        from nibabel.nicom.dicomwrappers import MosaicWrapper

        path = shared_data / "dicom" / "siemens_mosaic_axasc35.dcm"
        wrapper = MosaicWrapper(pydicom.dcmread(path))
        volume = read_volume(path)
        expected = np.diag([-1.0, -1.0, 1.0, 1.0]) @ wrapper.affine  # rows first, LPS
        np.testing.assert_allclose(volume.affine[:, [1, 0, 2, 3]], expected, atol=1e-3)
        np.testing.assert_array_equal(volume.array.transpose(1, 0, 2), wrapper.get_data())


class TestTimeSeriesInOneFile:
    def test_frames_in_time_are_volumes(self, tmp_path: Path) -> None:
        (path,) = series(tmp_path / "a", Volume(np.ones((4, 3, 1), np.uint16), np.eye(4)))
        header = pydicom.dcmread(path)
        header.NumberOfFrames = 3
        header.FrameIncrementPointer = 0x00181063
        header.FrameTime = 69.5
        header.PixelData = np.repeat(np.arange(3, dtype="<u2"), 12).tobytes()
        header.save_as(path)
        values = [int(read_series(s).array[0, 0, 0]) for s in group_series([path]).series]
        assert sorted(values) == [0, 1, 2]


class TestSplitting:
    def test_directions_of_equal_b_value(self, tmp_path: Path) -> None:
        paths = []
        for k, direction in enumerate([(1, 0, 0), (0, 1, 0), (0, 0, 1)]):
            array = np.full((4, 3, 2), k + 1, np.uint16)
            for path in series(tmp_path / str(k), Volume(array, np.eye(4))):
                header = pydicom.dcmread(path)
                header.SOPInstanceUID = f"{header.SOPInstanceUID}.{k}"
                header.SeriesInstanceUID = "1.2.3"
                header.DiffusionBValue = 1000.0
                header.DiffusionGradientOrientation = list(map(float, direction))
                header.save_as(path)
                paths.append(path)
        found = group_series(paths).series
        assert [s.shape for s in found] == [(4, 3, 2)] * 3
        assert all(len(np.unique(read_series(s).array)) == 1 for s in found)

    def test_two_patients_under_one_series_uid(self, tmp_path: Path) -> None:
        paths = []
        for k in range(2):
            affine = np.eye(4)
            affine[2, 3] = 2.0 * k  # together they would be one regular stack
            volume = Volume(np.full((4, 3, 2), k + 1, np.uint16), affine)
            for path in series(tmp_path / "in" / str(k), volume, PatientID=f"P{k}"):
                header = pydicom.dcmread(path)
                header.SeriesInstanceUID = "1.2.3"
                header.SOPInstanceUID = f"1.2.3.{len(paths)}"
                header.save_as(path)
                paths.append(path)
        found = group_series(paths).series
        assert sorted({int(v) for v in np.unique(read_series(s).array)} for s in found) == [
            {1},
            {2},
        ]
        with pytest.raises(CoreMRIError, match=r"DATA-03.*2 patients"):
            read_volume(tmp_path / "in")


class TestPacked:
    def test_gzip(self, tmp_path: Path) -> None:
        volume = Volume(np.arange(24, dtype=np.uint16).reshape(4, 3, 2), np.eye(4))
        files = series(tmp_path / "a", volume)
        plain = read_volume(files)
        for path in files:
            path.with_suffix(".dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        packed = read_volume(tmp_path / "a")
        np.testing.assert_array_equal(packed.array, plain.array)
        first = sorted((tmp_path / "a").iterdir())[0]
        first.write_bytes(first.read_bytes()[:-20])
        assert code_of(first) == "DATA-02"

    def test_bombs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """pydicom, which would go through all that comes out, never sees them."""
        packer = zlib.compressobj(9, wbits=31)
        block = bytes(2**24)
        content = b"".join(packer.compress(block) for _ in range(20)) + packer.flush()
        (tmp_path / "bomb.dcm.gz").write_bytes(content)
        assert code_of(tmp_path / "bomb.dcm.gz") == "DATA-13"
        (path,) = series(tmp_path / "a", Volume(np.ones((4, 3, 1), np.uint16), np.eye(4)))
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        header.save_as(path)
        assert read_volume(path).shape == (4, 3, 1)
        inner = zlib.compressobj(9, wbits=-15)
        bomb = b"".join(inner.compress(block) for _ in range(20)) + inner.flush()
        whole = path.read_bytes()
        start = whole.index(b"1.2.840.10008.1.2.1.99") + 22
        end = 128 + 4 + 12 + int.from_bytes(whole[140:144], "little")
        assert start <= end
        path.write_bytes(whole[:end] + bomb)
        seen: list[object] = []
        for reader in ("dcmread", "filereader.dcmread", "filereader.read_partial"):
            monkeypatch.setattr(f"pydicom.{reader}", lambda *_, **__: seen.append(1))
        assert code_of(path) == "DATA-13"
        assert seen == []

    def test_size_that_the_stream_cannot_hold(self, tmp_path: Path) -> None:
        from pydicom.data import get_testdata_file

        header = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm"))
        header.Rows = header.Columns = 65535
        header.save_as(tmp_path / "a.dcm")
        assert code_of(tmp_path / "a.dcm") == "DATA-13"


class TestSegmentation:
    def scan(self, folder: Path, seed: int = 2) -> tuple[Volume, list[Path]]:
        array = np.random.default_rng(seed).integers(0, 900, (9, 8, 5)).astype(np.uint16)
        files = series(folder, Volume(array, oblique(seed)), PatientName="A^B")
        return read_volume(files), files

    def labels(self, image: Volume, values: tuple[int, ...] = (1, 2)) -> Volume:
        chosen = np.random.default_rng(1).choice([0, *values], image.shape).astype(np.int16)
        return image.with_array(chosen, kind="label")

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("values", [(1,), (1, 2), (3, 40, 255)])
    def test_round_trip(self, values: tuple[int, ...], seed: int, tmp_path: Path) -> None:
        image, files = self.scan(tmp_path / "a", seed)
        mask = self.labels(image, values)
        write_segmentation(mask, tmp_path / "seg.dcm", files, labels={values[0]: "tumor"})
        back = read_segmentation(tmp_path / "seg.dcm").reorient(mask.orientation)
        assert back.same_grid(mask)
        np.testing.assert_array_equal(back.array, mask.array)
        assert read_volume(tmp_path / "seg.dcm").kind == "label"

    def test_either_order_of_slices_and_any_axes(self, tmp_path: Path) -> None:
        image, files = self.scan(tmp_path / "a")
        mask = self.labels(image)
        turned = mask.reorient("SPL")
        write_segmentation(turned, tmp_path / "seg.dcm", files[::-1])
        back = read_segmentation(tmp_path / "seg.dcm").reorient(mask.orientation)
        np.testing.assert_array_equal(back.array, mask.array)

    def test_refers_to_patient_study_and_images(self, tmp_path: Path) -> None:
        image, files = self.scan(tmp_path / "a")
        write_volume(self.labels(image), tmp_path / "seg.dcm", like=tmp_path / "a")
        seg, first = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(files[0])
        for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert seg[keyword].value == first[keyword].value
        assert seg.SeriesInstanceUID != first.SeriesInstanceUID
        (referenced,) = seg.ReferencedSeriesSequence
        assert referenced.SeriesInstanceUID == first.SeriesInstanceUID
        named = {i.ReferencedSOPInstanceUID for i in referenced.ReferencedInstanceSequence}
        assert named == {pydicom.dcmread(f).SOPInstanceUID for f in files}

    def test_refused(self, tmp_path: Path) -> None:
        image, files = self.scan(tmp_path / "a")
        mask = self.labels(image)
        empty = mask.with_array(np.zeros(mask.shape, np.uint8), kind="label")
        shifted = Volume(mask.array, oblique(9), "label")
        for wrong, code in ((empty, "CONFIG-05"), (shifted, "GEOMETRY-03")):
            with pytest.raises(CoreMRIError, match=code):
                write_segmentation(wrong, tmp_path / "seg.dcm", files)
        with pytest.raises(CoreMRIError, match="CONFIG-05"):
            write_volume(mask, tmp_path / "seg.dcm", like=image)
        with pytest.raises(CoreMRIError, match="DATA-03"):
            read_segmentation(files[0])
        assert not (tmp_path / "seg.dcm").exists()


class TestPlainPixels:
    """Pixel data without a code stream is read past pydicom's decoders, with the same result."""

    @pytest.mark.parametrize("stored", [8, 12, 16])
    @pytest.mark.parametrize("signed", [0, 1])
    def test_unused_bits_are_cut_as_pydicom_does(
        self, stored: int, signed: int, tmp_path: Path
    ) -> None:
        (path,) = series(tmp_path / "a", Volume(np.ones((7, 5, 1), np.uint16), np.eye(4)))
        header = pydicom.dcmread(path)
        header.BitsStored, header.HighBit, header.PixelRepresentation = stored, stored - 1, signed
        noise = np.random.default_rng(stored).integers(0, 2**16, 35).astype("<u2")
        header.PixelData = noise.tobytes()
        header.save_as(path)
        expected = pydicom.dcmread(path).pixel_array
        np.testing.assert_array_equal(read_volume(path).array[:, :, 0].T, expected)

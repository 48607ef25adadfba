from __future__ import annotations

import importlib.util
import logging
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from core_mri.errors import CODES, ConfigError, CoreMRIError, DataError, GeometryError
from core_mri.files import read_volume, write_volume
from core_mri.files.dicom import SeriesScan, group_series, read_series
from core_mri.files.dicom_write import write_dicom_series
from core_mri.physics.phantoms import REGIONS, phantom_volume
from core_mri.volume import Volume

ENHANCED = "1.2.840.10008.5.1.4.1.1.4.1"
Edit = Callable[[Dataset, int], None]


def shipped(name: str) -> Path:
    """A file that comes inside the pydicom package."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path)


def small_series(folder: Path, *, num_slices: int = 5, edit: Edit | None = None) -> list[Path]:
    """A series of 8 columns and 6 rows, 4 mm apart; `edit` changes the header of each slice."""
    array = np.arange(8 * 6 * num_slices, dtype=np.uint16).reshape(8, 6, num_slices)
    affine = np.diag([-1.5, -1.5, 4.0, 1.0])
    files = write_dicom_series(Volume(array, affine, facts={"EchoTime": 10.0}), folder, seed="s")
    if edit is not None:
        for number, file in enumerate(files):
            dataset = pydicom.dcmread(file)
            edit(dataset, number)
            dataset.save_as(file)
    return files


def only_error(scan: SeriesScan) -> CoreMRIError:
    assert not scan.series
    assert len({str(error) for _, error in scan.rejected}) == 1
    return scan.rejected[0][1]


class TestRoundTrip:
    @pytest.mark.parametrize("region", REGIONS)
    def test_phantoms(self, region: str, tmp_path: Path) -> None:
        image, _ = phantom_volume(region, 1, size=40, num_slices=5)
        write_dicom_series(image, tmp_path / "out")
        back = read_volume(tmp_path / "out")
        assert back.array.dtype == image.array.dtype
        np.testing.assert_array_equal(back.array, image.array)
        np.testing.assert_allclose(back.affine, image.affine, atol=1e-8)
        for keyword in ("EchoTime", "RepetitionTime", "BodyPartExamined", "PatientID", "Modality"):
            assert back.facts[keyword] == image.facts[keyword]

    @pytest.mark.parametrize("seed", range(12))
    def test_any_orientation_and_either_slice_order(self, seed: int, tmp_path: Path) -> None:
        from scipy.spatial.transform import Rotation

        rng = np.random.default_rng(seed)
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * rng.choice((-1, 1), 3)
        affine[:3, :3] *= rng.uniform(0.4, 6, 3)
        affine[:3, 3] = rng.uniform(-200, 200, 3)
        array = rng.integers(-500, 500, (5, 4, 6)).astype(np.int16)
        volume = Volume(array, affine)
        files = write_dicom_series(volume, tmp_path / "out")
        back = read_series(group_series(reversed(files)).series[0])
        if np.linalg.det(affine) < 0:
            # Slices come in the order of the normal, so this one grows the other way.
            back = Volume(back.array[:, :, ::-1], back.affine @ flip_slices(6))
        np.testing.assert_array_equal(back.array, array)
        np.testing.assert_allclose(back.affine, affine, atol=1e-7)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int64, np.bool_])
    def test_integers_are_exact(self, dtype: type, tmp_path: Path) -> None:
        array = np.arange(-60, 60).reshape(4, 5, 6).astype(dtype)
        write_dicom_series(Volume(array, np.eye(4)), tmp_path / "out")
        np.testing.assert_array_equal(read_volume(tmp_path / "out").array, array)

    def test_floats_are_off_by_at_most_half_a_step(self, tmp_path: Path) -> None:
        array = np.random.default_rng(0).normal(3, 2, (7, 6, 5)).astype(np.float32)
        write_dicom_series(Volume(array, np.eye(4)), tmp_path / "out")
        back = read_volume(tmp_path / "out").array
        assert back.dtype == np.float32
        assert np.abs(back - array).max() <= np.ptp(array) / 131070 * 1.01

    def test_same_seed_same_bytes(self, tmp_path: Path) -> None:
        first, second = (small_series(tmp_path / name) for name in "ab")
        assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]

    def test_like_keeps_patient_and_study_in_a_new_series(self, tmp_path: Path) -> None:
        small_series(tmp_path / "in", edit=lambda d, _: setattr(d, "PatientID", "P1"))
        source = read_volume(tmp_path / "in")
        mask = source.with_array((source.array > 9).astype(np.uint8), kind="label", facts={})
        write_volume(mask, tmp_path / "out", like=source)
        back = read_volume(tmp_path / "out")
        np.testing.assert_array_equal(back.array, mask.array)
        for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert back.facts[keyword] == source.facts[keyword]
        assert back.facts["SeriesInstanceUID"] != source.facts["SeriesInstanceUID"]


def flip_slices(num_slices: int) -> npt.NDArray[np.float64]:
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = num_slices - 1
    return flip


class TestGrouping:
    def test_order_of_the_files_does_not_matter(self, tmp_path: Path) -> None:
        files = small_series(tmp_path / "in", num_slices=7)
        shuffled = [files[i] for i in np.random.default_rng(0).permutation(7)]
        series = group_series(shuffled).series[0]
        assert series.files == tuple(files)
        assert series.shape == (8, 6, 7)

    def test_scan_can_cross_processes(self, tmp_path: Path) -> None:
        series = group_series(small_series(tmp_path / "in")).series[0]
        again = pickle.loads(pickle.dumps(series))
        np.testing.assert_array_equal(read_series(again).array, read_series(series).array)

    def test_every_file_is_in_exactly_one_place(self, tmp_path: Path) -> None:
        files = small_series(tmp_path / "in")
        (tmp_path / "in" / "notes.txt").write_text("no image")
        copy = tmp_path / "copy"
        copy.write_bytes(files[0].read_bytes())
        given = [*files, tmp_path / "in" / "notes.txt", copy]
        scan = group_series(given)
        used = [path for series in scan.series for path in series.files]
        rejected = [path for path, _ in scan.rejected]
        assert sorted(used + rejected + [path for path, _ in scan.copies]) == sorted(given)
        assert scan.copies == [(copy, files[0])]

    def test_a_copy_of_some_slices_breaks_no_volume(self, tmp_path: Path) -> None:
        files = small_series(tmp_path / "a")
        again = small_series(tmp_path / "b")[1:3]
        scan = group_series([*files, *again])
        assert [series.files for series in scan.series] == [tuple(files)]
        assert [copy for copy, _ in scan.copies] == again

    def test_one_uid_for_all_slices_is_no_copy(self, tmp_path: Path) -> None:
        files = small_series(
            tmp_path / "in", edit=lambda d, _: setattr(d, "SOPInstanceUID", "1.2.3")
        )
        scan = group_series(files)
        assert scan.series[0].files == tuple(files)

    @pytest.mark.parametrize(
        ("keyword", "values"),
        [
            ("EchoTime", (10.0, 20.0)),
            ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
            ("TemporalPositionIdentifier", (1, 2)),
            ("AcquisitionNumber", (1, 2)),
            ("DiffusionBValue", (0.0, 1000.0)),
        ],
    )
    def test_repeats_are_told_apart_by_the_header(
        self, keyword: str, values: tuple[object, object], tmp_path: Path
    ) -> None:
        files = []
        for number, value in enumerate(values):

            def edit(dataset: Dataset, k: int, number: int = number, value: object = value) -> None:
                setattr(dataset, keyword, value)
                dataset.SOPInstanceUID = f"2.25.{number + 1}{k}"
                # Instance numbers that would mix the volumes.
                dataset.InstanceNumber = 2 * k + 1 + (number + k) % 2
                dataset.PixelData = np.full(48, number, np.uint16).tobytes()

            files += small_series(tmp_path / str(number), edit=edit)
        volumes = [read_series(series) for series in group_series(files).series]
        assert [volume.shape for volume in volumes] == [(8, 6, 5), (8, 6, 5)]
        assert [np.unique(volume.array).tolist() for volume in volumes] == [[0], [1]]

    def test_repeats_are_told_apart_by_their_order_at_last(self, tmp_path: Path) -> None:
        files = []
        for number in range(3):

            def edit(dataset: Dataset, k: int, number: int = number) -> None:
                dataset.SOPInstanceUID = f"2.25.{number + 1}{k}"
                dataset.InstanceNumber = 10 * number + k
                dataset.TriggerTime = float(100 * k + number)
                dataset.PixelData = np.full(48, number, np.uint16).tobytes()

            files += small_series(tmp_path / str(number), edit=edit)
        volumes = [read_series(series) for series in group_series(files).series]
        assert [np.unique(volume.array).tolist() for volume in volumes] == [[0], [1], [2]]

    def test_a_value_that_changes_from_slice_to_slice_splits_nothing(self, tmp_path: Path) -> None:
        files = small_series(
            tmp_path / "in", edit=lambda d, k: setattr(d, "TriggerTime", 100.0 * k)
        )
        assert [series.shape for series in group_series(files).series] == [(8, 6, 5)]

    def test_orientations_and_matrices_are_separate_volumes(self, tmp_path: Path) -> None:
        files = small_series(tmp_path / "a")
        other = Volume(np.zeros((8, 6, 3), np.uint16), np.array(
            [[0, 0, 5, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]
        ))  # fmt: skip
        files += write_dicom_series(other, tmp_path / "b", seed="s")
        shapes = [series.shape for series in group_series(files).series]
        assert sorted(shapes) == [(8, 6, 3), (8, 6, 5)]


class TestValues:
    def test_whole_intercept_stays_integer(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, _: int) -> None:
            dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"

        files = small_series(tmp_path / "in", edit=edit)
        volume = read_series(group_series(files).series[0])
        assert volume.array.dtype.kind == "i"
        assert (volume.array.min(), volume.array.max()) == (-1024, 8 * 6 * 5 - 1 - 1024)

    def test_scaling_of_each_slice_is_its_own(self, tmp_path: Path) -> None:
        files = small_series(
            tmp_path / "in", edit=lambda d, k: setattr(d, "RescaleSlope", str(0.25 * (k + 1)))
        )
        volume = read_series(group_series(files).series[0])
        stored = np.arange(8 * 6 * 5).reshape(8, 6, 5)
        expected = stored * 0.25 * np.arange(1, 6)
        assert volume.array.dtype == np.float32
        np.testing.assert_array_equal(volume.array, expected)

    def test_monochrome1_is_inverted(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, _: int) -> None:
            dataset.PhotometricInterpretation = "MONOCHROME1"
            dataset.BitsStored, dataset.HighBit = 12, 11

        files = small_series(tmp_path / "in", edit=edit)
        volume = read_series(group_series(files).series[0])
        np.testing.assert_array_equal(volume.array, 4095 - np.arange(240).reshape(8, 6, 5))

    def test_signed_monochrome1_keeps_its_range(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, _: int) -> None:
            dataset.PhotometricInterpretation = "MONOCHROME1"
            dataset.PixelRepresentation = 1

        files = small_series(tmp_path / "in", edit=edit)
        volume = read_series(group_series(files).series[0])
        np.testing.assert_array_equal(volume.array, -1 - np.arange(240).reshape(8, 6, 5))

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
    def test_transfer_syntaxes(self, syntax: str, tmp_path: Path) -> None:
        files = small_series(tmp_path / "in")
        for file in files:
            dataset = pydicom.dcmread(file)
            if syntax == RLELossless:
                dataset.compress(syntax)
            else:
                pixels = np.frombuffer(dataset.PixelData, "<u2")
                dataset.file_meta.TransferSyntaxUID = syntax
                if syntax == ExplicitVRBigEndian:
                    dataset.PixelData = pixels.astype(">u2").tobytes()
            pydicom.dcmwrite(
                file,
                dataset,
                implicit_vr=syntax == ImplicitVRLittleEndian,
                little_endian=syntax != ExplicitVRBigEndian,
                force_encoding=True,
            )
        volume = read_series(group_series(files).series[0])
        np.testing.assert_array_equal(volume.array, np.arange(240).reshape(8, 6, 5))

    @pytest.mark.parametrize(
        "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
                 "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm",
                 "MR_small_expb.dcm"],
    )  # fmt: skip
    def test_one_image_in_many_codecs(self, name: str) -> None:
        reference = read_volume(shipped("MR_small.dcm"))
        volume = read_volume(shipped(name))
        np.testing.assert_array_equal(volume.array, reference.array)
        np.testing.assert_array_equal(volume.affine, reference.affine)

    def test_reference_values_of_a_real_file(self) -> None:
        # By pydicom alone: dcmread(MR_small.dcm).pixel_array[row, column], PixelSpacing,
        # ImagePositionPatient with the sign of x and y turned.
        dataset = pydicom.dcmread(shipped("MR_small.dcm"))
        volume = read_volume(shipped("MR_small.dcm"))
        np.testing.assert_array_equal(volume.array[:, :, 0].T, dataset.pixel_array)
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        np.testing.assert_allclose(volume.affine[:3, 3], (-x, -y, z))
        assert volume.facts["PatientID"] == dataset.PatientID

    def test_preamble_may_be_missing(self, tmp_path: Path) -> None:
        content = shipped("MR_small.dcm").read_bytes()
        dataset = pydicom.dcmread(shipped("MR_small.dcm"))
        start = content.index(b"\x08\x00\x05\x00" if "SpecificCharacterSet" in dataset
                              else b"\x08\x00\x08\x00")  # fmt: skip
        (tmp_path / "bare").write_bytes(content[start:])
        np.testing.assert_array_equal(
            read_volume(tmp_path / "bare").array, read_volume(shipped("MR_small.dcm")).array
        )


def enhanced(folder: Path, *, num_times: int = 1, repeat: bool = True) -> Path:
    """One Enhanced MR object with the slices of `small_series`, last slice first."""
    files = small_series(folder / "classic")
    slices = [pydicom.dcmread(file) for file in files][::-1]
    dataset = slices[0]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED
    dataset.NumberOfFrames = len(slices) * num_times
    groups = []
    for time in range(num_times):
        for one in slices:
            group, position, content = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient = one.ImagePositionPatient
            content.TemporalPositionIndex = time + 1
            group.PlanePositionSequence = Sequence([position])
            group.FrameContentSequence = Sequence([content])
            groups.append(group)
    shared, plane, measures, values, echo = (Dataset() for _ in range(5))
    plane.ImageOrientationPatient = dataset.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, "4"
    values.RescaleSlope, values.RescaleIntercept = "2", "1"
    echo.EffectiveEchoTime = 33.0
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    shared.MREchoSequence = Sequence([echo])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    if repeat:
        dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.PixelData = b"".join(one.PixelData for one in slices) * num_times
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
                    "RescaleSlope", "RescaleIntercept", "EchoTime"):  # fmt: skip
        delattr(dataset, keyword)
    path = folder / "enhanced.dcm"
    dataset.save_as(path)
    return path


class TestEnhanced:
    def test_frames_are_placed_by_their_own_geometry(self, tmp_path: Path) -> None:
        volume = read_volume(enhanced(tmp_path))
        np.testing.assert_array_equal(volume.array, 2.0 * np.arange(240).reshape(8, 6, 5) + 1)
        np.testing.assert_allclose(volume.affine, np.diag([-1.5, -1.5, 4, 1]))
        assert volume.facts["EchoTime"] == 33

    def test_several_times_are_several_volumes(self, tmp_path: Path) -> None:
        path = enhanced(tmp_path, num_times=3)
        scan = group_series([path])
        assert [series.shape for series in scan.series] == [(8, 6, 5)] * 3
        with pytest.raises(DataError, match=r"DATA-03.*holds 3 volumes"):
            read_volume(path)

    def test_without_geometry(self, tmp_path: Path) -> None:
        with pytest.raises(GeometryError, match="GEOMETRY-02"):
            read_volume(enhanced(tmp_path, repeat=False))


class TestDamage:
    @pytest.mark.parametrize("seed", range(60))
    def test_flipped_bytes_raise_only_our_errors(self, seed: int, tmp_path: Path) -> None:
        rng = np.random.default_rng(seed)
        name = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm")[seed % 3]
        content = bytearray(shipped(name).read_bytes())
        for _ in range(int(rng.integers(1, 40))):
            # Most of the harm is done in the header.
            content[rng.integers(0, 2000 if rng.random() < 0.8 else len(content))] = rng.integers(
                256
            )
        (tmp_path / "damaged").write_bytes(content)
        self._read_or_refuse(tmp_path / "damaged")

    @pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm"])
    def test_cut_anywhere_is_refused(self, name: str, tmp_path: Path) -> None:
        content = shipped(name).read_bytes()
        # MR_small.dcm ends with 126 bytes of trailing padding, which may be lost.
        for length in np.linspace(0, len(content) - 200, 60).astype(int):
            (tmp_path / "cut").write_bytes(content[:length])
            error = only_error(group_series([tmp_path / "cut"]))
            assert error.code in ("DATA-02", "DATA-03", "DATA-10")
            assert length < 1000 or error.code != "DATA-03"

    def _read_or_refuse(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                read_volume(path)
                code = None
            except CoreMRIError as error:
                code = error.code
        assert code is None or code in CODES

    def test_truncated_pixel_data(self) -> None:
        with pytest.raises(DataError, match=r"DATA-02.*MR_truncated.dcm"):
            read_volume(shipped("MR_truncated.dcm"))

    def test_a_damaged_last_slice_does_not_pass_unseen(self, tmp_path: Path) -> None:
        files = small_series(tmp_path / "in")
        files[-1].write_bytes(files[-1].read_bytes()[:-20])
        with pytest.raises(DataError, match=r"DATA-02.*0005.dcm"):
            read_volume(tmp_path / "in")

    def test_nothing_is_shown_or_logged_by_pydicom(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        filters = list(warnings.filters)
        with caplog.at_level(logging.DEBUG):
            group_series([shipped("MR_truncated.dcm"), shipped("MR_small_padded.dcm")])
            read_volume(shipped("MR_small_padded.dcm"))
        assert warnings.filters == filters
        assert not logging.getLogger("pydicom").disabled
        assert capfd.readouterr() == ("", "")
        assert not caplog.records


class TestRefuses:
    @pytest.mark.parametrize(
        ("edit", "code", "reason"),
        [
            (lambda d: setattr(d, "Modality", "CT"), "DATA-03", "the modality is CT"),
            (lambda d: setattr(d, "Modality", "DOE JOHN"), "DATA-03", "none or unknown"),
            (lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"), "DATA-03",
             "Secondary Capture"),
            (lambda d: setattr(d, "SOPClassUID", "1.2.3.4"), "DATA-03", "private class"),
            (lambda d: setattr(d, "SamplesPerPixel", 3), "DATA-03", "color"),
            (lambda d: delattr(d, "PixelData"), "DATA-10", "no pixel data"),
            (lambda d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "DATA-10",
             "mosaic"),
            (lambda d: setattr(d, "PixelSpacing", [0, 1]), "GEOMETRY-01", r"\(0.0, 1.0\)"),
            (lambda d: delattr(d, "PixelSpacing"), "GEOMETRY-01", "nothing usable"),
            (lambda d: delattr(d, "ImagePositionPatient"), "GEOMETRY-02", "position"),
            (lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "GEOMETRY-02",
             "perpendicular"),
            (lambda d: setattr(d, "NumberOfFrames", 16), "GEOMETRY-02", "16 frames"),
            (lambda d: setattr(d, "RescaleSlope", "0"), "DATA-02", "slope"),
        ],
    )  # fmt: skip
    def test_one_file(
        self, edit: Callable[[Dataset], None], code: str, reason: str, tmp_path: Path
    ) -> None:
        files = small_series(tmp_path / "in", num_slices=1)
        dataset = pydicom.dcmread(files[0])
        edit(dataset)
        if "NumberOfFrames" in dataset:
            dataset.PixelData = dataset.PixelData * 16
        dataset.save_as(files[0], enforce_file_format=False)
        with pytest.raises(CoreMRIError, match=rf"{code}: .*0001.dcm.*{reason}"):
            read_volume(files[0])

    def test_no_decoder(self, tmp_path: Path) -> None:
        files = small_series(tmp_path / "in", num_slices=1)
        dataset = pydicom.dcmread(files[0])
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
        dataset["PixelData"].is_undefined_length = True
        dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
        dataset.save_as(files[0])
        with pytest.raises(DataError, match=r"DATA-10.*1.2.840.10008.1.2.4.102"):
            read_volume(files[0])

    def test_single_slice_without_thickness(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, _: int) -> None:
            del dataset.SliceThickness, dataset.SpacingBetweenSlices

        files = small_series(tmp_path / "in", num_slices=1, edit=edit)
        assert only_error(group_series(files)).code == "GEOMETRY-01"

    def test_missing_slice_is_named(self, tmp_path: Path) -> None:
        files = small_series(tmp_path / "in")
        scan = group_series([*files[:2], *files[3:]])
        error = only_error(scan)
        assert error.code == "GEOMETRY-02"
        assert "8.00 mm between 4.00 and 12.00 mm" in str(error)
        assert len(scan.rejected) == 4

    def test_slices_shifted_sideways(self, tmp_path: Path) -> None:
        def edit(dataset: Dataset, number: int) -> None:
            dataset.ImagePositionPatient[0] += 3.0 * (number % 2)

        error = only_error(group_series(small_series(tmp_path / "in", edit=edit)))
        assert (error.code, "straight line" in str(error)) == ("GEOMETRY-02", True)

    def test_unequal_repeats(self, tmp_path: Path) -> None:
        files = small_series(tmp_path / "a")
        files += small_series(
            tmp_path / "b", edit=lambda d, k: setattr(d, "SOPInstanceUID", f"2.25.{k}")
        )[:2]
        error = only_error(group_series(files))
        assert (error.code, "repeated unequally" in str(error)) == ("GEOMETRY-02", True)

    def test_messages_hold_no_patient_values(self, tmp_path: Path) -> None:
        secret = "Testperson"

        def edit(dataset: Dataset, number: int) -> None:
            dataset.PatientName = dataset.PatientID = secret
            dataset.SeriesDescription = dataset.StudyDescription = secret
            dataset.ImagePositionPatient[2] += number**2

        errors = [only_error(group_series(small_series(tmp_path / "a", edit=edit)))]
        files = small_series(tmp_path / "b")
        for file, cut in zip(files, (150, 400, 700, 900, 1100), strict=True):
            dataset = pydicom.dcmread(file)
            edit(dataset, 0)
            dataset.save_as(file)
            file.write_bytes(file.read_bytes()[:cut])
            errors.append(only_error(group_series([file])))
        assert not [str(error) for error in errors if secret in str(error)]

    def test_no_such_path(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="DATA-01"):
            read_volume(tmp_path / "nothing")
        with pytest.raises(DataError, match="DATA-01"):
            group_series([]) and read_volume([tmp_path / "nothing"])

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="DATA-01"):
            read_volume(tmp_path)

    def test_folder_with_two_series_says_how_to_choose(self, tmp_path: Path) -> None:
        small_series(tmp_path / "in" / "a")
        image, _ = phantom_volume("knee", 0, size=16, num_slices=3)
        write_dicom_series(image, tmp_path / "in" / "b")
        with pytest.raises(DataError, match=r"DATA-03.*1\) 5 files.*8x6x5.*2\) 3 files.*Pass one"):
            read_volume(tmp_path / "in")


class TestWriting:
    def test_folder_in_use(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("kept")
        with pytest.raises(ConfigError, match="CONFIG-03"):
            write_dicom_series(Volume(np.zeros((2, 2, 2)), np.eye(4)), tmp_path)

    def test_no_place_to_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="DATA-07"):
            write_dicom_series(Volume(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "file" / "out")

    def test_values_beyond_16_bits(self, tmp_path: Path) -> None:
        volume = Volume(np.array([[[-1, 65535]]]), np.eye(4))
        with pytest.raises(ConfigError, match=r"CONFIG-05.*-1 to 65535"):
            write_dicom_series(volume, tmp_path / "out")

    def test_not_finite(self, tmp_path: Path) -> None:
        volume = Volume(np.array([[[0, np.nan]]]), np.eye(4))
        with pytest.raises(DataError, match="DATA-04"):
            write_dicom_series(volume, tmp_path / "out")

    def test_four_dimensions(self, tmp_path: Path) -> None:
        with pytest.raises(GeometryError, match="GEOMETRY-02"):
            write_dicom_series(Volume(np.zeros((2, 2, 2, 2)), np.eye(4)), tmp_path / "out")

    def test_skewed_rows(self, tmp_path: Path) -> None:
        affine = np.eye(4)
        affine[0, 1] = 0.5
        with pytest.raises(GeometryError, match="GEOMETRY-02"):
            write_dicom_series(Volume(np.zeros((2, 2, 2), int), affine), tmp_path / "out")

    def test_like_of_another_grid(self, tmp_path: Path) -> None:
        a, b = Volume(np.zeros((2, 2, 2)), np.eye(4)), Volume(np.zeros((2, 2, 3)), np.eye(4))
        with pytest.raises(GeometryError, match="GEOMETRY-03"):
            write_volume(a, tmp_path / "out", like=b)

    def test_nothing_is_left_after_a_failure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pydicom.dataset.FileDataset.save_as", full)
        with pytest.raises(DataError, match=r"DATA-07.*No space left"):
            write_dicom_series(Volume(np.zeros((2, 2, 2), int), np.eye(4)), tmp_path / "out")
        assert not list(tmp_path.iterdir())


@pytest.mark.data
class TestRealScans:
    @pytest.mark.parametrize(
        ("folder", "shape", "plane"),
        [
            ("brain_tcia_btp003/t1post_dicom", (280, 320, 22), "axial"),
            ("prostate_prostatex0000/t2_tra", (384, 384, 19), "axial"),
            ("prostate_prostatex0000/adc", (84, 128, 19), "axial"),
            ("dicom/ge_head_pd_series", (256, 256, 19), "axial"),
            ("dicom/hitachi_shoulder", (64, 64, 4), "sagittal"),
        ],
    )
    def test_one_series(
        self, shared_data: Path, folder: str, shape: tuple[int, ...], plane: str
    ) -> None:
        volume = read_volume(shared_data / folder)
        assert (volume.shape, volume.plane) == (shape, plane)
        assert volume.facts["Modality"] == "MR"

    def test_voxels_lie_where_the_header_puts_them(self, shared_data: Path) -> None:
        folder = shared_data / "prostate_prostatex0000" / "t2_tra"
        volume = read_volume(folder)
        for file in sorted(folder.glob("*.dcm"))[::5]:
            dataset = pydicom.dcmread(file)
            lps = np.array([*(float(v) for v in dataset.ImagePositionPatient), 1.0])
            i, j, k = np.rint(np.linalg.solve(volume.affine_lps, lps)[:3]).astype(int)
            assert (i, j) == (0, 0)
            np.testing.assert_array_equal(volume.array[:, :, k].T, dataset.pixel_array)

    def test_echoes_of_one_slice_are_apart_from_the_stack(self, shared_data: Path) -> None:
        scan = group_series(sorted((shared_data / "knee_mese").glob("*.dcm")))
        assert [s.shape for s in scan.series] == [(256, 256, 24)] + [(256, 256, 1)] * 7
        echoes = [float(s.facts["EchoTime"]) for s in scan.series]
        assert echoes == sorted(set(echoes))
        assert not scan.rejected

    def test_everything_is_read_or_refused(self, shared_data: Path) -> None:
        files = sorted(f for f in (shared_data / "dicom").rglob("*") if f.is_file())
        scan = group_series(files)
        codes = {path.name: error.code for path, error in scan.rejected}
        assert codes["philips_heart_cine_16frames.dcm"] == "GEOMETRY-02"
        assert codes["MR_truncated.dcm"] == "DATA-02"
        for series in scan.series:
            assert np.isfinite(read_series(series).array).all()
        shapes = {s.files[0].name: s.shape for s in scan.series}
        assert shapes["siemens_mosaic_axasc35.dcm"] == (64, 64, 35)
        assert shapes["siemens_dwi_1000_header.dcm.gz"][2] == 48
        assert shapes["siemens_enhanced.dcm"] == (256, 256, 8)
        assert shapes["hyperfine_enhanced.dcm"] == (112, 138, 8)
        assert shapes["philips_enhanced_fmri.dcm"] == (64, 64, 8)


class TestOtherPackages:
    def test_every_file_shipped_with_pydicom(self) -> None:
        folder = Path(pydicom.data.__file__).parent / "test_files"
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        scan = group_series(files)
        for series in scan.series:
            read_series(series)
        placed = {f for s in scan.series for f in s.files} | {f for f, _ in scan.rejected}
        assert placed | {f for f, _ in scan.copies} == set(files)
        assert len(scan.series) >= 19

    def test_lossless_code_stream_equals_uncompressed(self) -> None:
        spec = importlib.util.find_spec("data_store")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("pydicom-data is not installed")
        folder = Path(spec.submodule_search_locations[0]) / "data"
        lossless, plain = (read_volume(folder / f"MR2_{name}.dcm") for name in ("J2KR", "UNCR"))
        np.testing.assert_array_equal(lossless.array, plain.array)

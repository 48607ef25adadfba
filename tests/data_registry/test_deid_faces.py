"""Faces: taken away where the template fits surely, held back where it does not, others untouched.

Heads here are pydeface's own template, turned and stretched, which makes the fit easy: these tests
check the machinery. Recall on heads of other origin is measured by `bench_faces.py`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from core_mri.physics.phantoms import phantom_volume
from data_registry.deidentify import head_template, heads
from data_registry.deidentify.audit import AUDIT
from data_registry.deidentify.cli import main
from data_registry.deidentify.faces import HeadFit, fit_head, in_face
from data_registry.deidentify.heads import (
    NO_FACE,
    FaceVerdict,
    held_back,
    look_at_series,
    without_face,
)
from data_registry.deidentify.scope import FacePolicy
from data_registry.deidentify.verify_cli import main as verify
from data_registry.label_words import regions

pytest.importorskip("pydeface")
SimpleITK = pytest.importorskip("SimpleITK")


def head(
    seed: int, *, spacing: tuple[float, float, float] = (2.0, 2.0, 3.0), turn: float = 10.0
) -> tuple[Any, Any]:
    """A turned, stretched and noisy head, and the transform from its points to the template's."""
    chance = np.random.default_rng(seed)
    template = head_template.full_template()
    center = template.TransformContinuousIndexToPhysicalPoint(
        [(n - 1) / 2 for n in template.GetSize()]
    )
    angles = chance.uniform(-turn, turn, 3) * np.pi / 180
    turned = SimpleITK.Euler3DTransform(
        center, *map(float, angles), chance.uniform(-8, 8, 3).tolist()
    )
    move = SimpleITK.AffineTransform(3)
    move.SetCenter(center)
    linear = np.array(turned.GetMatrix()).reshape(3, 3) @ np.diag(chance.uniform(0.93, 1.07, 3))
    move.SetMatrix(linear.ravel().tolist())
    move.SetTranslation(turned.GetTranslation())
    size = [
        int(n * s / t)
        for n, s, t in zip(template.GetSize(), template.GetSpacing(), spacing, strict=True)
    ]
    image = SimpleITK.Resample(
        template, size, move, SimpleITK.sitkLinear, template.GetOrigin(), spacing,
        template.GetDirection(), 0.0,
    )  # fmt: skip
    array = SimpleITK.GetArrayFromImage(image)
    noisy = np.abs(array + chance.normal(0, array.max() * 0.02, array.shape))
    made = SimpleITK.GetImageFromArray(noisy.astype(np.float32))
    made.CopyInformation(image)
    return made, move


def points_of(image: Any) -> np.ndarray[Any, Any]:
    """Coordinates of every voxel, in the order of the array."""
    size = image.GetSize()
    voxels = np.indices(size[::-1]).reshape(3, -1)[::-1].T
    return np.asarray(voxels @ head_template.directions(image).T + np.array(image.GetOrigin()))


def volume(array: np.ndarray[Any, Any], spacing: float = 2.0) -> Any:
    image = SimpleITK.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing([spacing] * 3)
    return image


@pytest.fixture(scope="module", autouse=True)
def _each_fit_once() -> Iterator[None]:
    """A fit takes seconds: series of equal voxels at equal places share it."""
    made: dict[tuple[object, ...], HeadFit] = {}

    def fit_once(image: Any) -> HeadFit:
        place = image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()
        key = SimpleITK.Hash(image), *place
        if key not in made:
            made[key] = fit_head(image)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "fit_head", fit_once)
        yield


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, Any, HeadFit]:
    """A head, the transform from its points to the template's, and what the fit says of it."""
    image, move = head(1)
    return image, move, fit_head(image)


class TestFit:
    def test_finds_the_template_again(self, fitted: tuple[Any, Any, HeadFit]) -> None:
        image, move, fit = fitted
        assert fit.sure
        points = points_of(image)[::997]
        linear = np.array(move.GetMatrix()).reshape(3, 3)
        center = np.array(move.GetCenter())
        moved = (points - center) @ linear.T + center + np.array(move.GetTranslation())
        template = head_template.full_template()
        voxels = (moved - np.array(template.GetOrigin())) @ np.linalg.inv(
            head_template.directions(template)
        ).T
        matrix = np.array(fit.matrix)
        found = points @ matrix[:, :3].T + matrix[:, 3]
        assert np.abs(found - voxels).mean() < 2.0

    @pytest.mark.slow
    def test_same_fit_every_time(self) -> None:
        image, _ = head(2)
        assert fit_head(image) == fit_head(image)

    def test_crop_takes_more_than_the_mask_and_leaves_the_top(
        self, fitted: tuple[Any, Any, HeadFit]
    ) -> None:
        image, _, fit = fitted
        points = points_of(image)
        crop, mask = (in_face(fit, points, way) for way in ("crop", "deface"))
        head_only = SimpleITK.GetArrayFromImage(image).ravel() > 30
        assert (crop & mask & head_only).sum() > 0.8 * (mask & head_only).sum()
        matrix = np.array(fit.matrix)
        voxels = points @ matrix[:, :3].T + matrix[:, 3]
        assert not crop[voxels[:, 2] > 125].any()
        assert not crop[voxels[:, 1] < 149].any()
        eyes = (abs(voxels - (90, 199, 98)) < (40, 8, 8)).all(axis=1)
        assert crop[eyes].all()


def headless(chance: np.random.Generator) -> dict[str, Any]:
    """Eight images of no head."""
    z, y, x = np.ogrid[-1:1:64j, -1:1:80j, -1:1:72j]
    ball = ((x / 0.7) ** 2 + (y / 0.8) ** 2 + (z / 0.8) ** 2 < 1) * 200.0
    box = np.zeros((60, 80, 80))
    box[15:45, 20:60, 20:60] = 200
    return {
        "noise": volume(chance.normal(100, 10, (40, 64, 64))),
        "flat": volume(np.ones((40, 64, 64))),
        "empty": volume(np.zeros((40, 64, 64))),
        "one bright voxel": volume(np.eye(40)[:, :, None] * np.ones(40)),
        "ball": volume(ball + chance.normal(0, 5, ball.shape)),
        "box": volume(box + chance.normal(0, 5, box.shape)),
        "ramp": volume(np.broadcast_to(z, (64, 80, 72)) * 100),
        "thin slab": volume(chance.normal(100, 10, (5, 64, 64))),
    }


def failures() -> dict[str, Any]:
    """Twenty images that are no whole heads the right way up."""
    made = headless(np.random.default_rng(0))
    for region in ("knee", "prostate", "abdomen", "brain"):
        for sequence in ("T1", "T2"):
            array = np.asarray(phantom_volume(region, 1, sequence, size=96, num_slices=24)[0].array)
            made[f"{region} {sequence} phantom"] = volume(np.moveaxis(array, 2, 0).astype(float))
    image, _ = head(7, spacing=(3.0, 3.0, 3.0))
    array = SimpleITK.GetArrayFromImage(image)
    # The template's voxels run to the right and front, those of `volume` to the left and back.
    made["upside down"] = volume(array[::-1, ::-1, ::-1].copy(), 3.0)
    made["face to the back"] = volume(array, 3.0)
    made["lying on its side"] = volume(np.rot90(array, 1, (0, 2)).copy(), 3.0)
    made["only the crown"] = volume(array[50:].copy(), 3.0)
    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_failures_are_never_passed_silently() -> None:
    made = failures()
    assert len(made) == 20
    sure = [name for name, image in made.items() if fit_head(image).sure]
    assert sure == []


def test_fits_that_are_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    made = headless(np.random.default_rng(0))
    for name in ("noise", "flat", "empty", "ball"):
        assert not fit_head(made[name]).sure, name
    matrix = ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0))
    assert HeadFit(matrix, 0.7, 1.0, 0.97, 0.9).sure
    assert not HeadFit(matrix, 0.7, 2.5, 0.97, 0.9).sure
    assert not HeadFit(matrix, 0.5, 1.0, 0.97, 0.9).sure


def test_every_region_that_may_show_a_face() -> None:
    """A new region of the vocabulary is taken for one, until somebody decides."""
    assert set(regions()) - NO_FACE == {
        "brain", "head", "neck", "head and neck", "cervical spine", "thoracic spine", "spine",
        "whole body", "unknown",
    }  # fmt: skip
    assert set(regions()) >= NO_FACE


def write_head(folder: Path, image: Any, **facts: object) -> None:
    """As a DICOM series, in the patient's coordinates."""
    from core_mri.files.dicom_write import write_dicom_series
    from core_mri.volume import Volume

    array = SimpleITK.GetArrayFromImage(image)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ head_template.directions(image)
    affine[:3, 3] = np.diag([-1.0, -1.0, 1.0]) @ np.array(image.GetOrigin())
    voxels = np.ascontiguousarray(array.transpose(2, 1, 0)).clip(0, 4000).astype(np.uint16)
    header = {"Modality": "MR", "PatientID": "7", "PatientName": "Zqxvwk^Anna", **facts}
    write_dicom_series(Volume(voxels, affine), folder, facts=header, seed=folder.name)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _key(self, key_file: Path) -> None:
        self.key_file = key_file

    def run(self, tmp_path: Path, way: str) -> tuple[dict[str, Any], list[Path]]:
        out = tmp_path / f"out-{way}"
        words = [str(tmp_path / "in"), str(out), "--key-file", str(self.key_file), "--jobs", "1"]
        log = tmp_path / f"log-{way}"
        asked = ("--release", "public") if way == "public" else ("--faces", way)
        main([*words, *asked, "--private-log", str(log)])
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert (out / AUDIT).is_file()
        return {Path(line["path"]).parent.name: line for line in lines}, sorted(out.rglob("*.dcm"))

    def test_a_head_loses_its_face_and_says_so(self, tmp_path: Path) -> None:
        image, _ = head(4, spacing=(2.0, 2.0, 4.0))
        write_head(tmp_path / "in" / "head", image, BodyPartExamined="HEAD")
        told, paths = self.run(tmp_path, "crop")
        assert told["head"]["status"] == "done"
        kept, _ = self.run(tmp_path, "keep")
        assert kept["head"]["status"] == "done"
        changed = 0
        for path in paths:
            cropped = pydicom.dcmread(path)
            assert cropped.RecognizableVisualFeatures == "NO"
            assert "113102" in [i.CodeValue for i in cropped.DeidentificationMethodCodeSequence]
            whole = pydicom.dcmread(tmp_path / "out-keep" / path.relative_to(tmp_path / "out-crop"))
            assert "RecognizableVisualFeatures" not in whole
            different = cropped.pixel_array != whole.pixel_array
            changed += int(different.sum())
            assert (cropped.pixel_array[different] == whole.pixel_array.min()).all()
        assert changed > 20_000
        assert verify([str(tmp_path / "in"), str(tmp_path / "out-crop"), "--jobs", "1"]) == 0

    def test_a_head_that_does_not_fit_is_held_back(self, tmp_path: Path) -> None:
        chance = np.random.default_rng(1)
        noise = volume(chance.normal(500, 50, (12, 64, 64)), 3.0)
        write_head(tmp_path / "in" / "head", noise, BodyPartExamined="HEAD")
        write_head(tmp_path / "in" / "unknown", noise)
        write_head(tmp_path / "in" / "knee", noise, BodyPartExamined="KNEE")
        told, paths = self.run(tmp_path, "crop")
        assert (told["head"]["code"], told["unknown"]["code"]) == ("DATA-17", "DATA-17")
        assert "does not fit" in told["head"]["message"]
        assert told["knee"]["status"] == "done"
        assert len(paths) == 12
        assert "RecognizableVisualFeatures" not in pydicom.dcmread(paths[0])

    def test_public_reads_text_and_crops(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("rapidocr")
        image, _ = head(4, spacing=(2.0, 2.0, 4.0))
        write_head(tmp_path / "in" / "head", image, BodyPartExamined="HEAD")
        told, paths = self.run(tmp_path, "public")
        assert told["head"]["status"] == "done"
        codes = pydicom.dcmread(paths[0]).DeidentificationMethodCodeSequence
        assert {"113101", "113102"} <= {item.CodeValue for item in codes}
        assert "Not public before a person has looked at it" in capsys.readouterr().out

    def test_single_slices_are_held_back(self, tmp_path: Path) -> None:
        image, _ = head(5, spacing=(2.0, 2.0, 4.0))
        write_head(tmp_path / "in" / "head", image[:, :, 20:22], BodyPartExamined="BRAIN")
        told, paths = self.run(tmp_path, "crop")
        assert told["head"]["code"] == "DATA-17"
        assert paths == []

    def test_nifti_and_raw_data(self, tmp_path: Path) -> None:
        import nibabel as nib

        image, _ = head(6, spacing=(2.5, 2.5, 2.5))
        array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
        affine = np.eye(4)
        affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ head_template.directions(image)
        affine[:3, 3] = np.diag([-1.0, -1.0, 1.0]) @ np.array(image.GetOrigin())
        (tmp_path / "in" / "a").mkdir(parents=True)
        nib.save(
            nib.Nifti1Image(array.astype(np.int16), affine),
            tmp_path / "in" / "a" / "sub-1_T1w.nii.gz",
        )
        (tmp_path / "in" / "b").mkdir()
        from tests.data_registry.test_deid_other_formats import write_ismrmrd

        write_ismrmrd(tmp_path / "in" / "b" / "brain.h5")
        told, _ = self.run(tmp_path, "crop")
        assert told["a"]["status"] == "done"
        clean = nib.load(tmp_path / "out-crop" / told["a"]["output"])
        voxels = np.asarray(clean.dataobj)
        assert 0.05 < (voxels != array.astype(np.int16)).mean() < 0.4
        assert np.allclose(clean.affine, affine, atol=1e-4)
        assert (told["b"]["code"], "raw data" in told["b"]["message"]) == ("DATA-17", True)


def as_enhanced(paths: list[Path], out: Path) -> None:
    """The slices of a classic series as one Enhanced MR file."""
    frames = sorted((pydicom.dcmread(path) for path in paths), key=lambda d: int(d.InstanceNumber))
    made = frames[0]
    groups = []
    for frame in frames:
        place, turned, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = frame.ImagePositionPatient
        turned.ImageOrientationPatient = frame.ImageOrientationPatient
        measures.PixelSpacing, measures.SliceThickness = frame.PixelSpacing, frame.SliceThickness
        group = pydicom.Dataset()
        group.PlanePositionSequence = [place]
        group.PlaneOrientationSequence = [turned]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    pixels = b"".join(frame.PixelData for frame in frames)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(made, keyword)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    made.NumberOfFrames = len(frames)
    made.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    made.PerFrameFunctionalGroupsSequence = groups
    made.PixelData = pixels
    out.parent.mkdir(parents=True)
    made.save_as(out)


class TestUnusualHeads:
    """Each with the right outcome and a reason."""

    def look(self, image: Any, folder: Path, **facts: object) -> FaceVerdict:
        write_head(folder, image, BodyPartExamined="HEAD", **facts)
        return look_at_series(sorted(folder.rglob("*.dcm")), "crop", folder / "picture.png")

    def test_pixels_that_are_not_square(self, tmp_path: Path) -> None:
        image, _ = head(8, spacing=(1.8, 2.8, 4.0))
        verdict = self.look(image, tmp_path / "a")
        assert verdict.outcome == "fit"
        assert verdict.fit is not None
        gone = in_face(verdict.fit, points_of(image), "crop").reshape(image.GetSize()[::-1])
        kept = 0
        for path in sorted((tmp_path / "a").rglob("*.dcm")):
            dataset = pydicom.dcmread(path)
            row_mm, column_mm = map(float, dataset.PixelSpacing)
            assert row_mm != column_mm
            after = pydicom.dcmread(
                io.BytesIO(without_face(path.read_bytes(), path, verdict))
            ).pixel_array
            kept += int((after == dataset.pixel_array).sum())
        assert kept == pytest.approx((~gone).sum(), rel=0.02)

    @pytest.mark.slow
    def test_many_frames_in_one_file(self, tmp_path: Path) -> None:
        image, _ = head(9, spacing=(2.0, 2.0, 4.0))
        write_head(tmp_path / "classic", image, BodyPartExamined="HEAD")
        paths = sorted((tmp_path / "classic").rglob("*.dcm"))
        as_enhanced(paths, tmp_path / "enhanced" / "a.dcm")
        one, many = (
            look_at_series(paths, "crop"),
            look_at_series([tmp_path / "enhanced" / "a.dcm"], "crop"),
        )
        assert many.outcome == "fit"
        assert many.fit == one.fit
        content = (tmp_path / "enhanced" / "a.dcm").read_bytes()
        cropped = without_face(content, tmp_path / "enhanced" / "a.dcm", many)
        frames = pydicom.dcmread(io.BytesIO(cropped)).pixel_array
        for path in paths:
            classic = pydicom.dcmread(io.BytesIO(without_face(path.read_bytes(), path, one)))
            number = int(classic.InstanceNumber) - 1
            np.testing.assert_array_equal(frames[number], classic.pixel_array)

    @pytest.mark.slow
    @pytest.mark.parametrize("way", ["crop", "deface"])
    def test_faces_that_have_gone_already(self, tmp_path: Path, way: FacePolicy) -> None:
        image, _ = head(10, spacing=(2.0, 2.0, 3.0))
        gone = in_face(fit_head(image), points_of(image), way)
        array = SimpleITK.GetArrayFromImage(image)
        array[gone.reshape(array.shape)] = 0
        without = SimpleITK.GetImageFromArray(array)
        without.CopyInformation(image)
        verdict = self.look(without, tmp_path / "a")
        assert verdict.outcome == "held"
        assert "of the face" in held_back(verdict).message

    def test_an_animal(self, tmp_path: Path) -> None:
        image, _ = head(11, spacing=(2.0, 2.0, 3.0))
        image.SetSpacing((0.6, 0.6, 0.9))
        verdict = self.look(image, tmp_path / "a", PatientID="RAT 7")
        assert verdict.outcome == "held"
        assert "times the template" in held_back(verdict).message

    def test_colours_are_held_back(self, tmp_path: Path) -> None:
        image, _ = head(12, spacing=(4.0, 4.0, 8.0))
        write_head(tmp_path / "a", image, BodyPartExamined="HEAD")
        paths = sorted((tmp_path / "a").rglob("*.dcm"))
        for path in paths:
            dataset = pydicom.dcmread(path)
            gray = (dataset.pixel_array // 16).astype(np.uint8)
            dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
            dataset.PlanarConfiguration, dataset.BitsAllocated = 0, 8
            dataset.BitsStored, dataset.HighBit = 8, 7
            dataset.PixelData = np.repeat(gray[..., None], 3, axis=-1).tobytes()
            dataset.save_as(path)
        assert look_at_series(paths, "crop").outcome == "held"

    def test_the_picture_shows_before_and_after(self, tmp_path: Path) -> None:
        from PIL import Image

        image, _ = head(4, spacing=(2.0, 2.0, 4.0))
        assert self.look(image, tmp_path / "a").outcome == "fit"
        shown = np.asarray(Image.open(tmp_path / "a" / "picture.png")).astype(int)
        before, after = np.split(shown, 2)
        assert (after > 0).sum() < 0.95 * (before > 0).sum()
        upper = len(before) // 3
        np.testing.assert_array_equal(before[:upper], after[:upper])

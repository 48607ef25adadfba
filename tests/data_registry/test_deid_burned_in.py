"""Text in the pixels: found, quarantined, blanked where the header tells it, and never stored."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from core_mri.physics.phantoms import phantom_volume
from data_registry.deidentify.audit import AUDIT
from data_registry.deidentify.burned_in import display, is_of_header, read_image, read_series
from data_registry.deidentify.cli import main
from data_registry.deidentify.nifti_text import shows_text
from tests.data_registry.burned_text import PLACES, Burn, Series, a_burn, burn, write_series

pytest.importorskip("rapidocr")
NAME, BORN, NUMBER = "SCHMITTKE^ANNALENA", "19620304", "88213377"


def phantom(size: int = 192, slices: int = 8) -> Series:
    volume, _ = phantom_volume("brain", 0, "T1", size=size, num_slices=slices)
    array = np.moveaxis(np.asarray(volume.array), 2, 0).astype(np.float32)
    return (array / array.max() * 900).astype(np.uint16)


def says(text: str, *, size: int = 14, place: str = "top left") -> Burn:
    return Burn(text, "DejaVuSans.ttf", size, 1.0, place)


class TestReading:
    @pytest.mark.parametrize("place", PLACES)
    def test_text_anywhere(self, place: str) -> None:
        written = burn(phantom(), says("SCHMITTKE 1962", place=place))
        assert written is not None
        assert read_image(display(written[4]))

    def test_box_covers_the_text(self) -> None:
        clean = phantom()
        written = burn(clean, says("SCHMITTKE 1962"))
        assert written is not None
        changed = np.argwhere(written[4] != clean[4])
        (read,) = read_image(display(written[4]))
        top, left, bottom, right = read.box
        inside = (changed >= (top, left)).all(axis=1) & (changed < (bottom, right)).all(axis=1)
        assert inside.mean() > 0.95

    @pytest.mark.parametrize("text", ["R", "L", "A P", "10", "cm"])
    def test_markers_are_no_text(self, text: str) -> None:
        written = burn(phantom(), says(text))
        assert written is not None
        assert read_image(display(written[4])) == []

    def test_clean_images(self) -> None:
        assert [read_image(display(frame)) for frame in phantom()] == [[]] * 8

    def test_noise_and_flat_images(self) -> None:
        noise = np.random.default_rng(0).integers(0, 4096, (96, 96), dtype=np.uint16)
        assert read_image(display(noise)) == []
        assert read_image(display(np.zeros((64, 64), np.uint16))) == []

    def test_small_text_by_volume(self, tmp_path: Path) -> None:
        chance = random.Random(4)
        found = total = 0
        for number in range(12):
            written = burn(phantom(), a_burn(chance, sizes=(10, 12)))
            if written is None:
                continue
            total += 1
            found += read_series(write_series(written, tmp_path / str(number), str(number))).flagged
        assert total >= 8
        assert found == total

    def test_words_of_the_header(self) -> None:
        seeds = [NAME, BORN, "1962", NUMBER]
        assert is_of_header("SCHMITTKE ANNALENA", seeds)
        assert is_of_header("SCHMlTTKE", seeds)  # an l read for an I
        assert is_of_header("ID 88213377", seeds)
        assert not is_of_header("Dr. Brinkmann", seeds)


class TestSeries:
    def test_three_views_of_many_slices(self, tmp_path: Path) -> None:
        clean = read_series(write_series(phantom(), tmp_path, "a"))
        assert (clean.flagged, clean.frames_read, clean.everything) == (False, 3, False)

    @pytest.mark.parametrize(
        "facts",
        [
            {"ImageType": ["DERIVED", "SECONDARY"]},
            {"ConversionType": "WSD"},
            {"BurnedInAnnotation": "YES"},
        ],
    )
    def test_all_slices_where_text_is_likely(
        self, tmp_path: Path, facts: dict[str, object]
    ) -> None:
        seen = read_series(write_series(phantom(), tmp_path, "a", **facts))
        assert (seen.frames_read, seen.everything) == (8, True)

    def test_text_in_one_slice_of_a_derived_series(self, tmp_path: Path) -> None:
        series = phantom()
        written = burn(series, says("SCHMITTKE"))
        assert written is not None
        series[6] = written[6]
        paths = write_series(series, tmp_path, "a", ImageType=["DERIVED", "SECONDARY"])
        assert read_series(paths).flagged


class TestCommand:
    def run(
        self, tmp_path: Path, key_file: Path, mode: str, series: Series, **facts: object
    ) -> tuple[list[Path], list[dict[str, object]]]:
        header = {"PatientName": NAME, "PatientID": NUMBER, "PatientBirthDate": BORN}
        write_series(series, tmp_path / "in" / "shown", "shown", **header, **facts)
        write_series(phantom(slices=3), tmp_path / "in" / "clean", "clean")
        out = tmp_path / "out"
        words = [str(tmp_path / "in"), str(out), "--key-file", str(key_file), "--jobs", "1"]
        assert main([*words, "--pixels", mode, "--private-report", str(tmp_path / "report")]) == 0
        lines = [json.loads(line) for line in (out / AUDIT).read_text().splitlines()[1:]]
        return sorted(out.rglob("*.dcm")), lines

    def shown(self, text: str = "SCHMITTKE ANNALENA 1962") -> Series:
        written = burn(phantom(size=256, slices=4), says(text, size=12))
        assert written is not None
        return written

    def test_check_quarantines_the_series(self, tmp_path: Path, key_file: Path) -> None:
        paths, lines = self.run(tmp_path, key_file, "check", self.shown())
        assert len(paths) == 3
        codes = [line["code"] for line in lines]
        assert codes.count("DATA-16") == 4
        clean = pydicom.dcmread(paths[0])
        assert clean.BurnedInAnnotation == "NO"
        assert "113101" in [i.CodeValue for i in clean.DeidentificationMethodCodeSequence]

    def test_what_was_read_is_told_to_nobody(self, tmp_path: Path, key_file: Path) -> None:
        self.run(tmp_path, key_file, "check", self.shown())
        audit = (tmp_path / "out" / AUDIT).read_text()
        assert "SCHMITTKE" not in audit.upper()
        assert '"texts": ["P' in audit
        report = (tmp_path / "report" / "quarantined.jsonl").read_text()
        assert "frame 0" in report
        assert "ANNALENA" not in report

    def test_blank_takes_away_what_the_header_tells(self, tmp_path: Path, key_file: Path) -> None:
        series = self.shown()
        paths, _ = self.run(tmp_path, key_file, "blank", series)
        assert len(paths) == 7
        clean = phantom(size=256, slices=4)
        blanked = [pydicom.dcmread(p) for p in paths if pydicom.dcmread(p).Rows == 256]
        assert len(blanked) == 4
        for dataset in blanked:
            assert read_image(display(dataset.pixel_array)) == []
            number = int(dataset.InstanceNumber) - 1
            same = dataset.pixel_array == clean[number]
            assert same.mean() > 0.9
            assert dataset.BurnedInAnnotation == "NO"

    def test_blank_quarantines_other_text(self, tmp_path: Path, key_file: Path) -> None:
        paths, lines = self.run(tmp_path, key_file, "blank", self.shown("BRINKMANN WARD 7"))
        assert len(paths) == 3
        assert [line["code"] for line in lines].count("DATA-16") == 4

    @pytest.mark.parametrize("upside_down", [False, True])
    def test_nifti(self, tmp_path: Path, key_file: Path, upside_down: bool) -> None:
        for name, series in (("clean", phantom()), ("shown", self.shown())):
            array = series.transpose(2, 1, 0)[:, :: -1 if upside_down else 1].astype(np.int16)
            (tmp_path / "in" / name).mkdir(parents=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "in" / name / "sub-1_T1w.nii.gz")
        codes: dict[str, list[str]] = {}
        source = tmp_path / "in"
        for mode in ("skip", "check", "blank"):
            out, log = tmp_path / f"out-{mode}", tmp_path / f"log-{mode}"
            words = [str(source), str(out), "--key-file", str(key_file), "--jobs", "1"]
            assert main([*words, "--pixels", mode, "--private-log", str(log)]) == 0
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            codes[mode] = [line["code"] for line in lines if line["path"].endswith(".gz")]
        assert codes == {"skip": ["", ""], "check": ["", "DATA-16"], "blank": ["", "DATA-16"]}

    def test_own_nifti_is_read_when_it_was_not(self, tmp_path: Path, key_file: Path) -> None:
        array = self.shown().transpose(2, 1, 0).astype(np.int16)
        (tmp_path / "in").mkdir()
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "in" / "sub-1_T1w.nii.gz")
        words = ["--key-file", str(key_file), "--jobs", "1"]
        unread, again, read = (str(tmp_path / name) for name in ("unread", "again", "read"))
        assert main([str(tmp_path / "in"), unread, *words]) == 0
        assert main([unread, again, *words]) == 0
        assert main([unread, read, *words, "--pixels", "check"]) == 1

    @pytest.mark.parametrize(
        ("shape", "kind"),
        [((32, 32), "<i2"), ((32, 32, 3, 2), "<f4"), ((32, 32, 4), "<c8"), ((32, 32, 1), "rgb")],
    )
    def test_nifti_of_any_shape(self, tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
        colours = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        array = np.zeros(shape, dtype=colours if kind == "rgb" else kind)
        if kind == "<f4":
            array[0, 0] = np.nan
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
        assert not shows_text(tmp_path / "a.nii")

    def test_packed_dicom_is_not_passed_unread(self, tmp_path: Path, key_file: Path) -> None:
        (path, *_) = write_series(self.shown(), tmp_path / "shown", "shown")
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.dcm.gz").write_bytes(gzip.compress(path.read_bytes()))
        words = [str(tmp_path / "in"), "--key-file", str(key_file), "--jobs", "1"]
        assert main([*words[:1], str(tmp_path / "unread"), *words[1:]]) == 0
        for number, asked in enumerate((("--pixels", "check"), ("--faces", "crop"))):
            out = tmp_path / str(number)
            assert main([*words[:1], str(out), *words[1:], *asked]) == 1
            assert '"DATA-10"' in (out / AUDIT).read_text()

    def test_skip_looks_at_nothing(self, tmp_path: Path, key_file: Path) -> None:
        paths, _ = self.run(tmp_path, key_file, "skip", self.shown())
        assert len(paths) == 7
        assert "BurnedInAnnotation" not in pydicom.dcmread(paths[0])

    def test_stated_text_that_is_not_found_may_pass_after_looking(
        self, tmp_path: Path, key_file: Path
    ) -> None:
        paths, _ = self.run(tmp_path, key_file, "check", phantom(slices=4), BurnedInAnnotation="NO")
        assert len(paths) == 7

"""Captures, reports and documents: left out with a reason, and what happens when asked for."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from core_mri.errors import ConfigError, DataError
from data_registry.deidentify.audit import AUDIT
from data_registry.deidentify.cli import main
from data_registry.deidentify.headers import deidentify_dicom
from data_registry.deidentify.profile import PROFILES
from data_registry.deidentify.scope import Extra, extra_of
from data_registry.deidentify.verify_cli import main as verify
from tests.data_registry.burned_text import Burn, burn, write_series
from tests.data_registry.deid_corpus.generate import corpus
from tests.data_registry.test_deid_burned_in import phantom

KEY = bytes(range(32))
NAME = Burn("ZQXVWK ANNA", "DejaVuSans.ttf", 14, 1.0, "top left")
CAPTURE, ENHANCED_SR, DOSE_SR, PDF = (
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("7", "88.22", "88.67", "104.1")
)


def document(content: bytes = b"%PDF-1.4 nothing\n") -> bytes:
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = PDF, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Zqxvwk^Anna", "88213377", "DOC"
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = content + b"\0" * (len(content) & 1)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def report() -> bytes:
    return next(f.content for f in corpus(3, 2) if extra_of(sop_class(f.content)) == "reports")


def sop_class(content: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(content), force=True).get("SOPClassUID", ""))


@pytest.mark.parametrize(
    ("uid", "kind"),
    [
        (CAPTURE, "captures"), (CAPTURE + ".4", "captures"), (ENHANCED_SR, "reports"),
        (DOSE_SR, "reports"), (PDF, "documents"), ("1.2.840.10008.5.1.4.1.1.4", None),
        ("1.2.840.10008.5.1.4.1.1.77.1.4", None), ("1.2.840.10008.5.1.4.1.1.481.3", None),
        ("", None),
    ],
)  # fmt: skip
def test_kinds_by_storage_class(uid: str, kind: Extra | None) -> None:
    assert extra_of(uid) == kind


class TestHeader:
    @pytest.mark.parametrize("content", [report(), document()], ids=["report", "document"])
    def test_left_out_unless_asked_for(self, content: bytes) -> None:
        with pytest.raises(DataError, match=r"DATA-18.*no scans"):
            deidentify_dicom(content, KEY, PROFILES["tcia-mr"], extras=("captures",))

    def test_a_document_says_that_nobody_read_it(self) -> None:
        clean = deidentify_dicom(document(), KEY, PROFILES["tcia-mr"], extras=("documents",))
        dataset = pydicom.dcmread(io.BytesIO(clean.content))
        assert dataset.EncapsulatedDocument.startswith(b"%PDF-1.4 nothing")
        assert dataset.PatientIdentityRemoved == "NO"
        assert "document not read" in dataset.DeidentificationMethod[1]
        assert b"Zqxvwk" not in clean.content
        again = deidentify_dicom(clean.content, KEY, PROFILES["tcia-mr"], extras=("documents",))
        assert again.sealed
        with pytest.raises(DataError, match="DATA-18"):
            deidentify_dicom(clean.content, KEY, PROFILES["tcia-mr"])

    def test_a_document_inside_an_image(self) -> None:
        image = next(f.content for f in corpus(3, 1) if f.kind == "classic")
        dataset = pydicom.dcmread(io.BytesIO(image))
        dataset.EncapsulatedDocument = b"%PDF"
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset)
        with pytest.raises(DataError, match="DATA-10"):
            deidentify_dicom(buffer.getvalue(), KEY, PROFILES["tcia-mr"], extras=("documents",))


class TestCommand:
    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path: Path, key_file: Path) -> None:
        self.source, self.tmp, self.key_file = tmp_path / "in", tmp_path, key_file
        write_series(phantom(slices=2), self.source / "scan", "scan")
        write_series(phantom(slices=2), self.source / "capture", "capture", SOPClassUID=CAPTURE)
        (self.source / "report.dcm").write_bytes(report())
        (self.source / "letter.dcm").write_bytes(document())

    def run(self, *words: str) -> Counter[str]:
        out = self.tmp / "-".join(["out", *words]).replace("/", "")
        self.out = out
        main([str(self.source), str(out), "--key-file", str(self.key_file), "--jobs", "1", *words])
        lines = map(json.loads, (out / AUDIT).read_text().splitlines()[1:])
        return Counter(f"{line['status']} {line['code']}".strip() for line in lines)

    def test_left_out_and_counted(self) -> None:
        assert self.run("--strict") == {"done": 2, "left out DATA-18": 4}

    def test_reports_and_documents_on_request(self) -> None:
        assert self.run("--extras", "reports", "documents") == {"done": 4, "left out DATA-18": 2}
        assert verify([str(self.source), str(self.out), "--jobs", "1"]) == 0

    def test_a_document_that_names_the_patient_in_plain_text(self) -> None:
        (self.source / "letter.dcm").write_bytes(document(b"%PDF-1.4 Anna Zqxvwk, 88213377\n"))
        assert self.run("--extras", "documents")["quarantined DATA-11"] == 1

    def test_captures_are_read(self) -> None:
        pytest.importorskip("rapidocr")
        written = burn(
            phantom(slices=2), Burn("ZQXVWK ANNA", "DejaVuSans.ttf", 14, 1.0, "top left")
        )
        assert written is not None
        write_series(written, self.source / "shown", "shown", SOPClassUID=CAPTURE)
        told = self.run("--extras", "captures", "--pixels", "check")
        assert told == {"done": 4, "quarantined DATA-16": 2, "left out DATA-18": 2}

    def test_colour_captures(self) -> None:
        """Read like others; their text is not blanked, as no colour is known to be empty."""
        pytest.importorskip("rapidocr")
        written = burn(
            phantom(slices=1), Burn("ZQXVWK ANNA", "DejaVuSans.ttf", 14, 1.0, "top left")
        )
        assert written is not None
        for name, series in (("plain", phantom(slices=1)), ("shown", written)):
            (path,) = write_series(
                series, self.source / name, name, SOPClassUID=CAPTURE, PatientName="ZQXVWK^ANNA",
                SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
                BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0,
            )  # fmt: skip
            dataset = pydicom.dcmread(path)
            gray = (series[0] / series.max() * 255).astype(np.uint8)
            dataset.PixelData = np.repeat(gray[:, :, None], 3, axis=2).tobytes()
            dataset.save_as(path)
        told = self.run("--extras", "captures", "--pixels", "check")
        assert (told["done"], told["quarantined DATA-16"]) == (5, 1)
        told = self.run("--extras", "captures", "--pixels", "blank")
        assert (told["done"], told["quarantined DATA-10"]) == (5, 1)

    @pytest.mark.parametrize(
        "words",
        [
            ("--extras", "captures"),
            ("--extras", "documents", "--release", "public"),
            ("--blank-regions", "0,0,8,8"),
            ("--blank-regions", "0,0,8,8", "--pixels", "check"),
        ],
    )
    def test_contradictions(self, words: tuple[str, ...]) -> None:
        with pytest.raises(ConfigError, match="CONFIG-05"):
            self.run(*words)

    @pytest.mark.parametrize("region", ["0,0,8", "a,b,c,d", "8,0,0,8", "-1,0,8,8", "0,0,8,8,8"])
    def test_what_is_no_region(self, region: str) -> None:
        with pytest.raises(ConfigError, match="CONFIG-01"):
            self.run("--pixels", "blank", f"--blank-regions={region}")

    def test_another_scope_in_the_same_folder(self) -> None:
        self.run("--extras", "reports")
        words = [str(self.source), str(self.out), "--key-file", str(self.key_file)]
        with pytest.raises(ConfigError, match="another extras"):
            main(words)


def test_given_regions_are_blanked_in_every_image(tmp_path: Path, key_file: Path) -> None:
    """Text that the header does not tell goes where the user says that it stands."""
    pytest.importorskip("rapidocr")
    clean = phantom(size=256, slices=4)
    written = burn(clean, Burn("BRINKMANN WARD 7", "DejaVuSans.ttf", 12, 1.0, "top left"))
    assert written is not None
    write_series(written, tmp_path / "in", "shown")
    out = tmp_path / "out"
    words = [str(tmp_path / "in"), str(out), "--key-file", str(key_file), "--jobs", "1"]
    assert main([*words, "--pixels", "blank", "--blank-regions", "0,0,24,256"]) == 0
    paths = sorted(out.rglob("*.dcm"))
    assert len(paths) == 4
    for path in paths:
        dataset = pydicom.dcmread(path)
        source = written[int(dataset.InstanceNumber) - 1]
        assert (dataset.pixel_array[:24] == source.min()).all()
        np.testing.assert_array_equal(dataset.pixel_array[24:], source[24:])

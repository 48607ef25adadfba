"""De-identification of DICOM files: planted identifiers never survive, everything else does.

The generator below imports nothing from the package: it knows where identifiers live in real files,
not what the rules remove.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from core_mri.errors import CoreMRIError
from data_registry.deidentify import headers
from data_registry.deidentify.cli import main
from data_registry.deidentify.folder import AUDIT, deidentify_files, find_files

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
TECHNICAL: dict[str, object] = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
    "Modality": "MR",
    "BodyPartExamined": "KNEE",
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"],
    "MRAcquisitionType": "3D",
    "SliceThickness": "1.25",
    "RepetitionTime": "2300.0",
    "EchoTime": "2.98",
    "InversionTime": "900",
    "NumberOfAverages": "1",
    "ImagingFrequency": "123.258",
    "ImagedNucleus": "1H",
    "EchoNumbers": "1",
    "MagneticFieldStrength": "3",
    "SpacingBetweenSlices": "1.5",
    "NumberOfPhaseEncodingSteps": "255",
    "EchoTrainLength": "1",
    "PercentSampling": "100",
    "PixelBandwidth": "240",
    "ReceiveCoilName": "Body",
    "AcquisitionMatrix": [0, 256, 256, 0],
    "InPlanePhaseEncodingDirection": "ROW",
    "FlipAngle": "9",
    "SAR": "0.0458",
    "PatientPosition": "HFS",
    "SeriesNumber": "4",
    "AcquisitionNumber": "1",
    "InstanceNumber": "17",
    "ImagePositionPatient": ["-12.5", "-13.75", "8.1"],
    "ImageOrientationPatient": ["1", "0", "0", "0", "0.995", "-0.0998"],
    "SliceLocation": "8.1",
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelSpacing": ["0.9", "0.9"],
    "WindowCenter": "420",
    "WindowWidth": "900",
    "RescaleIntercept": "0",
    "RescaleSlope": "1",
    "Manufacturer": "SIEMENS",
    "ManufacturerModelName": "Skyra",
    "SequenceName": "*tfl3d1",
}


class Planter:
    """Makes unmistakable identifiers and remembers each one that it hands out."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        # All dates lie in one month, so that a date that was shifted is never another's token.
        self._month = (self._random.randint(1950, 2020), self._random.randint(1, 12))
        self.tokens: list[str] = []

    def word(self, length: int = 9) -> str:
        return self._note("Zq" + "".join(self._random.choices("bcdfghjkvwxyz", k=length)))

    def shout(self) -> str:
        return self._note("ZQ" + "".join(self._random.choices("BCDFGHJKVWXYZ", k=9)))

    def digits(self, length: int = 9) -> str:
        return self._note("".join(self._random.choices("3456789", k=length)))

    def date(self, form: str = "{:04d}{:02d}{:02d}") -> str:
        return self._note(form.format(*self._month, self._random.randint(1, 28)))

    def time(self) -> str:
        clock = [self._random.randint(*r) for r in ((5, 12), (10, 59), (10, 59), (100000, 999999))]
        return self._note("{:02d}{:02d}{:02d}.{:06d}".format(*clock))

    def uid(self) -> str:
        numbers = [str(self._random.randint(10**6, 10**7)) for _ in "abc"]
        return self._note("1.3.12.2.1107.5." + ".".join(numbers))

    def _note(self, token: str) -> str:
        self.tokens.append(token)
        return token


def people(plant: Planter) -> Dataset:
    """Attributes about people, places and visits, as they stand at any depth of real files."""
    item = Dataset()
    item.ReferringPhysicianName = f"{plant.word()}^{plant.word()}"
    item.OperatorsName = f"{plant.word()}^{plant.word()}"
    item.PerformingPhysicianName = plant.word()
    item.InstitutionName = f"{plant.word()} Hospital"
    item.InstitutionAddress = f"{plant.digits()} {plant.word()} Street"
    item.InstitutionalDepartmentName = plant.word()
    item.StationName = plant.word()
    item.PersonTelephoneNumbers = plant.digits(11)
    item.AccessionNumber = plant.digits()
    item.StudyID = plant.digits()
    item.AdmissionID = plant.digits()
    item.IssuerOfPatientID = plant.word()
    item.OtherPatientNames = f"{plant.word()}^{plant.word()}"
    item.OtherPatientIDs = plant.digits()
    item.OtherStudyNumbers = plant.digits(8)
    item.PatientAddress = plant.word()
    item.PatientComments = f"call {plant.word()} {plant.date('{:04d}-{:02d}-{:02d}')}"
    item.AdditionalPatientHistory = plant.word()
    item.PatientBirthDate = plant.date()
    item.PatientBirthTime = plant.time()
    item.EthnicGroup = plant.word()
    item.MilitaryRank = plant.word()
    item.DeviceSerialNumber = plant.digits()
    item.SoftwareVersions = plant.word()
    item.GantryID = plant.word()
    item.PerformedProcedureStepID = plant.digits()
    item.PerformedProcedureStepStartDate = plant.date()
    item.PerformedProcedureStepDescription = plant.word()
    item.RequestedProcedureDescription = plant.word()
    item.StudyDate, item.SeriesDate = plant.date(), plant.date()
    item.AcquisitionDateTime = plant.date() + "120000.000000+0100"
    item.StudyTime, item.ContentTime = plant.time(), plant.time()
    item.DateOfLastCalibration = plant.date()
    item.ImageComments = f"{plant.word()} {plant.date('{2:02d}.{1:02d}.{0:04d}')}"
    item.StudyDescription = f"knee {plant.word()}"
    item.SeriesDescription = f"t1_mprage {plant.word()} {plant.date('{2:02d}/{1:02d}/{0:04d}')} sag"
    item.ProtocolName = f"{plant.word()}_t1_{plant.digits()}"
    item.ContrastBolusAgent = f"10 ml Gadovist {plant.word()}"
    item.RetrieveURL = f"https://{plant.word()}.example"
    item.RequestingService = plant.word()
    item.StationAETitle = plant.word()
    item.ScheduledStationAETitle = plant.word()
    item.DeviceUID = plant.uid()
    item.IrradiationEventUID = plant.uid()
    item.CodeValue = plant.digits()
    item.CodingSchemeDesignator = "99LOCAL"
    item.CodeMeaning = plant.word()
    # An attribute of the standard under a wrong VR, and a tag that the standard does not know.
    item.add_new(0x00189073, "CS", plant.shout())
    item.add_new(0x00180FF1, "LO", plant.word())
    block = item.private_block(0x0029, f"CSA {plant.word()}", create=True)
    block.add_new(0x01, "LO", plant.word())
    block.add_new(0x02, "OB", f"<{plant.word()}>".encode("utf-16-le"))
    block.add_new(0x03, "UN", plant.word().encode())
    block.add_new(0x04, "PN", plant.word())
    block.add_new(0x05, "IS", plant.digits(8))
    inner = Dataset()
    inner.PatientName = plant.word()
    block.add_new(0x06, "SQ", Sequence([inner]))
    return item


SEQUENCES = (
    "SourceImageSequence",
    "ReferencedImageSequence",
    "MRTransmitCoilSequence",
    "DerivationImageSequence",
    "ContrastBolusAgentSequence",
    "FrameContentSequence",
    "RequestAttributesSequence",
    "ContentSequence",
    "OriginalAttributesSequence",
    "OperatorIdentificationSequence",
)


def planted_file(
    plant: Planter,
    syntax: str = ExplicitVRLittleEndian,
    *,
    sequences: tuple[str, ...] = ("SourceImageSequence",),
    changes: Callable[[Dataset], None] | None = None,
) -> bytes:
    """One MR image with identifiers in every place that the study of real leaks found."""
    dataset = people(plant)
    family = plant.shout()
    dataset.PatientName = f"{family}^{plant.word()}"
    dataset.PatientID = plant.digits()
    dataset.PatientSex, dataset.PatientAge = "F", "094Y"
    dataset.SOPClassUID, dataset.SOPInstanceUID = MR_IMAGE, plant.uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = plant.uid(), plant.uid()
    dataset.FrameOfReferenceUID = plant.uid()
    for keyword, value in TECHNICAL.items():
        setattr(dataset, keyword, value)
    # A code string that holds the patient's own name, in an attribute that is technical.
    dataset.ScanOptions = family
    for number, keyword in enumerate(sequences):
        deep = people(plant)
        deep.ReferencedSOPClassUID, deep.ReferencedSOPInstanceUID = MR_IMAGE, plant.uid()
        deep.EchoTime = "7.25"
        middle = people(plant)
        setattr(middle, SEQUENCES[(number + 1) % len(SEQUENCES)], Sequence([deep]))
        outer = people(plant)
        setattr(outer, SEQUENCES[(number + 2) % len(SEQUENCES)], Sequence([middle, Dataset()]))
        setattr(dataset, keyword, Sequence([outer]))
    for group in (0x6000, 0x6002):
        dataset.add_new((group, 0x0010), "US", 8)
        dataset.add_new((group, 0x0011), "US", 8)
        dataset.add_new((group, 0x1500), "LO", plant.word())
        dataset.add_new((group, 0x4000), "LT", plant.word())
        dataset.add_new((group, 0x3000), "OW", plant.word(6).encode())
    dataset.add_new((0x5000, 0x2500), "LO", plant.word())
    dataset.add_new((0xFFFC, 0xFFFC), "OB", plant.word(8).encode())
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PixelData = random.Random(7).randbytes(512)
    if changes:
        changes(dataset)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = MR_IMAGE
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.SourceApplicationEntityTitle = plant.word()
    meta.SendingApplicationEntityTitle = plant.word()
    meta.PrivateInformationCreatorUID = plant.uid()
    meta.PrivateInformation = plant.word(8).encode()
    dataset.file_meta = meta
    dataset.preamble = plant.word(120).encode()[:128].ljust(128, b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def found(tokens: list[str], content: bytes) -> list[str]:
    """The tokens that occur in `content`, as ASCII or as UTF-16."""
    return [t for t in tokens if t.encode() in content or t.encode("utf-16-le") in content]


def everything(folder: Path) -> bytes:
    """All bytes of all files, and their names."""
    parts = [
        str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return b"\n".join(parts)


def run(source: Path, out: Path, key: bytes = KEY) -> Counter[str]:
    return Counter(o.code or "done" for o in deidentify_files(find_files(source), out, key))


def outputs(out: Path) -> list[Path]:
    return sorted(out.rglob("*.dcm"))


def values(dataset: Dataset) -> Iterator[tuple[str, object]]:
    for element in dataset:
        if element.keyword == "IconImageSequence":  # a thumbnail, always removed
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from values(item)
        else:
            yield element.keyword, element.value


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(KEY.hex())
    return path


def packaged() -> list[Path]:
    """MR images that come inside installed packages."""
    files = []
    for name, patterns in (
        ("pydicom", ["data/test_files/*MR*.dcm", "data/test_files/*overlay*.dcm"]),
        ("pydicom", ["data/test_files/dicomdirtests/98892003/**/[0-9]*"]),
        ("nibabel", ["nicom/tests/data/*.dcm"]),
        ("data_store", ["data/MR*.dcm", "data/emri*.dcm"]),
    ):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            for pattern in patterns:
                files += sorted(Path(spec.origin).parent.glob(pattern))
    return [path for path in files if path.is_file()]


class TestNoPlantedIdentifierSurvives:
    @pytest.mark.parametrize(
        "syntax",
        [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian],
        ids=["explicit", "implicit", "big endian"],
    )
    @pytest.mark.parametrize("seed", range(2))
    def test_at_any_depth(self, source: Path, tmp_path: Path, syntax: str, seed: int) -> None:
        plant = Planter(seed)
        content = planted_file(plant, syntax, sequences=SEQUENCES)
        assert len(set(plant.tokens)) > 1500
        missing = set(plant.tokens) - set(found(plant.tokens, content))
        assert not missing, "the generator must really plant what it notes"
        (source / f"{plant.word()}.dcm").write_bytes(content)
        assert run(source, tmp_path / "out") == {"done": 1}
        assert found(plant.tokens, everything(tmp_path / "out")) == []

    def test_of_packaged_files(self) -> None:
        """Own names, numbers, dates, times, UIDs, places; one names its maker as the place."""
        searched = 0
        for path in packaged():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    original = pydicom.dcmread(path)
                    clean = headers.deidentify_dataset(original, KEY)
                except CoreMRIError:
                    continue
                written = io.BytesIO()
                pydicom.dcmwrite(written, clean, enforce_file_format=True)
                identifiers = {
                    part
                    for element in original.iterall()
                    if element.VR in ("PN", "DA", "TM", "UI", "AE")
                    or "ID" in element.keyword
                    or "Institution" in element.keyword
                    for value in (element.value if element.VM > 1 else [element.value])
                    for part in str(value or "").replace("^", " ").split()
                    if len(part) > 5 and not part.startswith("1.2.840.10008.")
                } - set(re.split(r"\W|_", str(original.get("Manufacturer", ""))))
            searched += len(identifiers)
            assert found(sorted(identifiers), written.getvalue()) == [], path.name
        assert searched > 300

    def test_audit_holds_no_values(self, source: Path, tmp_path: Path) -> None:
        plant = Planter(1)
        (source / "a.dcm").write_bytes(planted_file(plant))
        run(source, tmp_path / "out")
        lines = [json.loads(line) for line in (tmp_path / "out" / AUDIT).read_text().splitlines()]
        assert set(lines[1]) == {"file", "stamp", "status", "code", "output", "counts"}
        assert set(lines[1]["counts"]) == {"kept", "replaced", "removed"}
        assert lines[1]["counts"]["removed"] > 100
        assert lines[0]["version"]

    def test_nothing_reaches_the_log(
        self, source: Path, tmp_path: Path, key_file: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        plant = Planter(2)
        content = planted_file(plant)
        (source / f"{plant.word()}.dcm").write_bytes(content)
        (source / f"{plant.word()}.dcm").write_bytes(content[:-300])
        assert main([str(source), str(tmp_path / "out"), "--key-file", str(key_file)]) == 0
        captured = capfd.readouterr()
        assert found(plant.tokens, (captured.out + captured.err).encode()) == []


def _let_all_through(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(headers, "_allowed", lambda *_: True)
    patch.setattr(headers, "_known_vr", lambda *_: True)


def _keep_vr(vr: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(headers.ACTIONS, vr, lambda field: field.element.value)


def _rules(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        changed = dataclasses.replace(headers.rules(), **changes)
        patch.setattr(headers, "rules", lambda: changed)
        patch.setattr(headers, "_allowed", headers._allowed.__wrapped__)  # without its cache

    return mutate


def _leave_items(patch: pytest.MonkeyPatch) -> None:
    clean = headers._clean

    def only_the_top(dataset: Dataset, *rest: object) -> Dataset:
        return clean(dataset, *rest) if len(rest) == 2 else dataset  # type: ignore[arg-type]

    patch.setattr(headers, "_clean", only_the_top)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "all tags are let through": _let_all_through,
    "identifiers among numbers stay": _rules(denied=frozenset()),
    "items are not cleaned": _leave_items,
    "wrong VRs are believed": lambda patch: patch.setattr(headers, "_known_vr", lambda *_: True),
    "descriptions are not cleaned": lambda patch: patch.setattr(
        headers, "clean_text", lambda text, _: text
    ),
    "own names are not known": lambda patch: patch.setattr(
        headers, "name_words", lambda _: frozenset()
    ),
    "local codes are published ones": _rules(coding_schemes=frozenset({"99LOCAL"})),
    "UIDs stay": _keep_vr("UI"),
    "dates stay": _keep_vr("DA"),
    "date-times stay": _keep_vr("DT"),
    "long strings stay": _keep_vr("LO"),
    "short strings stay": _keep_vr("SH"),
    "long texts stay": _keep_vr("LT"),
}


class TestTheSearchCanFail:
    @pytest.mark.parametrize("name", MUTATIONS)
    def test_without_one_rule(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        plant = Planter(3)
        (source / "a.dcm").write_bytes(planted_file(plant, sequences=SEQUENCES))
        MUTATIONS[name](monkeypatch)
        run(source, tmp_path / "out")
        assert found(plant.tokens, everything(tmp_path / "out")), "the leak was not seen"

    def test_without_new_preamble_and_meta(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plant = Planter(3)
        path = source / "a.dcm"
        path.write_bytes(planted_file(plant))
        original = pydicom.dcmread(path)
        monkeypatch.setattr(headers, "_file_meta", lambda *_: original.file_meta)
        run(source, tmp_path / "out")
        assert found(plant.tokens, everything(tmp_path / "out"))


class TestKept:
    @pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    def test_technical_attributes(self, syntax: str) -> None:
        original = pydicom.dcmread(io.BytesIO(planted_file(Planter(5), syntax)))
        clean = headers.deidentify_dataset(original, KEY)
        for keyword in TECHNICAL:
            assert clean[keyword].value == original[keyword].value, keyword
        assert clean.PixelData == original.PixelData
        assert clean.file_meta.TransferSyntaxUID == syntax
        assert clean.preamble == bytes(128)

    def test_technical_attributes_of_items(self) -> None:
        content = planted_file(Planter(5), sequences=SEQUENCES)
        clean = headers.deidentify_dataset(pydicom.dcmread(io.BytesIO(content)), KEY)
        kept = [value for keyword, value in values(clean) if keyword == "EchoTime"]
        assert kept.count(7.25) == 4

    def test_text_in_place_of_a_number_goes(self) -> None:
        content = planted_file(Planter(5))
        forged = content.replace(b"DS\x06\x002300.0", b"DS\x06\x00Smith ")
        assert forged != content
        clean = headers.deidentify_dataset(pydicom.dcmread(io.BytesIO(forged)), KEY)
        assert "RepetitionTime" not in clean

    def test_words_of_descriptions(self) -> None:
        original = pydicom.dcmread(io.BytesIO(planted_file(Planter(5))))
        clean = headers.deidentify_dataset(original, KEY)
        assert clean.SeriesDescription == "t1 mprage sag"
        assert clean.StudyDescription == "knee"
        assert clean.ContrastBolusAgent == "ml gadovist"

    @pytest.mark.parametrize("path", packaged(), ids=lambda p: p.name)
    def test_packaged_files(self, path: Path, tmp_path: Path) -> None:
        """Pixel bytes, geometry and timing of real files, nested functional groups included."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = next(iter(deidentify_files([path], tmp_path / "out", KEY)))
            if "truncated" in path.name or "too_short" in path.name:
                assert outcome.code in ("DATA-02", "DATA-10")
                return
            original = pydicom.dcmread(path)
            if "StudyInstanceUID" not in original or "PixelData" not in original:
                assert outcome.status == "quarantined"
                return
            clean = pydicom.dcmread(tmp_path / "out" / outcome.output)
            assert clean.PixelData == original.PixelData
            assert clean.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
            wanted = set(TECHNICAL) - {
                "Manufacturer",
                "ManufacturerModelName",
                "ReceiveCoilName",
                "SequenceName",
                "ImageType",
            }
            kept = Counter(str(v) for v in values(clean) if v[0] in wanted)
            assert kept == Counter(str(v) for v in values(original) if v[0] in wanted)

    def test_input_is_not_touched(self, source: Path, tmp_path: Path) -> None:
        path = source / "a.dcm"
        path.write_bytes(planted_file(Planter(1)))
        before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
        original = pydicom.dcmread(path)
        unchanged = str(original)
        headers.deidentify_dataset(original, KEY)
        run(source, tmp_path / "out")
        assert str(original) == unchanged
        assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before


class TestReplaced:
    def cleaned(self, key: bytes = KEY, seed: int = 5) -> tuple[Dataset, Dataset]:
        original = pydicom.dcmread(io.BytesIO(planted_file(Planter(seed))))
        return original, headers.deidentify_dataset(original, key)

    def test_says_what_it_is_and_no_more(self) -> None:
        _, clean = self.cleaned()
        assert clean.PatientIdentityRemoved == "YES"
        assert "not a ps3.15 profile" in " ".join(clean.DeidentificationMethod).lower()
        assert all(len(value) <= 64 for value in clean.DeidentificationMethod)
        assert "DeidentificationMethodCodeSequence" not in clean
        assert clean.LongitudinalTemporalInformationModified == "MODIFIED"

    def test_patient(self) -> None:
        _, clean = self.cleaned()
        assert clean.PatientName == clean.PatientID
        assert clean.PatientAge == "090Y"
        assert clean.PatientBirthDate == ""

    def test_same_key_same_file_other_key_other_ids(self) -> None:
        _, first = self.cleaned()
        _, again = self.cleaned()
        _, other = self.cleaned(OTHER)
        assert first == again
        for keyword in ("PatientID", "StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            assert first[keyword].value != other[keyword].value

    def test_intervals_of_a_patient_stay(self) -> None:
        from datetime import datetime

        def day(text: str) -> datetime:
            return datetime.strptime(text[:8], "%Y%m%d")

        original, clean = self.cleaned()
        shifts = {
            day(clean[k].value) - day(original[k].value)
            for k in ("StudyDate", "SeriesDate", "AcquisitionDateTime", "DateOfLastCalibration")
        }
        assert len(shifts) == 1
        assert -3650 <= shifts.pop().days <= -1
        assert len(clean.AcquisitionDateTime) == 8

    def test_references_resolve(self, source: Path, tmp_path: Path) -> None:
        plant = Planter(8)
        (source / "a.dcm").write_bytes(planted_file(plant))
        target = pydicom.dcmread(source / "a.dcm")

        def refer(dataset: Dataset) -> None:
            item = Dataset()
            item.ReferencedSOPClassUID = MR_IMAGE
            item.ReferencedSOPInstanceUID = target.SOPInstanceUID
            dataset.SourceImageSequence = Sequence([item])
            dataset.PatientID = target.PatientID
            dataset.IssuerOfPatientID = target.IssuerOfPatientID
            dataset.StudyInstanceUID = target.StudyInstanceUID

        (source / "b.dcm").write_bytes(planted_file(plant, changes=refer))
        run(source, tmp_path / "out")
        clean = [pydicom.dcmread(path) for path in outputs(tmp_path / "out")]
        (pointing,) = [
            d.SourceImageSequence[0].ReferencedSOPInstanceUID
            for d in clean
            if len(d.SourceImageSequence[0]) == 2
        ]
        assert pointing in [d.SOPInstanceUID for d in clean]
        assert len({d.PatientID for d in clean}) == len({d.StudyInstanceUID for d in clean}) == 1

    def test_names_of_files_are_their_uids(self, source: Path, tmp_path: Path) -> None:
        (source / "a.dcm").write_bytes(planted_file(Planter(1)))
        run(source, tmp_path / "out")
        (path,) = outputs(tmp_path / "out")
        clean = pydicom.dcmread(path)
        assert path.relative_to(tmp_path / "out").parts == (
            clean.PatientID,
            clean.StudyInstanceUID,
            clean.SeriesInstanceUID,
            f"{clean.SOPInstanceUID}.dcm",
        )
        assert clean.file_meta.MediaStorageSOPInstanceUID == clean.SOPInstanceUID

    def test_per_frame_items_keep_their_number(self) -> None:
        def enhance(dataset: Dataset) -> None:
            frames = []
            for number in range(3):
                frame = Dataset()
                if number != 1:
                    frame.FrameContentSequence = Sequence([Dataset()])
                    frame.FrameContentSequence[0].FrameAcquisitionNumber = number
                frames.append(frame)
            dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)

        content = planted_file(Planter(1), changes=enhance)
        clean = headers.deidentify_dataset(pydicom.dcmread(io.BytesIO(content)), KEY)
        assert len(clean.PerFrameFunctionalGroupsSequence) == 3


class TestRunningAgain:
    def snapshot(self, out: Path) -> dict[Path, tuple[bytes, int]]:
        files = [path for path in out.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    def test_adds_nothing(self, source: Path, tmp_path: Path) -> None:
        plant = Planter(1)
        for name in "ab":
            (source / f"{name}.dcm").write_bytes(planted_file(plant))
        (source / "notes.txt").write_text("hello")
        first = run(source, tmp_path / "out")
        before = self.snapshot(tmp_path / "out")
        assert run(source, tmp_path / "out") == first == {"done": 2, "DATA-03": 1}
        assert self.snapshot(tmp_path / "out") == before

    def test_completes_what_was_cut_off(self, source: Path, tmp_path: Path) -> None:
        plant = Planter(1)
        for name in "abc":
            (source / f"{name}.dcm").write_bytes(planted_file(plant))
        out = tmp_path / "out"
        run(source, out)
        whole = {path: content for path, (content, _) in self.snapshot(out).items()}
        lost = outputs(out)[1]
        lost.unlink()
        audit = out / AUDIT
        audit.write_text(audit.read_text()[:-40])  # killed in the middle of a line
        assert run(source, out) == {"done": 3}
        again = {path: content for path, (content, _) in self.snapshot(out).items()}
        assert set(again) == set(whole)
        assert all(again[path] == whole[path] for path in outputs(out))
        assert run(source, out) == {"done": 3}

    def test_a_changed_file_is_done_again(self, source: Path, tmp_path: Path) -> None:
        def brighter(dataset: Dataset) -> None:
            dataset.PixelData = b"\x01" * 512
            dataset.WindowCenter = "421.25"

        (source / "a.dcm").write_bytes(planted_file(Planter(1)))
        run(source, tmp_path / "out")
        (source / "a.dcm").write_bytes(planted_file(Planter(1), changes=brighter))
        assert run(source, tmp_path / "out") == {"done": 1}
        (path,) = outputs(tmp_path / "out")
        assert pydicom.dcmread(path).WindowCenter == 421.25

    def test_two_images_under_one_uid_are_not_merged(self, source: Path, tmp_path: Path) -> None:
        def other_pixels(dataset: Dataset) -> None:
            dataset.PixelData = b"\x01" * 512

        (source / "a.dcm").write_bytes(planted_file(Planter(1)))
        (source / "b.dcm").write_bytes(planted_file(Planter(1), changes=other_pixels))
        (source / "copy.dcm").write_bytes(planted_file(Planter(1)))
        assert run(source, tmp_path / "out") == {"done": 2, "DATA-02": 1}
        assert len(outputs(tmp_path / "out")) == 1


class TestQuarantine:
    def code(self, source: Path, out: Path, content: bytes) -> str:
        (source / "x").write_bytes(content)
        ((code, _),) = run(source, out).items()
        assert not outputs(out)
        assert not list(out.rglob("*.partial"))
        return code

    def test_no_dicom(self, source: Path, tmp_path: Path) -> None:
        assert self.code(source, tmp_path / "out", b"hello world " * 40) == "DATA-03"

    def test_empty(self, source: Path, tmp_path: Path) -> None:
        assert self.code(source, tmp_path / "out", b"") == "DATA-03"

    @pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 0.99])
    def test_truncated(self, source: Path, tmp_path: Path, keep: float) -> None:
        content = planted_file(Planter(1))
        code = self.code(source, tmp_path / "out", content[: int(len(content) * keep)])
        assert code in ("DATA-02", "DATA-10")

    def test_no_pixels(self, source: Path, tmp_path: Path) -> None:
        content = planted_file(Planter(1), changes=lambda d: d.__delattr__("PixelData"))
        assert self.code(source, tmp_path / "out", content) == "DATA-10"

    def test_text_in_the_pixels(self, source: Path, tmp_path: Path) -> None:
        content = planted_file(
            Planter(1), changes=lambda d: setattr(d, "BurnedInAnnotation", "YES")
        )
        assert self.code(source, tmp_path / "out", content) == "DATA-11"

    def test_secondary_capture(self, source: Path, tmp_path: Path) -> None:
        capture = "1.2.840.10008.5.1.4.1.1.7"
        content = planted_file(Planter(1), changes=lambda d: setattr(d, "SOPClassUID", capture))
        assert self.code(source, tmp_path / "out", content) == "DATA-11"

    def test_without_uids(self, source: Path, tmp_path: Path) -> None:
        content = planted_file(Planter(1), changes=lambda d: d.__delattr__("StudyInstanceUID"))
        assert self.code(source, tmp_path / "out", content) == "DATA-02"


class TestCommand:
    def test_json(
        self, source: Path, tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (source / "a.dcm").write_bytes(planted_file(Planter(1)))
        (source / "b.txt").write_text("hello")
        words = [str(source), str(tmp_path / "out"), "--key-file", str(key_file), "--json"]
        assert main(words) == 0
        counts = json.loads(capsys.readouterr().out)
        expected = {"files": 2, "deidentified": 1, "quarantined": {"DATA-03": 1}}
        assert counts == {**expected, "from_earlier_runs": 0}
        assert main([*words, "--strict"]) == 1

    def test_nothing_readable_is_1(self, source: Path, tmp_path: Path, key_file: Path) -> None:
        (source / "b.txt").write_text("hello")
        assert main([str(source), str(tmp_path / "out"), "--key-file", str(key_file)]) == 1

    def test_one_file(self, source: Path, tmp_path: Path, key_file: Path) -> None:
        path = source / "a.dcm"
        path.write_bytes(planted_file(Planter(1)))
        assert main([str(path), str(tmp_path / "out"), "--key-file", str(key_file)]) == 0
        assert len(outputs(tmp_path / "out")) == 1

    def refused(self, *words: object) -> str:
        with pytest.raises(CoreMRIError) as caught:
            main([str(word) for word in words])
        return caught.value.code

    def test_refusals(self, source: Path, tmp_path: Path, key_file: Path) -> None:
        (source / "a.dcm").write_bytes(planted_file(Planter(1)))
        empty, full = tmp_path / "empty", tmp_path / "full"
        empty.mkdir()
        full.mkdir()
        (full / "thesis.txt").write_text("mine")
        key = ("--key-file", key_file)
        assert self.refused(empty, tmp_path / "o", *key) == "DATA-01"
        assert self.refused(tmp_path / "none", tmp_path / "o", *key) == "DATA-01"
        assert self.refused(source, tmp_path / "o", "--key-file", tmp_path / "no") == "CONFIG-02"
        assert self.refused(source, full, *key) == "CONFIG-03"
        assert self.refused(source, source / "out", *key) == "CONFIG-05"
        assert self.refused(source, source, *key) == "CONFIG-05"
        (full / AUDIT).write_text("not ours\n")
        assert self.refused(source, full, *key) == "CONFIG-03"
        assert sorted(path.name for path in full.iterdir()) == [AUDIT, "thesis.txt"]

    def test_another_key_is_refused(self, source: Path, tmp_path: Path, key_file: Path) -> None:
        (source / "a.dcm").write_bytes(planted_file(Planter(1)))
        run(source, tmp_path / "out", OTHER)
        assert self.refused(source, tmp_path / "out", "--key-file", key_file) == "CONFIG-04"

    def test_full_disk(
        self, source: Path, tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (source / "a.dcm").write_bytes(planted_file(Planter(1)))

        def full(self: Path, content: bytes) -> int:
            with self.open("wb") as stream:
                stream.write(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            assert self.refused(source, tmp_path / "out", "--key-file", key_file) == "DATA-07"
        assert not outputs(tmp_path / "out")
        assert not list((tmp_path / "out").rglob("*.partial"))
        assert run(source, tmp_path / "out") == {"done": 1}

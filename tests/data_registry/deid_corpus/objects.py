"""Objects of many kinds with identifiers in every place that studies of real leaks found."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.data_registry.deid_corpus.attributes import (
    CLASSIC,
    MR_IMAGE,
    VENDOR_TEXTS,
    add_people,
    add_vendor,
)
from tests.data_registry.deid_corpus.planter import Expectation, Patient, Planter

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
DIRECTORY = "1.2.840.10008.1.3.10"

SEQUENCES = (
    "SourceImageSequence", "ReferencedImageSequence", "MRTransmitCoilSequence",
    "DerivationImageSequence", "ContrastBolusAgentSequence", "FrameContentSequence",
    "RequestAttributesSequence", "OriginalAttributesSequence", "OperatorIdentificationSequence",
    "PatientOrientationCodeSequence", "PerformedProtocolCodeSequence",
)  # fmt: skip
STAYING = {
    "SourceImageSequence", "ReferencedImageSequence", "MRTransmitCoilSequence",
    "DerivationImageSequence", "FrameContentSequence",
}  # fmt: skip
"""Sequences that no row of Table E.1-1 removes; the others go with all that is in them."""

CHARACTER_SETS = {
    "ascii": None, "latin": "ISO_IR 100", "cyrillic": "ISO_IR 144", "arabic": "ISO_IR 127",
    "greek": "ISO_IR 126", "korean": ["", "ISO 2022 IR 149"], "japanese": ["", "ISO 2022 IR 87"],
}  # fmt: skip
SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless,
)  # fmt: skip
_PER_SLICE = {"SOPInstanceUID", "ImagePositionPatient", "SliceLocation", "ContentTime"}
VENDORS = tuple(VENDOR_TEXTS)


@dataclass(frozen=True)
class Planted:
    """One file of the corpus.

    Args:
        name: Of the file; it names the patient, as in real archives.
        kind: Of the object.
        content: Its bytes.
        number: Instance Number, unique in the corpus, to find the output.
        tokens: What must be in no byte of any output.
        expected: Checks.
        pixels: Bytes of its pixel data.
        output: Whether it must have an output.
    """

    name: str
    kind: str
    content: bytes
    number: int
    tokens: list[str]
    expected: list[Expectation]
    pixels: bytes
    output: bool = True


class Study:
    """The files of one patient: one study, whose identifiers they share."""

    def __init__(self, plant: Planter, patient: Patient, number: int) -> None:
        self.plant, self.patient, self.number = plant, patient, number
        plant.begin_file()
        self.study, self.frame, self.image = plant.uid(), plant.uid(), plant.uid()

    def routine(self, size: int, slices: int) -> list[Planted]:
        """One series as a scanner writes it: the slices share all but position, number and times.

        Args:
            size: Rows and columns.
            slices: How many.
        """
        plant, files = self.plant, []
        csa = b"SV10\4\3\2\1" + f"tPatientName {plant.word()}\0".encode() + bytes(60_000)

        def build(dataset: Dataset) -> None:
            self._technical(dataset)
            add_vendor(dataset, plant, "siemens")
            dataset.private_block(0x0029, "SIEMENS CSA HEADER").add_new(0x10, "OB", csa)
            dataset.ReferencedImageSequence = Sequence([self._reference() for _ in range(3)])
            dataset.Rows = dataset.Columns = size
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
            dataset.PixelRepresentation = 0
            dataset.PixelData = plant.random.randbytes(size * size * 2)
            dataset["PixelData"].VR = "OW"

        first = self._file("routine", ExplicitVRLittleEndian, build, rich=False)
        template = pydicom.dcmread(io.BytesIO(first.content))
        for index in range(slices):
            self.number += 1
            template.InstanceNumber = str(self.number)
            template.SOPInstanceUID = plant.uid()
            template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
            template.ImagePositionPatient = ["-12.5", "-13.75", f"{index * 1.5:.2f}"]
            template.SliceLocation = f"{index * 1.5:.2f}"
            template.ContentTime = plant.time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                buffer = io.BytesIO()
                pydicom.dcmwrite(buffer, template)
            expected = [e for e in first.expected if e.path[0] not in _PER_SLICE]
            files.append(
                replace(
                    first,
                    name=f"{first.name}_{index}.dcm",
                    content=buffer.getvalue(),
                    number=self.number,
                    tokens=[*first.tokens, str(template.SOPInstanceUID)],
                    expected=expected,
                )
            )
        return files

    def classic(self, syntax: str, vendor: str) -> Planted:
        """An MR image with sequences three deep, overlays, curves and private data."""
        return self._file("classic", syntax, lambda ds: self._classic(ds, vendor))

    def enhanced(self, syntax: str, vendor: str) -> Planted:
        """A multi-frame MR image with functional groups."""
        return self._file("enhanced", syntax, lambda ds: self._enhanced(ds, vendor))

    def mosaic(self, syntax: str) -> Planted:
        """A Siemens mosaic: safe private count, CSA header with names."""
        return self._file("mosaic", syntax, self._mosaic)

    def segmentation(self) -> Planted:
        """A binary segmentation that refers to the image."""
        return self._file("segmentation", ExplicitVRLittleEndian, self._segmentation)

    def report(self) -> Planted:
        """A structured report: names, dates, identifiers and text in its content."""
        return self._file("report", ExplicitVRLittleEndian, self._report)

    def burned_in(self) -> Planted:
        """An image that says that it shows text: without pixel work there must be no output."""

        def build(dataset: Dataset) -> None:
            self._classic(dataset, "siemens")
            dataset.BurnedInAnnotation = "YES"
            self.plant.expected = [Expectation("pixels_hidden", ("PixelData",))]

        return self._file("burned in", ExplicitVRLittleEndian, build, output=False)

    def directory(self) -> Planted:
        """A DICOMDIR: it repeats the patient's name and the names of the files."""
        self.number += 1
        self.plant.begin_file()
        dataset, record = Dataset(), Dataset()
        dataset.FileSetID = self.plant.shout()[:16]
        record.DirectoryRecordType, record.RecordInUseFlag = "PATIENT", 0xFFFF
        record.OffsetOfTheNextDirectoryRecord = 0
        record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
        record.PatientName = f"{self.patient.family}^{self.patient.given}"
        record.PatientID = self.patient.patient_id
        dataset.DirectoryRecordSequence = Sequence([record])
        dataset.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
        dataset.SOPClassUID, dataset.SOPInstanceUID = DIRECTORY, self.plant.uid()
        content = _write(dataset, ExplicitVRLittleEndian, self.plant)
        return Planted(
            "DICOMDIR", "directory", content, self.number, list(self.plant.tokens), [], b"", False
        )

    def _file(
        self,
        kind: str,
        syntax: str,
        build: Callable[[Dataset], None],
        *,
        output: bool = True,
        rich: bool = True,
    ) -> Planted:
        plant, patient = self.plant, self.patient
        self.number += 1
        plant.begin_file()
        plant.tokens += [self.study, self.frame]
        dataset = Dataset()
        charset = CHARACTER_SETS[patient.script]
        if charset is not None:
            dataset.SpecificCharacterSet = charset
        add_people(dataset, plant, (), rich=rich)
        dataset.PatientName = f"{patient.family}^{patient.given}"
        if patient.script not in ("ascii",):
            dataset.PatientBirthName = plant.foreign()
        dataset.PatientID = patient.patient_id
        dataset.IssuerOfPatientID = f"issuer{patient.number}"
        dataset.PatientAge = "094Y"
        dataset.InstanceNumber = str(self.number)
        for keyword, uid in (
            ("SOPInstanceUID", plant.uid()),
            ("SeriesInstanceUID", plant.uid()),
            ("StudyInstanceUID", self.study),
            ("FrameOfReferenceUID", self.frame),
        ):
            setattr(dataset, keyword, uid)
            plant.expect("uid_changed", (keyword,), uid)
            plant.expect("uid_consistent", (keyword,), uid)
        dataset.SOPClassUID = MR_IMAGE
        plant.expect("text_notnull", ("PatientName",))
        plant.expect("text_notnull", ("PatientID",))
        plant.expect("text_removed", ("PatientName",), patient.family)
        plant.expect("patid_consistent", ("PatientID",), patient.patient_id)
        plant.expect("text_retained", ("PatientAge",), "090Y")
        build(dataset)
        pixels = dataset.get("PixelData", b"")
        pixels = bytes(pixels)
        if syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless) and pixels:
            frames = int(dataset.get("NumberOfFrames", 1))
            dataset.PixelData = encapsulate([_compressed(syntax)] * frames)
            dataset["PixelData"].VR = "OB"
            pixels = bytes(dataset.PixelData)
        if pixels and output:
            plant.expect("pixels_retained", ("PixelData",))
        content = _write(dataset, syntax, plant)
        name = f"{patient.family}_{patient.given}_{self.number}.dcm"
        return Planted(
            name,
            kind,
            content,
            self.number,
            list(plant.tokens),
            list(plant.expected),
            pixels,
            output,
        )

    def _technical(self, dataset: Dataset) -> None:
        for keyword, value in CLASSIC.items():
            setattr(dataset, keyword, value)
            self.plant.expect("tag_retained", (keyword,))
            self.plant.expect("text_retained", (keyword,), _text(dataset[keyword].value))

    def _image(self, dataset: Dataset, frames: int = 1) -> None:
        dataset.Rows = dataset.Columns = 64
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation = 0
        dataset.PixelData = self.plant.random.randbytes(64 * 64 * 2 * frames)
        dataset["PixelData"].VR = "OW"

    def _classic(self, dataset: Dataset, vendor: str) -> None:
        plant = self.plant
        self._technical(dataset)
        add_vendor(dataset, plant, vendor)
        for number, keyword in enumerate(plant.random.sample(SEQUENCES, k=3)):
            self._nested(dataset, keyword, number)
        references = dataset.get("ReferencedImageSequence") or Sequence()
        references.append(self._reference())
        dataset.ReferencedImageSequence = references
        place = "ReferencedImageSequence", len(references) - 1, "ReferencedSOPInstanceUID"
        plant.expect("uid_consistent", place, self.image)
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator = "T-15710", "SRT"
        code.CodeMeaning = "Knee joint"
        own = Dataset()
        own.CodeValue, own.CodingSchemeDesignator = plant.digits(), "99HOSPITAL"
        own.CodeMeaning = f"{plant.word()} knee"
        code.AnatomicRegionModifierSequence = Sequence([own])
        dataset.AnatomicRegionSequence = Sequence([code])
        for keyword, value in (("CodeValue", "T-15710"), ("CodeMeaning", "Knee joint")):
            plant.expect("text_retained", ("AnatomicRegionSequence", 0, keyword), value)
        local = Dataset()
        local.CodeValue, local.CodingSchemeDesignator = plant.digits(), "99LOCAL"
        local.CodeMeaning = plant.word()
        protocols = dataset.get("PerformedProtocolCodeSequence") or Sequence()
        protocols.append(local)
        dataset.PerformedProtocolCodeSequence = protocols
        self._graphics(dataset)
        self._image(dataset)

    def _nested(self, dataset: Dataset, keyword: str, number: int) -> None:
        """Sequences in sequences; the innermost, at depth three, holds all that the top holds."""
        plant = self.plant
        second = SEQUENCES[(number + 3) % len(SEQUENCES)]
        third = SEQUENCES[(number + 5) % len(SEQUENCES)]
        stays = keyword in STAYING
        count = len(plant.expected)
        deep, middle, outer = Dataset(), Dataset(), Dataset()
        path = (keyword, 0, second, 0, third, 0)
        add_people(deep, plant, path, rich=True)
        add_people(middle, plant, path[:4], rich=False)
        add_people(outer, plant, path[:2], rich=False)
        deep.PatientName, deep.PatientID = plant.name(), plant.digits()
        deep.EchoTime = "7.25"
        if not stays or second not in STAYING or third not in STAYING:
            # It may go with its sequence: only that nothing is left of it can be expected.
            plant.expected = plant.expected[:count]
        else:
            plant.expect("text_retained", (*path, "EchoTime"), "7.25")
        setattr(middle, third, Sequence([deep]))
        setattr(outer, second, Sequence([middle, Dataset()]))
        setattr(dataset, keyword, Sequence([outer]))

    def _reference(self) -> Dataset:
        item = Dataset()
        item.ReferencedSOPClassUID = MR_IMAGE
        item.ReferencedSOPInstanceUID = self.image
        self.plant.tokens.append(self.image)
        return item

    def _graphics(self, dataset: Dataset) -> None:
        plant = self.plant
        for group in (0x6000, 0x6002):
            dataset.add_new((group, 0x0010), "US", 8)
            dataset.add_new((group, 0x0011), "US", 8)
            dataset.add_new((group, 0x4000), "LT", plant.word())
            dataset.add_new((group, 0x3000), "OW", plant.word(5).encode().ljust(8, b"\0"))
        dataset.add_new((0x5000, 0x2500), "LO", plant.word())
        dataset.add_new((0xFFFC, 0xFFFC), "OB", plant.word(8).encode().ljust(16, b"\0"))

    def _enhanced(self, dataset: Dataset, vendor: str) -> None:
        plant = self.plant
        self._technical(dataset)
        add_vendor(dataset, plant, vendor)
        dataset.SOPClassUID = ENHANCED_MR
        frames = 4
        dataset.NumberOfFrames = frames
        shared = Dataset()
        timing = Dataset()
        timing.RepetitionTime, timing.FlipAngle = "8.5", "12"
        shared.MRTimingAndRelatedParametersSequence = Sequence([timing])
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
        place: tuple[str | int, ...]
        place = ("SharedFunctionalGroupsSequence", 0, "MRTimingAndRelatedParametersSequence", 0)
        plant.expect("text_retained", (*place, "RepetitionTime"), "8.5")
        groups = []
        for number in range(frames):
            place = ("PerFrameFunctionalGroupsSequence", number)
            frame, content, echo, diffusion = Dataset(), Dataset(), Dataset(), Dataset()
            position, gradient = Dataset(), Dataset()
            content.FrameAcquisitionDateTime = plant.date() + "101112.000000"
            content.FrameComments = f"{plant.word()} axial"
            content.StackID, content.InStackPositionNumber = "1", number + 1
            echo.EffectiveEchoTime = 30.0 + number
            diffusion.DiffusionBValue = 50.0 * number
            gradient.DiffusionGradientOrientation = [0.6, 0.8, 0.0]
            diffusion.DiffusionGradientDirectionSequence = Sequence([gradient])
            position.ImagePositionPatient = ["0", "0", str(number * 2.5)]
            frame.FrameContentSequence = Sequence([content])
            frame.MREchoSequence = Sequence([echo])
            frame.MRDiffusionSequence = Sequence([diffusion])
            frame.PlanePositionSequence = Sequence([position])
            groups.append(frame)
            date = content.FrameAcquisitionDateTime[:8]
            here = (*place, "FrameContentSequence", 0)
            plant.expect("date_shifted", (*here, "FrameAcquisitionDateTime"), date)
            plant.expect("text_retained", (*here, "FrameComments"), "axial")
            plant.expect("text_retained", (*here, "InStackPositionNumber"), str(number + 1))
            for path, value in (
                (("MREchoSequence", 0, "EffectiveEchoTime"), echo.EffectiveEchoTime),
                (("MRDiffusionSequence", 0, "DiffusionBValue"), diffusion.DiffusionBValue),
                (
                    ("MRDiffusionSequence", 0, "DiffusionGradientDirectionSequence", 0,
                     "DiffusionGradientOrientation"),
                    [0.6, 0.8, 0.0],
                ),
                (
                    ("PlanePositionSequence", 0, "ImagePositionPatient"),
                    position.ImagePositionPatient,
                ),
            ):  # fmt: skip
                plant.expect("text_retained", (*place, *path), _text(value))
        dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
        self._image(dataset, frames)

    def _mosaic(self, dataset: Dataset) -> None:
        plant = self.plant
        self._technical(dataset)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        plant.expected = [e for e in plant.expected if e.path != ("ImageType",)]
        plant.expect("text_retained", ("ImageType",), _text(dataset.ImageType))
        add_vendor(dataset, plant, "siemens")
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x20, "OB", b"SV10\4\3\2\1" + f"tPatientName {plant.word()}\0".encode() * 9)
        self._image(dataset)

    def _segmentation(self, dataset: Dataset) -> None:
        plant = self.plant
        dataset.SOPClassUID, dataset.Modality = SEGMENTATION, "SEG"
        dataset.SegmentationType = "BINARY"
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = 1, "Femoral cartilage"
        segment.SegmentAlgorithmType = "MANUAL"
        segment.TrackingUID = plant.uid()
        segment.SegmentDescription = f"knee by {plant.word()}"
        dataset.SegmentSequence = Sequence([segment])
        dataset.ContentLabel, dataset.ContentDescription = "SEG", f"knee {plant.word()}"
        dataset.ContentCreatorName = plant.name()
        series = Dataset()
        series.SeriesInstanceUID = plant.uid()
        series.ReferencedInstanceSequence = Sequence([self._reference()])
        dataset.ReferencedSeriesSequence = Sequence([series])
        path = ("ReferencedSeriesSequence", 0, "ReferencedInstanceSequence", 0)
        plant.expect("uid_consistent", (*path, "ReferencedSOPInstanceUID"), self.image)
        plant.expect("text_retained", ("SegmentSequence", 0, "SegmentLabel"), "Femoral cartilage")
        plant.expect("text_retained", ("SegmentSequence", 0, "SegmentNumber"), "1")
        plant.expect("tag_retained", ("SegmentSequence",))
        dataset.Rows = dataset.Columns = 16
        dataset.NumberOfFrames, dataset.SamplesPerPixel = 2, 1
        dataset.BitsAllocated = dataset.BitsStored = 1
        dataset.HighBit, dataset.PixelRepresentation = 0, 0
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.PixelData = plant.random.randbytes(64)
        dataset["PixelData"].VR = "OB"

    def _report(self, dataset: Dataset) -> None:
        plant = self.plant
        dataset.SOPClassUID, dataset.Modality = COMPREHENSIVE_SR, "SR"
        dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
        dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
        title = Dataset()
        title.CodeValue, title.CodingSchemeDesignator = "126000", "DCM"
        title.CodeMeaning = "Imaging Measurement Report"
        dataset.ConceptNameCodeSequence = Sequence([title])
        items = []
        for kind, keyword, value in (
            (
                "TEXT",
                "TextValue",
                f"seen by {plant.word()} on {plant.date('{:04d}-{:02d}-{:02d}')}",
            ),
            ("PNAME", "PersonName", plant.name()),
            ("DATE", "Date", plant.date()),
            ("DATETIME", "DateTime", plant.date() + "101500"),
            ("UIDREF", "UID", plant.uid()),
        ):
            item = Dataset()
            item.RelationshipType, item.ValueType = "CONTAINS", kind
            setattr(item, keyword, value)
            items.append(item)
        number = Dataset()
        number.RelationshipType, number.ValueType = "CONTAINS", "NUM"
        measured, unit = Dataset(), Dataset()
        unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "mm", "UCUM", "mm"
        measured.NumericValue, measured.MeasurementUnitsCodeSequence = "12.5", Sequence([unit])
        number.MeasuredValueSequence = Sequence([measured])
        dataset.ContentSequence = Sequence([number, *items])
        path = ("ContentSequence", 0, "MeasuredValueSequence", 0, "NumericValue")
        plant.expect("text_retained", path, "12.5")
        plant.expect("tag_retained", ("ContentSequence",))
        for keyword in ("ValueType", "CompletionFlag"):
            plant.expect("text_retained", (keyword,), str(dataset[keyword].value))


def _compressed(syntax: str) -> bytes:
    """One frame of 64 x 64, from the files that come with pydicom."""
    from pydicom.data import get_testdata_file
    from pydicom.encaps import generate_frames

    name = {
        RLELossless: "MR_small_RLE.dcm",
        JPEG2000Lossless: "MR_small_jp2klossless.dcm",
        JPEGLSLossless: "MR_small_jpeg_ls_lossless.dcm",
    }[syntax]
    source = pydicom.dcmread(str(get_testdata_file(name)))
    return next(generate_frames(source.PixelData, number_of_frames=1))


def _write(dataset: Dataset, syntax: str, plant: Planter) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.SourceApplicationEntityTitle = plant.word()
    meta.SendingApplicationEntityTitle = plant.word()
    meta.ReceivingApplicationEntityTitle = plant.word()
    meta.PrivateInformationCreatorUID = plant.uid()
    meta.PrivateInformation = plant.word(8).encode()
    dataset.file_meta = meta
    dataset.preamble = plant.word(110).encode()[:128].ljust(128, b"\0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _text(value: object) -> str:
    if isinstance(value, (list, pydicom.multival.MultiValue, np.ndarray)):
        return "\\".join(map(str, value))
    return str(value)

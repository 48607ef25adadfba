"""Attributes about people, places and visits, and 60 technical ones that must stay.

What becomes of each is written down by hand from the text of PS3.15 2026c, Table E.1-1 and E.3, for
the options that TCIA uses: this module imports nothing of the package.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.data_registry.deid_corpus.planter import Path, Planter

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"

CLASSIC: dict[str, object] = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"],
    "Modality": "MR",
    "BodyPartExamined": "KNEE",
    "ScanningSequence": ["GR", "IR"],
    "SequenceVariant": ["SK", "SP", "MP"],
    "ScanOptions": ["IR", "PFP"],
    "MRAcquisitionType": "3D",
    "SequenceName": "*tfl3d1_16ns",
    "AngioFlag": "N",
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
    "PercentPhaseFieldOfView": "93.75",
    "PixelBandwidth": "240",
    "SoftwareVersions": "syngo MR E11",
    "TriggerTime": "512.5",
    "NominalInterval": "910",
    "HeartRate": "66",
    "CardiacNumberOfImages": "25",
    "ReconstructionDiameter": "240",
    "ReceiveCoilName": "HEA;HEP",
    "TransmitCoilName": "Body",
    "AcquisitionMatrix": [0, 256, 240, 0],
    "InPlanePhaseEncodingDirection": "ROW",
    "FlipAngle": "9",
    "VariableFlipAngleFlag": "N",
    "SAR": "0.0458",
    "dBdt": "0",
    "PatientPosition": "HFS",
    "SeriesNumber": "4",
    "AcquisitionNumber": "1",
    "ImagePositionPatient": ["-12.5", "-13.75", "8.1"],
    "ImageOrientationPatient": ["1", "0", "0", "0", "0.995", "-0.0998"],
    "SliceLocation": "8.1",
    "TemporalPositionIdentifier": "2",
    "NumberOfTemporalPositions": "30",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelSpacing": ["0.9", "0.9"],
    "WindowCenter": "420",
    "WindowWidth": "900",
    "RescaleIntercept": "0",
    "RescaleSlope": "1",
    "RescaleType": "US",
    "Manufacturer": "SIEMENS",
    "ManufacturerModelName": "Skyra",
    "PatientSex": "F",
    "PatientWeight": "71.5",
    "PatientSize": "1.72",
    "DiffusionBValue": 1000.0,
}
"""Sixty technical attributes of MR; safe private and per-frame ones come on top."""

assert len(CLASSIC) == 60

TEXTS = ("t1_mprage", "sag", "t2_tse", "knee", "ep2d_diff", "flair", "axial", "dixon")


def add_people(item: Dataset, plant: Planter, path: Path, *, rich: bool) -> None:
    """Attributes that identify, as they stand at any depth of real files.

    Args:
        item: Where to.
        plant: Makes the values.
        path: Of `item`.
        rich: Also the rarer ones.
    """

    def gone(keyword: str, value: object) -> None:
        setattr(item, keyword, value)
        for part in value if isinstance(value, list) else [value]:
            plant.expect("text_removed", (*path, keyword), str(part))

    def shifted(keyword: str, value: str) -> None:
        setattr(item, keyword, value)
        plant.expect("date_shifted", (*path, keyword), value[:8])

    def cleaned(keyword: str, kept: str, *planted: str) -> None:
        words = [kept.split()[0], *planted, *kept.split()[1:]]
        setattr(item, keyword, " ".join(words))
        for word in planted:
            plant.expect("text_removed", (*path, keyword), word)
        for word in kept.split():
            plant.expect("text_retained", (*path, keyword), word)

    gone("ReferringPhysicianName", plant.name())
    gone("OperatorsName", [plant.name(), plant.name()])
    gone("InstitutionName", f"{plant.word()} Hospital")
    gone("InstitutionAddress", f"{plant.digits()} {plant.word()} Street")
    gone("StationName", plant.word())
    gone("AccessionNumber", plant.digits())
    gone("DeviceSerialNumber", plant.digits())
    gone("PatientBirthDate", plant.date())
    shifted("StudyDate", plant.date())
    shifted("SeriesDate", plant.date())
    shifted("AcquisitionDateTime", plant.date() + "101112.345678+0100")
    gone("StudyTime", plant.time())
    two = plant.random.choices(TEXTS, k=2)
    cleaned("SeriesDescription", " ".join(dict.fromkeys(two)), plant.word())
    _uid(item, "DeviceUID", plant, path)
    if not rich:
        return
    gone("PerformingPhysicianName", plant.name())
    gone("PhysiciansOfRecord", plant.name())
    gone("InstitutionalDepartmentName", plant.word())
    gone("PersonTelephoneNumbers", plant.digits(11))
    gone("StudyID", plant.digits())
    gone("AdmissionID", plant.digits())
    gone("OtherPatientNames", plant.name())
    gone("OtherPatientIDs", [plant.digits(), plant.digits()])
    gone("OtherStudyNumbers", plant.digits(8))
    gone("PatientAddress", plant.word())
    gone("CountryOfResidence", plant.word())
    gone("PatientComments", f"call {plant.word()} {plant.date('{:04d}-{:02d}-{:02d}')}")
    gone("AdditionalPatientHistory", f"seen by {plant.word()}, {plant.email()}")
    gone("PatientBirthTime", plant.time())
    gone("PatientMotherBirthName", plant.name())
    gone("EthnicGroup", plant.word())
    gone("MilitaryRank", plant.word())
    gone("Occupation", plant.word())
    gone("GantryID", plant.word())
    gone("PerformedProcedureStepID", plant.digits())
    gone("ScheduledProcedureStepID", plant.digits())
    gone("RequestingService", plant.word())
    gone("RetrieveURL", f"https://{plant.word()}.example")
    gone("StationAETitle", plant.word())
    gone("ScheduledStationAETitle", [plant.word(), plant.word()])
    gone("AcquisitionComments", f"{plant.word()} moved")
    gone("ContentTime", plant.time())
    gone("LastMenstrualDate", plant.date())
    shifted("PerformedProcedureStepStartDate", plant.date())
    shifted("DateOfLastCalibration", plant.date())
    shifted("FrameReferenceDateTime", plant.date() + "221112.3")
    cleaned("StudyDescription", "knee", plant.word())
    cleaned("PerformedProcedureStepDescription", "knee", plant.word())
    cleaned("ProtocolName", "t1 sag", plant.word(), plant.digits())
    cleaned("ImageComments", "axial", plant.word(), plant.date("{2:02d}.{1:02d}.{0:04d}"))
    cleaned("ContrastBolusAgent", "gadovist", plant.word(), plant.date("{2:02d}/{1:02d}/{0:04d}"))
    _uid(item, "IrradiationEventUID", plant, path)
    add_private(item, plant, path)
    _add_foreign(item, plant, path)


def _add_foreign(item: Dataset, plant: Planter, path: Path) -> None:
    """Three component groups: alphabetic, ideographic, phonetic (PS3.5 6.2.1)."""
    assert plant.patient is not None
    if plant.patient.script == "ascii":
        return
    name, comment = plant.foreign(), plant.foreign()
    if plant.patient.script in ("japanese", "korean"):
        value = f"{plant.word()}^{plant.word()}={name}^{plant.foreign()}"
    else:
        value = f"{name}^{plant.foreign()}"
    item.NameOfPhysiciansReadingStudy = value
    item.StudyComments = f"{comment} knee"
    item.add_new(0x00081080, "LO", f"{plant.foreign()} knee")  # Admitting Diagnoses Description
    plant.expect("text_removed", (*path, "NameOfPhysiciansReadingStudy"), name)
    plant.expect("text_removed", (*path, "StudyComments"), comment)


def add_private(item: Dataset, plant: Planter, path: Path) -> None:
    """A hospital's own block: text, bytes, numbers and a sequence."""
    block = item.private_block(0x0029, f"CSA {plant.word()}", create=True)
    block.add_new(0x01, "LO", plant.word())
    block.add_new(0x02, "OB", f"<{plant.word()}>".encode("utf-16-le"))
    block.add_new(0x03, "UN", plant.word().encode())
    block.add_new(0x04, "PN", plant.name())
    block.add_new(0x05, "IS", plant.digits(8))
    block.add_new(0x07, "UI", plant.uid())
    block.add_new(0x08, "DA", plant.date())
    inner = Dataset()
    inner.PatientName = plant.name()
    inner.InstitutionName = plant.word()
    block.add_new(0x06, "SQ", Sequence([inner]))


SAFE_PRIVATE: dict[str, list[tuple[int, str, int, str, object]]] = {
    "siemens": [
        (0x0019, "SIEMENS MR HEADER", 0x0A, "US", 36),
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", "1000"),
        (0x0019, "SIEMENS MR HEADER", 0x0D, "CS", "DIRECTIONAL"),
        (0x0019, "SIEMENS MR HEADER", 0x0E, "FD", [0.6, -0.64, 0.48]),
        (0x0019, "SIEMENS MR HEADER", 0x27, "FD", [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]),
    ],
    "ge": [(0x0043, "GEMS_PARM_01", 0x39, "IS", ["1000000800", "8", "0", "0"])],
    "philips": [
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", 800.0),
        (0x2001, "Philips Imaging DD 001", 0x04, "CS", "I"),
        (0x2005, "Philips MR Imaging DD 001", 0x0D, "FL", -1.5),
        (0x2005, "Philips MR Imaging DD 001", 0x0E, "FL", 2.25),
    ],
}
"""b-values, gradients, mosaic count and scale factors by vendor (PS3.15 Table E.3.10-1)."""

VENDOR_TEXTS = {
    "siemens": [(0x0051, "SIEMENS MR HEADER", 0x0A), (0x0029, "SIEMENS CSA HEADER", 0x10)],
    "ge": [(0x0009, "GEMS_IDEN_01", 0x02), (0x0043, "GEMS_PARM_01", 0x9A)],
    "philips": [
        (0x2005, "Philips MR Imaging DD 002", 0x99),
        (0x2001, "Philips Imaging DD 001", 0xC8),
    ],
    "toshiba": [(0x700D, "TOSHIBA_MEC_MR3", 0x00)],
    "hitachi": [(0x0029, "HMC", 0x01)],
    "uih": [(0x0065, "Image Private Header", 0x51)],
    "bruker": [(0x0177, "BRUKER", 0x01)],
    "fonar": [(0x0031, "FONAR", 0x02)],
    "esaote": [(0x0011, "ESAOTE_MR", 0x05)],
    "hyperfine": [(0x0043, "HYPERFINE 1", 0x07)],
    "mirc": [(0x0013, "CTP", 0x14)],
}
"""Private texts by vendor that name people in real files; none is on the standard's safe list."""


def add_vendor(dataset: Dataset, plant: Planter, vendor: str) -> None:
    """Private attributes of a vendor: safe ones that must stay, others that must not."""
    for group, creator, number in VENDOR_TEXTS.get(vendor, []):
        block = dataset.private_block(group, creator, create=True)
        block.add_new(number, "LO", f"{plant.word()} {plant.digits()}")
    for group, creator, number, vr, value in SAFE_PRIVATE.get(vendor, []):
        block = dataset.private_block(group, creator, create=True)
        block.add_new(number, vr, value)
        plant.expect("text_retained", (f"{group:04X}xx{number:02X} {creator}",), _text(value))


def _text(value: object) -> str:
    return "\\".join(map(str, value)) if isinstance(value, list) else str(value)


def _uid(item: Dataset, keyword: str, plant: Planter, path: Path) -> None:
    uid = plant.uid()
    setattr(item, keyword, uid)
    plant.expect("uid_changed", (*path, keyword), uid)
    plant.expect("uid_consistent", (*path, keyword), uid)

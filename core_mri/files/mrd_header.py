"""The XML header of ISMRMRD (and of fastMRI, which keeps one) to `KSpaceHeader` and back.

Read by element names alone, so that files with parts missing, as in fastMRI, can be read; written
through the `ismrmrd` package, so that what we write fits the schema. What identifies a person is
kept apart in `KSpaceHeader.facts` and never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from core_mri.errors import DataError
from core_mri.volume import FactValue

if TYPE_CHECKING:
    from core_mri.files.kspace import KSpaceHeader

_MAX_XML_BYTES = 1 << 24
KEEP_READOUT = "core_mri_keep_readout"
"""User parameter of files that we write: the readout is stored as it shall be read."""
PHASE_CENTER, PHASE_COUNT = "core_mri_phase_center", "core_mri_phase_count"
"""Likewise: limits of the phase encoding before lines were numbered anew from 0."""

_FACTS = {
    "Manufacturer": "acquisitionSystemInformation/systemVendor",
    "ManufacturerModelName": "acquisitionSystemInformation/systemModel",
    "MagneticFieldStrength": "acquisitionSystemInformation/systemFieldStrength_T",
    "RepetitionTime": "sequenceParameters/TR",
    "EchoTime": "sequenceParameters/TE",
    "InversionTime": "sequenceParameters/TI",
    "FlipAngle": "sequenceParameters/flipAngle_deg",
    "SequenceName": "sequenceParameters/sequence_type",
    "ProtocolName": "measurementInformation/protocolName",
    "SeriesDescription": "measurementInformation/seriesDescription",
    "SeriesInstanceUID": "measurementInformation/seriesInstanceUIDRoot",
    "FrameOfReferenceUID": "measurementInformation/frameOfReferenceUID",
    "PatientPosition": "measurementInformation/patientPosition",
    "PatientID": "subjectInformation/patientID",
    "PatientName": "subjectInformation/patientName",
    "PatientSex": "subjectInformation/patientGender",
    "StudyInstanceUID": "studyInformation/studyInstanceUID",
    "StudyDescription": "studyInformation/studyDescription",
}
"""DICOM keyword -> path of the element; times are milliseconds in both."""
_NUMBERS = {
    "MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle",
}  # fmt: skip


@dataclass(frozen=True)
class MrdXml:
    """What the XML says, as far as it is used."""

    encoded_matrix: tuple[int, int, int]
    recon_matrix: tuple[int, int, int]
    encoded_fov_mm: tuple[float, float, float]
    recon_fov_mm: tuple[float, float, float]
    phase_center: int
    phase_count: int
    line_center: int
    """Number of the line that holds the center of k-space."""
    partition_center: int
    trajectory: str
    acceleration: float
    noise_bandwidth: float
    """relativeReceiverNoiseBandwidth, 1 when not stated."""
    keep_readout: bool
    facts: dict[str, FactValue]


def parse_xml(path: Path, xml: bytes | str) -> MrdXml:
    """Read the header of the first encoding.

    Args:
        path: Name of the file, for messages.
        xml: The document.

    Raises:
        DataError: DATA-02 when it is no XML, DATA-13 when it declares entities, DATA-14 when it
            states no matrix.
    """
    text = xml.decode("utf-8", "replace") if isinstance(xml, bytes) else xml
    if len(text) > _MAX_XML_BYTES or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError("DATA-13", f"{path}: an XML header with entities or of absurd length.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise DataError("DATA-02", f"{path}: its header is no XML.") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]

    def number(where: str, default: float) -> float:
        return number_of(root.findtext(where), default)

    def triple(where: str) -> tuple[float, float, float]:
        x, y, z = (number(f"encoding/{where}/{axis}", 0) for axis in "xyz")
        return x, y, z

    def matrix(where: str) -> tuple[int, int, int]:
        x, y, z = (int(n) for n in triple(f"{where}/matrixSize"))
        if x <= 0 or y <= 0:
            raise DataError("DATA-14", f"{path}: its header states no matrix size of {where}.")
        return x, y, max(z, 1)

    encoded = matrix("encodedSpace")
    limits = "encoding/encodingLimits/kspace_encoding_step_{}/{}"
    facts: dict[str, FactValue] = {"Modality": "MR"}
    for keyword, where in _FACTS.items():
        value = (root.findtext(where) or "").strip()
        if value and keyword in _NUMBERS:
            facts[keyword] = number(where, 0.0)
        elif value:
            facts[keyword] = value
    own = {
        item.findtext("name"): int(number_of(item.findtext("value"), 0))
        for item in root.iterfind("userParameters/userParameterLong")
    }
    center = int(number(limits.format(1, "center"), encoded[1] // 2))
    count = int(number(limits.format(1, "maximum"), encoded[1] - 1)) + 1
    return MrdXml(
        encoded_matrix=encoded,
        recon_matrix=matrix("reconSpace"),
        encoded_fov_mm=triple("encodedSpace/fieldOfView_mm"),
        recon_fov_mm=triple("reconSpace/fieldOfView_mm"),
        phase_center=own.get(PHASE_CENTER, center),
        phase_count=own.get(PHASE_COUNT, count),
        line_center=center,
        partition_center=int(number(limits.format(2, "center"), encoded[2] // 2)),
        trajectory=(root.findtext("encoding/trajectory") or "cartesian").strip().lower(),
        acceleration=number(
            "encoding/parallelImaging/accelerationFactor/kspace_encoding_step_1", 1.0
        ),
        noise_bandwidth=number("acquisitionSystemInformation/relativeReceiverNoiseBandwidth", 1.0),
        keep_readout=own.get(KEEP_READOUT) == 1,
        facts=facts,
    )


def number_of(text: str | None, default: float) -> float:
    """A number from text; `default` when it is none."""
    try:
        return float(text or default)
    except ValueError:
        return default


def build_xml(
    header: KSpaceHeader,
    num_coils: int,
    num_slices: int,
    num_volumes: int,
    num_lines: int | None = None,
) -> str:
    """A valid ISMRMRD header with technical content only.

    Args:
        header: Sizes and facts; of the facts, numbers and maker are written.
        num_coils: receiverChannels.
        num_slices: Slices of a volume.
        num_volumes: Repetitions.
        num_lines: Lines are numbered from 0 to this, the center in the middle; None keeps the
            limits of the header.
    """
    from ismrmrd import xsd

    def space(
        matrix: tuple[int, int, int], fov: tuple[float, float, float]
    ) -> xsd.encodingSpaceType:
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(**dict(zip("xyz", matrix, strict=True))),
            fieldOfView_mm=xsd.fieldOfViewMm(**dict(zip("xyz", fov, strict=True))),
        )

    def limit(maximum: int, center: int = 0) -> xsd.limitType:
        return xsd.limitType(minimum=0, maximum=maximum, center=center)

    def times(keyword: str) -> list[float]:
        value = header.facts.get(keyword)
        return [float(value)] if isinstance(value, (int, float)) else []

    def text(keyword: str) -> str | None:
        value = header.facts.get(keyword)
        return str(value) if value else None

    own = {KEEP_READOUT: 1}
    matrix = header.encoded_matrix
    lines = limit(header.phase_count - 1, header.phase_center)
    if num_lines is not None:
        own |= {PHASE_CENTER: header.phase_center, PHASE_COUNT: header.phase_count}
        matrix = (matrix[0], num_lines, matrix[2])
        lines = limit(num_lines - 1, num_lines // 2)
    field = header.facts.get("MagneticFieldStrength")
    field_t = float(field) if isinstance(field, (int, float)) else None
    document = xsd.ismrmrdHeader(
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor=text("Manufacturer"),
            systemModel=text("ManufacturerModelName"),
            systemFieldStrength_T=field_t,
            receiverChannels=num_coils,
        ),
        experimentalConditions=xsd.experimentalConditionsType(
            H1resonanceFrequency_Hz=round(42.577478518e6 * field_t) if field_t else 0
        ),
        encoding=[
            xsd.encodingType(
                encodedSpace=space(matrix, header.encoded_fov_mm),
                reconSpace=space(header.recon_matrix, header.recon_fov_mm),
                encodingLimits=xsd.encodingLimitsType(
                    kspace_encoding_step_1=lines,
                    kspace_encoding_step_2=limit(0),
                    slice=limit(num_slices - 1),
                    repetition=limit(num_volumes - 1),
                ),
                trajectory=xsd.trajectoryType.CARTESIAN,
                parallelImaging=xsd.parallelImagingType(
                    accelerationFactor=xsd.accelerationFactorType(
                        kspace_encoding_step_1=max(round(header.acceleration), 1),
                        kspace_encoding_step_2=1,
                    )
                ),
            )
        ],
        sequenceParameters=xsd.sequenceParametersType(
            TR=times("RepetitionTime"),
            TE=times("EchoTime"),
            TI=times("InversionTime"),
            flipAngle_deg=times("FlipAngle"),
        ),
        userParameters=xsd.userParametersType(
            userParameterLong=[
                xsd.userParameterLongType(name=name, value=value) for name, value in own.items()
            ]
        ),
    )
    return str(xsd.ToXML(document))

"""One DICOM file to the image frames it holds: geometry, scaling and facts, without the pixels.

Whatever is wrong with a file becomes one `CoreMRIError` that names the file and no value from it
which could identify a person.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from core_mri.errors import CoreMRIError, DataError, GeometryError
from core_mri.volume import FactValue

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FACTS: tuple[str, ...] = (
    "Modality", "Manufacturer", "ManufacturerModelName", "MagneticFieldStrength",
    "BodyPartExamined", "SeriesDescription", "ProtocolName", "StudyDescription", "SequenceName",
    "ScanningSequence", "SequenceVariant", "MRAcquisitionType", "EchoTime", "RepetitionTime",
    "InversionTime", "FlipAngle", "EchoTrainLength", "ContrastBolusAgent", "ImageType",
    "PatientSex", "PatientAge", "PatientPosition", "PatientID", "StudyInstanceUID",
    "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID",
)  # fmt: skip
"""Header elements kept in `Volume.facts`, where the file has them."""

_MR_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.4": "classic",
    "1.2.840.10008.5.1.4.1.1.4.1": "enhanced",
    "1.2.840.10008.5.1.4.1.1.4.4": "enhanced",  # Legacy Converted Enhanced MR
}
_PIXEL_DATA = {0x7FE00010: "", 0x7FE00008: "f4", 0x7FE00009: "f8"}
_UNDEFINED = 0xFFFFFFFF
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_NATIVE = (_IMPLICIT, _EXPLICIT, _DEFLATED, "1.2.840.10008.1.2.2")
_SIEMENS_NUM_MOSAIC_IMAGES = 0x0019100A
_SIEMENS_B_VALUE = 0x0019100C
_GE_COMPONENT = 0x0043102F

_KEYWORDS = (
    *FACTS, "SOPInstanceUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "NumberOfFrames", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "InstanceNumber", "EchoNumbers",
    "TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue", "AcquisitionNumber",
    "StackID", "ComplexImageComponent", "PulseSequenceName",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice image inside a file, in DICOM's LPS+ millimetres."""

    path: Path
    index: int
    """Frame number in the file, from 0."""
    transfer_syntax: str
    sop_uid: str
    series_uid: str
    instance: int
    rows: int
    columns: int
    position: Vector
    """Centre of the first voxel."""
    row_direction: Vector
    """Unit vector along which the column index grows."""
    column_direction: Vector
    """Unit vector along which the row index grows."""
    row_spacing: float
    column_spacing: float
    thickness: float
    """Slice thickness, else spacing between slices; 0 when the file states neither."""
    dtype: str
    """Stored number type, as numpy writes it: ``u1 i2 u2 i4 u4 f4 f8``."""
    bits_stored: int
    slope: float
    intercept: float
    inverted: bool
    """MONOCHROME1: small values are shown bright."""
    traits: tuple[tuple[str, FactValue], ...]
    """What may tell apart images of one position: image type, echo, time, b-value, ..."""
    facts: Mapping[str, FactValue]


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings, which can quote header values, off stderr and out of logs.

    Restored on leaving. Python's warning filters belong to the whole process, so use one thread per
    process for reading.
    """
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def read_frames(path: Path) -> list[Frame]:
    """The frames of one MR file; call it within :func:`quiet_pydicom`.

    Raises:
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-03 no DICOM or no MR
            image, DATA-10 no pixel data or one that cannot be decoded or unfolded.
        GeometryError: GEOMETRY-01 no usable spacing, GEOMETRY-02 no usable position or orientation.
    """
    try:
        return _read_frames(path)
    except CoreMRIError:
        raise
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    except Exception as error:
        # pydicom raises nearly any exception on damaged bytes, with header values in the text.
        raise DataError("DATA-02", f"{path}: damaged header ({type(error).__name__}).") from None


def _read_frames(path: Path) -> list[Frame]:
    with path.open("rb") as file:
        header, pixels = _read_header(path, file)
        _check_is_mr_image(path, header)
        if pixels is None:
            raise DataError("DATA-10", f"{path}: has no pixel data.")
        syntax = _transfer_syntax(header)
        if not _decodable(syntax):
            raise DataError(
                "DATA-10", f"{path}: no decoder is installed for transfer syntax {syntax}."
            )
        _check_pixel_length(path, header, file, syntax, pixels)
    float_type = _PIXEL_DATA[pixels.tag]
    shared = _Shared(path, header, syntax, float_type)
    if _MR_CLASSES.get(str(header.get("SOPClassUID", ""))) == "enhanced":
        return _enhanced_frames(shared)
    if _integer(header, "NumberOfFrames", 1) > 1:
        raise GeometryError(
            "GEOMETRY-02",
            f"{path}: {_integer(header, 'NumberOfFrames', 1)} frames in a classic MR object, which "
            "states one position for all of them.",
        )
    if "MOSAIC" in _text(header, "ImageType").split("\\") or (
        _integer(header, _SIEMENS_NUM_MOSAIC_IMAGES, 1) > 1
        and _text(header, "Manufacturer").upper().startswith("SIEMENS")
    ):
        raise DataError(
            "DATA-10",
            f"{path}: a mosaic of slices in one picture, which is not read yet.",
            fix="Export the series as Enhanced MR or convert it to NIfTI first.",
        )
    return [shared.frame(0, [header])]


@dataclass(frozen=True)
class _PixelElement:
    tag: int
    offset: int
    length: int


def _read_header(path: Path, file: BinaryIO) -> tuple[Dataset, _PixelElement | None]:
    """Elements before the pixel data and where that lies; DATA-02 when the file ends too early."""
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_partial
    from pydicom.tag import BaseTag, Tag

    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if not start:
        raise DataError("DATA-02", f"{path}: an empty file.")
    found: _PixelElement | None = None
    last = (0, 0)

    def stop(tag: BaseTag, _: str | None, length: int) -> bool:
        nonlocal found, last
        last = (file.tell(), length)
        if tag in _PIXEL_DATA:
            found = _PixelElement(int(tag), file.tell(), length)
        return found is not None

    # Files of old archives have no preamble; they start with group 0002 or 0008.
    bare = start[:2] in (b"\x08\x00", b"\x02\x00", b"\x00\x08")
    try:
        header = read_partial(
            file,
            stop_when=stop,
            force=bare,
            specific_tags=[
                *(Tag(keyword) for keyword in _KEYWORDS),
                Tag(_SIEMENS_NUM_MOSAIC_IMAGES), Tag(_SIEMENS_B_VALUE), Tag(_GE_COMPONENT),
            ],
        )  # fmt: skip
    except InvalidDicomError:
        raise DataError("DATA-03", f"{path}: not a DICOM file.") from None
    if bare and "SOPClassUID" not in header and "Modality" not in header:
        raise DataError("DATA-03", f"{path}: not a DICOM file.")
    deflated = _transfer_syntax(header) == _DEFLATED
    offset, length = last
    if length == _UNDEFINED and found is None:
        file.seek(max(size - 8, 0))
        ended = file.read(8) in (b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xff\xfe\xe0\xdd\0\0\0\0")
    else:
        ended = offset + length == size
    if not (found or ended or deflated):
        raise DataError("DATA-02", f"{path}: the file ends inside its header.")
    return header, found


def _check_is_mr_image(path: Path, header: Dataset) -> None:
    sop_class = str(header.get("SOPClassUID", ""))
    modality = str(header.get("Modality", ""))
    if sop_class and sop_class not in _MR_CLASSES:
        from pydicom.uid import UID

        # Only the standard's own names: a private UID has none and could be anything.
        name = UID(sop_class).name if sop_class.startswith("1.2.840.10008.") else "private class"
        raise DataError("DATA-03", f"{path}: holds {name}, which is no MR image.")
    if modality != "MR":
        shown = modality if re.fullmatch("[A-Z]{2,4}", modality) else "none or unknown"
        raise DataError("DATA-03", f"{path}: the modality is {shown}, not MR.")
    if _integer(header, "SamplesPerPixel", 1) != 1:
        raise DataError("DATA-03", f"{path}: a color picture, not an MR image.")
    photometric = _text(header, "PhotometricInterpretation") or "MONOCHROME2"
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError("DATA-03", f"{path}: not a gray-scale image.")
    if "ModalityLUTSequence" in header:
        raise DataError("DATA-10", f"{path}: values pass through a lookup table, not supported.")
    if min(_integer(header, "Rows", 0), _integer(header, "Columns", 0)) <= 0:
        raise DataError("DATA-10", f"{path}: states no rows and columns.")


def _check_pixel_length(
    path: Path, header: Dataset, file: BinaryIO, syntax: str, pixels: _PixelElement
) -> None:
    size = file.seek(0, 2)
    if syntax == _DEFLATED:
        size = _UNDEFINED
    if pixels.length == _UNDEFINED:
        file.seek(pixels.offset)
        whole = _fragments_are_whole(file, size)
    else:
        expected = (
            _integer(header, "Rows", 0)
            * _integer(header, "Columns", 0)
            * max(_integer(header, "NumberOfFrames", 1), 1)
            * (_integer(header, "BitsAllocated", 16) // 8)
        )
        whole = pixels.offset + pixels.length <= size and pixels.length >= expected
        if pixels.length == 0:
            raise DataError("DATA-10", f"{path}: has no pixel data.")
    if not whole:
        raise DataError(
            "DATA-02", f"{path}: truncated, the pixel data is shorter than the header says."
        )


def _fragments_are_whole(file: BinaryIO, size: int) -> bool:
    """Walk the items of encapsulated pixel data (PS3.5 annex A.4) without reading them."""
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", head)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000) or file.seek(length, 1) > size:
            return False
    # Some writers leave out the closing delimiter; the decoder decides then.
    return not head


class _Shared:
    """What all frames of a file have in common."""

    def __init__(self, path: Path, header: Dataset, syntax: str, float_type: str) -> None:
        self.path = path
        self.header = header
        self.syntax = syntax
        allocated = _integer(header, "BitsAllocated", 16)
        sign = "i" if _integer(header, "PixelRepresentation", 0) == 1 else "u"
        self.dtype = float_type or f"{sign}{allocated // 8}"
        if not float_type and allocated not in (8, 16, 32):
            raise DataError("DATA-10", f"{path}: {allocated} bits per pixel are not supported.")
        self.bits_stored = _integer(header, "BitsStored", allocated)
        self.facts = _facts(header)

    def frame(self, index: int, groups: list[Dataset]) -> Frame:
        """The frame whose attributes are looked up in `groups`, first hit wins."""
        path = self.path
        position = _vector(groups, "ImagePositionPatient", 3)
        orientation = _vector(groups, "ImageOrientationPatient", 6)
        if position is None or orientation is None:
            raise GeometryError(
                "GEOMETRY-02", f"{path}: states no image position and orientation in the patient."
            )
        row_direction, row_norm = _unit(orientation[:3])
        column_direction, column_norm = _unit(orientation[3:])
        skew = abs(sum(a * b for a, b in zip(row_direction, column_direction, strict=True)))
        if abs(row_norm - 1) > 0.01 or abs(column_norm - 1) > 0.01 or skew > 0.01:
            raise GeometryError(
                "GEOMETRY-02",
                f"{path}: the image orientation is not two perpendicular unit vectors.",
            )
        spacing = _vector(groups, "PixelSpacing", 2)
        if spacing is None or min(spacing) <= 0:
            raise GeometryError(
                "GEOMETRY-01",
                f"{path}: the pixel spacing must be two positive numbers of mm, got "
                f"{'nothing usable' if spacing is None else spacing}.",
            )
        slope = _first(groups, "RescaleSlope", 1.0)
        intercept = _first(groups, "RescaleIntercept", 0.0)
        if slope == 0:
            raise DataError("DATA-02", f"{path}: the rescale slope is zero.")
        thickness = _first(groups, "SliceThickness", 0.0)
        if thickness <= 0:
            thickness = max(_first(groups, "SpacingBetweenSlices", 0.0), 0.0)
        return Frame(
            path=path,
            index=index,
            transfer_syntax=self.syntax,
            sop_uid=str(self.header.get("SOPInstanceUID", "")),
            series_uid=str(self.header.get("SeriesInstanceUID", "")),
            instance=_integer(self.header, "InstanceNumber", 0),
            rows=_integer(self.header, "Rows", 0),
            columns=_integer(self.header, "Columns", 0),
            position=(position[0], position[1], position[2]),
            row_direction=row_direction,
            column_direction=column_direction,
            row_spacing=spacing[0],
            column_spacing=spacing[1],
            thickness=thickness,
            dtype=self.dtype,
            bits_stored=self.bits_stored,
            slope=slope,
            intercept=intercept,
            inverted=_text(self.header, "PhotometricInterpretation") == "MONOCHROME1",
            traits=_traits(groups),
            facts=self.facts,
        )


_GEOMETRY_MACROS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
_MACROS = (
    *_GEOMETRY_MACROS, "PixelValueTransformationSequence", "FrameContentSequence",
    "MREchoSequence", "MRTimingAndRelatedParametersSequence", "MRModifierSequence",
    "MRDiffusionSequence", "MRImageFrameTypeSequence", "CardiacSynchronizationSequence",
)  # fmt: skip


def _enhanced_frames(shared: _Shared) -> list[Frame]:
    """Frames of an Enhanced MR object (PS3.3 C.7.6.16): own groups before shared ones."""
    header = shared.header
    num_frames = max(_integer(header, "NumberOfFrames", 1), 1)
    own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    common = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    if not own:
        raise GeometryError(
            "GEOMETRY-02", f"{shared.path}: an Enhanced MR object without per-frame geometry."
        )
    if len(own) != num_frames:
        raise DataError(
            "DATA-02",
            f"{shared.path}: {num_frames} frames but {len(own)} per-frame functional groups.",
        )
    frames = []
    for index, group in enumerate(own):
        macros = [
            macro[0] for name in _MACROS for level in (group, *common) if (macro := level.get(name))
        ]
        if index == 0:
            shared.facts = {**shared.facts, **_enhanced_facts(macros, header)}
        frames.append(shared.frame(index, [*macros, header]))
    return frames


def _enhanced_facts(macros: list[Dataset], header: Dataset) -> dict[str, FactValue]:
    """Facts that classic objects keep at the top and enhanced ones in functional groups."""
    names = {
        "EchoTime": "EffectiveEchoTime",
        "RepetitionTime": "RepetitionTime",
        "FlipAngle": "FlipAngle",
        "EchoTrainLength": "EchoTrainLength",
        "InversionTime": "InversionTimes",
    }
    facts: dict[str, FactValue] = {}
    for name, source in names.items():
        value = _first(macros, source, math.nan)
        if not math.isnan(value):
            facts[name] = value
    if text := _text(header, "PulseSequenceName"):
        facts["SequenceName"] = text
    return facts


def _traits(groups: list[Dataset]) -> tuple[tuple[str, FactValue], ...]:
    """In the order in which they are tried to tell repeated positions apart."""
    image_type = next(
        (t for g in groups for k in ("FrameType", "ImageType") if (t := _text(g, k))), ""
    )
    component = next((t for g in groups if (t := _text(g, "ComplexImageComponent"))), "")

    def number(*names: str | int) -> float:
        values = (_first(groups, name, math.nan) for name in names)
        return next((round(v, 3) for v in values if not math.isnan(v)), 0.0)

    stack = next((t for g in groups if (t := _text(g, "StackID"))), "")
    return (
        ("image_type", image_type),
        ("component", component),
        ("ge_component", number(_GE_COMPONENT)),
        ("echo", number("EchoNumbers")),
        ("echo_time", number("EffectiveEchoTime", "EchoTime")),
        ("inversion_time", number("InversionTimes", "InversionTime")),
        ("b_value", number("DiffusionBValue", _SIEMENS_B_VALUE)),
        ("temporal", number("TemporalPositionIndex", "TemporalPositionIdentifier")),
        ("trigger", number("NominalCardiacTriggerDelayTime", "TriggerTime")),
        ("acquisition", number("AcquisitionNumber")),
        ("stack", stack),
    )


def _facts(header: Dataset) -> dict[str, FactValue]:
    facts: dict[str, FactValue] = {}
    for keyword in FACTS:
        try:
            value = header.get(keyword)
            if value is None or value == "":
                continue
            if isinstance(value, (int, float)):
                number = float(value)
                if math.isfinite(number):
                    facts[keyword] = int(value) if isinstance(value, int) else number
                continue
        except (ValueError, TypeError, OverflowError):
            continue
        if text := _text(header, keyword):
            facts[keyword] = text
    return facts


def _text(dataset: Dataset, keyword: str) -> str:
    """A value as text, several joined by a backslash as in the file; "" when absent or damaged."""
    try:
        value = dataset.get(keyword)
    except Exception:
        return ""
    if value is None:
        return ""
    if isinstance(value, str):
        return str(value).strip()
    try:
        return "\\".join(str(part).strip() for part in value)
    except TypeError:
        return str(value).strip()


def _vector(groups: list[Dataset], keyword: str, length: int) -> tuple[float, ...] | None:
    """`length` finite numbers from the first group that has the element; None when it has not."""
    for group in groups:
        if keyword not in group:
            continue
        try:
            values = tuple(float(v) for v in group[keyword].value)
        except (ValueError, TypeError):
            return None
        return values if len(values) == length and all(map(math.isfinite, values)) else None
    return None


def _first(groups: list[Dataset], key: str | int, default: float) -> float:
    """The first finite number that a group states for an element, else `default`."""
    for group in groups:
        try:
            value = group[key].value if key in group else None
            if isinstance(value, bytes):
                value = value.decode("ascii")
            elif value is not None and not isinstance(value, (str, int, float)):
                value = value[0]
            if value is not None and math.isfinite(number := float(value)):
                return number
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return default


def _integer(dataset: Dataset, key: str | int, default: int) -> int:
    return int(_first([dataset], key, default))


def _unit(vector: tuple[float, ...]) -> tuple[Vector, float]:
    norm = math.sqrt(sum(v * v for v in vector))
    if norm == 0:
        return (0.0, 0.0, 0.0), 0.0
    x, y, z = (v / norm for v in vector)
    return (x, y, z), norm


def _transfer_syntax(header: Dataset) -> str:
    meta = getattr(header, "file_meta", None)
    stated = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    if stated:
        return stated
    implicit, little = header.original_encoding
    return _IMPLICIT if implicit else _EXPLICIT if little else _NATIVE[3]


@lru_cache(maxsize=64)
def _decodable(syntax: str) -> bool:
    from pydicom.pixels import get_decoder

    if syntax in _NATIVE:
        return True
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False

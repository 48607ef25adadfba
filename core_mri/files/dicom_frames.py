"""One DICOM file to the image frames it holds: geometry, scaling and facts, without the pixels.

Whatever is wrong with a file becomes one `CoreMRIError` that names the file and no value from it
which could identify a person.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core_mri.errors import CoreMRIError, DataError, GeometryError
from core_mri.files.dicom_header import (
    FLOAT_PIXEL_DATA,
    Header,
    PixelElement,
    Values,
    check_pixel_length,
    first_number,
    integer_of,
    is_decodable,
    is_plain,
    item_of,
    items_of,
    numbers_of,
    open_dicom,
    read_header,
    text_of,
)
from core_mri.volume import FactValue

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
_SIEMENS_NUM_MOSAIC_IMAGES = 0x0019100A
_SIEMENS_B_VALUE = 0x0019100C
_GE_COMPONENT = 0x0043102F
_GE_B_VALUE = 0x00431039
_PHILIPS_B_VALUE = 0x20011003
_DIRECTIONS: tuple[str | int, ...] = ("DiffusionGradientOrientation", 0x0019100E)
"""Standard, and Siemens (three doubles, plain bytes in files with implicit value types)."""

_ELEMENTS: tuple[str | int, ...] = (
    *FACTS, _SIEMENS_NUM_MOSAIC_IMAGES, _SIEMENS_B_VALUE, _GE_COMPONENT, _GE_B_VALUE,
    _PHILIPS_B_VALUE, *_DIRECTIONS,
    "SOPInstanceUID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "NumberOfFrames", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "InstanceNumber", "EchoNumbers",
    "TemporalPositionIdentifier", "TriggerTime", "DiffusionBValue", "AcquisitionNumber",
    "StackID", "ComplexImageComponent", "PulseSequenceName", "FrameIncrementPointer",
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
    pixels: tuple[int, int] = (-1, 0)
    """Offset and length in bytes of plain pixel data, so that the header need not be parsed again;
    (-1, 0) where a decoder is needed."""
    mosaic_tiles: int = 0
    """Tiles along a side of a Siemens mosaic, of which `index` is one; 0 for plain frames."""


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
            image, DATA-10 no pixel data or one that cannot be decoded or unfolded, DATA-13 a file
            that unpacks to far more than it stores.
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
    with open_dicom(path) as file:
        header = read_header(path, file, _ELEMENTS)
        values = header.values
        _check_is_mr_image(path, values)
        if header.pixels is None:
            raise DataError("DATA-10", f"{path}: has no pixel data.")
        if not is_decodable(header.transfer_syntax):
            raise DataError(
                "DATA-10",
                f"{path}: no decoder is installed for transfer syntax {header.transfer_syntax}.",
            )
        check_pixel_length(path, file, header, header.pixels)
    maker = _FrameMaker(path, header, header.pixels)
    if _MR_CLASSES.get(str(values.get("SOPClassUID", ""))) == "enhanced":
        return _enhanced_frames(maker)
    num_frames = integer_of(values, "NumberOfFrames", 1)
    if num_frames > 1 and not str(values.get("FrameIncrementPointer", "")).startswith("(0018,106"):
        raise GeometryError(
            "GEOMETRY-02",
            f"{path}: {num_frames} frames in a classic MR object, which states one position for "
            "all of them and not that they follow each other in time.",
        )
    if num_frames > 1:
        frame = maker.frame(0, [values])
        return [
            dataclasses.replace(frame, index=k, traits=(*frame.traits[:-1], ("frame", k)))
            for k in range(num_frames)
        ]
    if "MOSAIC" in text_of(values, "ImageType").split("\\") or (
        integer_of(values, _SIEMENS_NUM_MOSAIC_IMAGES, 1) > 1
        and text_of(values, "Manufacturer").upper().startswith("SIEMENS")
    ):
        return _mosaic_frames(maker, values)
    return [maker.frame(0, [values])]


def _mosaic_frames(maker: _FrameMaker, values: Values) -> list[Frame]:
    """The tiles of a Siemens mosaic as frames.

    The header places the corner of the whole picture as if it were one slice around the same
    center, so a tile begins half the difference of the two sizes further along rows and columns.
    Source: nibabel, `nicom/dicomwrappers.py`, MosaicWrapper.image_position.
    """
    from core_mri.files.dicom_mosaic import read_mosaic

    whole = maker.frame(0, [values])
    layout = read_mosaic(maker.path, integer_of(values, _SIEMENS_NUM_MOSAIC_IMAGES, 0))
    if whole.rows % layout.tiles or whole.columns % layout.tiles:
        raise DataError(
            "DATA-10",
            f"{maker.path}: a mosaic of {whole.columns}x{whole.rows} pixels does not divide into "
            f"{layout.tiles}x{layout.tiles} tiles.",
        )
    rows, columns = whole.rows // layout.tiles, whole.columns // layout.tiles
    across = (whole.columns - columns) / 2 * whole.column_spacing
    down = (whole.rows - rows) / 2 * whole.row_spacing
    x, y = whole.row_direction, whole.column_direction
    plane: Vector = (
        x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]
    )  # fmt: skip
    normal = layout.normal or plane
    gap = first_number([values], "SpacingBetweenSlices", 0.0) or whole.thickness
    if gap <= 0:
        raise GeometryError(
            "GEOMETRY-01", f"{maker.path}: a mosaic without the distance of its slices."
        )
    corner = [
        p + across * a + down * b for p, a, b in zip(whole.position, x, y, strict=True)
    ]  # fmt: skip

    def position(number: int) -> Vector:
        a, b, c = (p + number * gap * n for p, n in zip(corner, normal, strict=True))
        return a, b, c

    return [
        dataclasses.replace(
            whole,
            index=number,
            rows=rows,
            columns=columns,
            position=position(number),
            mosaic_tiles=layout.tiles,
        )
        for number in range(layout.num_slices)
    ]


def _check_is_mr_image(path: Path, header: Values) -> None:
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
    if integer_of(header, "SamplesPerPixel", 1) != 1:
        raise DataError("DATA-03", f"{path}: a color picture, not an MR image.")
    photometric = text_of(header, "PhotometricInterpretation") or "MONOCHROME2"
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError("DATA-03", f"{path}: not a gray-scale image.")
    if "ModalityLUTSequence" in header:
        raise DataError("DATA-10", f"{path}: values pass through a lookup table, not supported.")
    if min(integer_of(header, "Rows", 0), integer_of(header, "Columns", 0)) <= 0:
        raise DataError("DATA-10", f"{path}: states no rows and columns.")


class _FrameMaker:
    """Makes frames from what all frames of a file have in common and what one has of its own."""

    def __init__(self, path: Path, header: Header, pixels: PixelElement) -> None:
        self.path = path
        self.syntax = header.transfer_syntax
        self.header = header.values
        float_type = FLOAT_PIXEL_DATA.get(pixels.tag, "")
        self.pixels = (pixels.offset, pixels.length) if is_plain(header) else (-1, 0)
        allocated = integer_of(self.header, "BitsAllocated", 16)
        sign = "i" if integer_of(self.header, "PixelRepresentation", 0) == 1 else "u"
        self.dtype = float_type or f"{sign}{allocated // 8}"
        if not float_type and allocated not in (8, 16, 32):
            raise DataError("DATA-10", f"{path}: {allocated} bits per pixel are not supported.")
        self.bits_stored = integer_of(self.header, "BitsStored", allocated)
        self.facts = _facts(self.header)

    def frame(self, index: int, groups: list[Values]) -> Frame:
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
        slope = first_number(groups, "RescaleSlope", 1.0)
        intercept = first_number(groups, "RescaleIntercept", 0.0)
        if slope == 0:
            raise DataError("DATA-02", f"{path}: the rescale slope is zero.")
        thickness = first_number(groups, "SliceThickness", 0.0)
        if thickness <= 0:
            thickness = max(first_number(groups, "SpacingBetweenSlices", 0.0), 0.0)
        return Frame(
            path=path,
            index=index,
            transfer_syntax=self.syntax,
            sop_uid=str(self.header.get("SOPInstanceUID", "")),
            series_uid=str(self.header.get("SeriesInstanceUID", "")),
            instance=integer_of(self.header, "InstanceNumber", 0),
            rows=integer_of(self.header, "Rows", 0),
            columns=integer_of(self.header, "Columns", 0),
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
            inverted=text_of(self.header, "PhotometricInterpretation") == "MONOCHROME1",
            traits=_traits(groups),
            facts=self.facts,
            pixels=self.pixels,
        )


_GEOMETRY_MACROS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
_MACROS = (
    *_GEOMETRY_MACROS, "PixelValueTransformationSequence", "FrameContentSequence",
    "MREchoSequence", "MRTimingAndRelatedParametersSequence", "MRModifierSequence",
    "MRDiffusionSequence", "MRImageFrameTypeSequence", "CardiacSynchronizationSequence",
)  # fmt: skip


def _enhanced_frames(maker: _FrameMaker) -> list[Frame]:
    """Frames of an Enhanced MR object (PS3.3 C.7.6.16): own groups before shared ones."""
    header = maker.header
    num_frames = max(integer_of(header, "NumberOfFrames", 1), 1)
    own = list(items_of(header, "PerFrameFunctionalGroupsSequence"))
    common = item_of(header, "SharedFunctionalGroupsSequence")
    if not own:
        raise GeometryError(
            "GEOMETRY-02", f"{maker.path}: an Enhanced MR object without per-frame geometry."
        )
    if len(own) != num_frames:
        raise DataError(
            "DATA-02",
            f"{maker.path}: {num_frames} frames but {len(own)} per-frame functional groups.",
        )
    shared = {name: item_of(common, name) for name in _MACROS} if common else {}
    frames = []
    for index, group in enumerate(own):
        found = [macro for name in _MACROS for macro in (item_of(group, name), shared.get(name))]
        macros = [macro for macro in found if macro is not None]
        if index == 0:
            maker.facts = {**maker.facts, **_enhanced_facts(macros, header)}
        frames.append(maker.frame(index, [*macros, header]))
    return frames


def _enhanced_facts(macros: list[Values], header: Values) -> dict[str, FactValue]:
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
        value = first_number(macros, source, math.nan)
        if not math.isnan(value):
            facts[name] = value
    if text := text_of(header, "PulseSequenceName"):
        facts["SequenceName"] = text
    return facts


def _traits(groups: list[Values]) -> tuple[tuple[str, FactValue], ...]:
    """In the order in which they are tried to tell repeated positions apart."""
    image_type = next(
        (t for g in groups for k in ("FrameType", "ImageType") if (t := text_of(g, k))), ""
    )
    component = next((t for g in groups if (t := text_of(g, "ComplexImageComponent"))), "")

    def number(*names: str | int) -> float:
        values = (first_number(groups, name, math.nan) for name in names)
        return next((round(v, 3) for v in values if not math.isnan(v)), 0.0)

    stack = next((t for g in groups if (t := text_of(g, "StackID"))), "")
    return (
        ("image_type", image_type),
        ("component", component),
        ("ge_component", number(_GE_COMPONENT)),
        ("echo", number("EchoNumbers")),
        ("echo_time", number("EffectiveEchoTime", "EchoTime")),
        ("inversion_time", number("InversionTimes", "InversionTime")),
        ("b_value", _b_value(number)),
        ("direction", _direction(groups)),
        ("temporal", number("TemporalPositionIndex", "TemporalPositionIdentifier")),
        ("trigger", number("NominalCardiacTriggerDelayTime", "TriggerTime")),
        ("acquisition", number("AcquisitionNumber")),
        ("stack", stack),
        ("frame", 0),
    )


def _b_value(number: Callable[..., float]) -> float:
    """In s/mm2; GE adds 1e9 to mark the value of newer software."""
    value = number("DiffusionBValue", _SIEMENS_B_VALUE, _PHILIPS_B_VALUE, _GE_B_VALUE)
    return value % 1e9 if value >= 1e9 else value


def _direction(groups: list[Values]) -> tuple[float, ...]:
    """Diffusion gradient in the patient, rounded; () when there is none."""
    for group in groups:
        for key in _DIRECTIONS:
            value = group.get(key)
            if isinstance(value, bytes) and len(value) == 24:
                return tuple(round(x, 3) for x in struct.unpack("<3d", value))
            if len(numbers := numbers_of(group, key)) == 3:
                return tuple(round(x, 3) for x in numbers)
    return ()


def _facts(header: Values) -> dict[str, FactValue]:
    facts: dict[str, FactValue] = {}
    for keyword in FACTS:
        value = header.get(keyword)
        if isinstance(value, (int, float)):
            if math.isfinite(value):
                facts[keyword] = int(value) if isinstance(value, int) else float(value)
        elif text := text_of(header, keyword):
            facts[keyword] = text
    return facts


def _vector(groups: list[Values], keyword: str, length: int) -> tuple[float, ...] | None:
    """`length` numbers from the first group that has the element; None when it has not."""
    numbers = next((numbers_of(group, keyword) for group in groups if keyword in group), [])
    return tuple(numbers) if len(numbers) == length else None


def _unit(vector: tuple[float, ...]) -> tuple[Vector, float]:
    norm = math.sqrt(sum(v * v for v in vector))
    if norm == 0:
        return (0.0, 0.0, 0.0), 0.0
    x, y, z = (v / norm for v in vector)
    return (x, y, z), norm

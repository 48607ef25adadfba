"""A volume to a folder of classic MR Image Storage files, one slice each."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core_mri.errors import ConfigError, DataError, GeometryError
from core_mri.files.dicom_frames import FACTS, quiet_pydicom
from core_mri.volume import FactValue, Volume

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
_OWN = ("SeriesInstanceUID", "SOPClassUID", "Modality", "ImageType")
"""Facts that a new series states itself."""
_PAIRED = {
    "KNEE", "SHOULDER", "HIP", "BREAST", "ANKLE", "FOOT", "HAND", "WRIST", "ELBOW", "EXTREMITY",
    "KIDNEY", "EYE", "EAR", "LEG", "ARM", "THIGH", "CALF", "FOREARM", "FINGER", "TOE",
}  # fmt: skip


def write_dicom_series(
    volume: Volume,
    folder: Path,
    *,
    facts: Mapping[str, FactValue] | None = None,
    seed: str | None = None,
    derivation: str = "",
) -> list[Path]:
    """Write ``0001.dcm``, ``0002.dcm``, ... in the order of the slices.

    The first array axis becomes columns, the second rows, the third slices. Integer voxels are kept
    exactly; floating point is stored in 16 bits with the rescale slope that uses their whole range
    (error at most half a step, (max - min) / 131070). The folder appears complete or not at all.

    Args:
        volume: Three-dimensional; integers within -32768..32767 or 0..65535.
        folder: New or empty.
        facts: By DICOM keyword; `volume.facts` when None. Patient, study and frame of reference are
            kept where stated; the series is always a new one.
        seed: Text from which all new UIDs are derived; None draws fresh ones.
        derivation: How the images were made, with the warning that belongs to them; marks the
            series as one of research (ContentQualification).

    Returns:
        The files.

    Raises:
        ConfigError: CONFIG-03 when the folder holds something, CONFIG-05 when values do not fit.
        DataError: DATA-07 when the place cannot be written.
        GeometryError: GEOMETRY-02 for a fourth dimension or slices whose rows and columns are not
            perpendicular.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            "CONFIG-03", f"{folder}: exists and is not an empty folder.", fix="Choose a new folder."
        )
    columns, rows = volume.affine[:3, 0], volume.affine[:3, 1]
    if abs(columns @ rows) > 1e-4 * np.linalg.norm(columns) * np.linalg.norm(rows):
        raise GeometryError("GEOMETRY-02", "DICOM needs rows and columns that are perpendicular.")
    stored, slope, intercept = _sixteen_bits(volume.array)
    partial = folder.with_name(f".{folder.name}.partial")
    names = [f"{k + 1:04d}.dcm" for k in range(stored.shape[2])]
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with quiet_pydicom():
            header = _header(volume, volume.facts if facts is None else facts, seed)
            header.RescaleSlope, header.RescaleIntercept = _decimal(slope), _decimal(intercept)
            header.RescaleType = "US"
            header.BitsAllocated = header.BitsStored = 16
            header.HighBit = 15
            header.PixelRepresentation = int(stored.dtype.kind == "i")
            if derivation:
                header.DerivationDescription = header.ImageComments = derivation
                header.ContentQualification = "RESEARCH"
            for k, name in enumerate(names):
                _write_slice(header, volume, stored[:, :, k], k, partial / name)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError("DATA-07", f"{folder}: cannot be written ({error.strerror}).") from error
    return [folder / name for name in names]


def _sixteen_bits(
    array: npt.NDArray[np.generic],
) -> tuple[npt.NDArray[np.generic], float, float]:
    """Stored values, slope and intercept: ``slope * stored + intercept`` is `array`."""
    if array.ndim != 3:
        raise GeometryError(
            "GEOMETRY-02", f"a DICOM series holds one 3-D volume, got shape {array.shape}."
        )
    if array.dtype.kind in "bui":
        lowest, highest = int(array.min()), int(array.max())
        for dtype in (np.uint16, np.int16):
            if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
                return array.astype(dtype), 1.0, 0.0
        raise ConfigError(
            "CONFIG-05",
            f"DICOM MR images hold 16 bits, values from {lowest} to {highest} do not fit.",
            fix="Write NIfTI instead.",
        )
    values = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError("DATA-04", "voxels that are not finite cannot be written as DICOM.")
    low, high = float(values.min()), float(values.max())
    # The header holds 16 characters of the slope, so that rounded slope is the one to divide by.
    slope = float(_decimal((high - low) / 65535)) or 1.0
    intercept = float(_decimal(low))
    stored = np.clip(np.rint((values - intercept) / slope), 0, 65535).astype(np.uint16)
    return stored, slope, intercept


def _header(volume: Volume, facts: Mapping[str, FactValue], seed: str | None) -> FileDataset:
    """What all slices share."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    seed = seed or uuid.uuid4().hex
    lps = volume.affine_lps
    row_direction, column_direction = (lps[:3, axis] / volume.spacing_mm[axis] for axis in (0, 1))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = _MR_IMAGE_STORAGE
    header = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
        "StudyID", "AccessionNumber", "ReferringPhysicianName", "Manufacturer",
        "PositionReferenceIndicator", "EchoTime", "RepetitionTime", "EchoTrainLength",
        "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType",
    ):  # fmt: skip
        setattr(header, keyword, "" if keyword not in ("EchoTime", "RepetitionTime") else None)
    if str(facts.get("BodyPartExamined", "")).upper() in _PAIRED:
        header.Laterality = ""  # demanded of paired parts only (PS3.3 C.7.3.1), and not known
    for keyword in FACTS:
        if keyword in facts and keyword not in _OWN:
            value = facts[keyword]
            if isinstance(value, float):
                setattr(header, keyword, _decimal(value) if keyword in _DECIMAL else value)
            else:
                setattr(header, keyword, value)
    header.Modality = "MR"
    header.SOPClassUID = _MR_IMAGE_STORAGE
    header.ImageType = str(facts.get("ImageType", "DERIVED\\SECONDARY")).split("\\")
    header.SeriesInstanceUID = _uid(seed, "series")
    header.StudyInstanceUID = facts.get("StudyInstanceUID") or _uid(seed, "study")
    header.FrameOfReferenceUID = facts.get("FrameOfReferenceUID") or _uid(seed, "frame")
    header.SeriesNumber = 1
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Columns, header.Rows = volume.shape[0], volume.shape[1]
    header.PixelSpacing = [_decimal(volume.spacing_mm[1]), _decimal(volume.spacing_mm[0])]
    thickness = _decimal(volume.spacing_mm[2])
    header.SliceThickness = header.SpacingBetweenSlices = thickness
    header.ImageOrientationPatient = [_decimal(v) for v in (*row_direction, *column_direction)]
    return header


_DECIMAL = (
    "MagneticFieldStrength", "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle",
)  # fmt: skip


def _write_slice(
    header: FileDataset, volume: Volume, stored: npt.NDArray[np.generic], k: int, path: Path
) -> None:
    origin = volume.affine_lps @ (0, 0, k, 1)
    header.ImagePositionPatient = [_decimal(v) for v in origin[:3]]
    header.InstanceNumber = k + 1
    header.SOPInstanceUID = _uid(header.SeriesInstanceUID, str(k))
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    little_endian = stored.dtype.newbyteorder("<")
    header.PixelData = np.ascontiguousarray(stored.T, dtype=little_endian).tobytes()
    header["PixelData"].VR = "OW"
    header.save_as(path, enforce_file_format=True)


def _decimal(value: float) -> str:
    """The most exact decimal string of at most 16 characters (VR DS)."""
    from pydicom.valuerep import format_number_as_ds

    return str(format_number_as_ds(float(value)))


def _uid(seed: str, role: str) -> str:
    """A UID of the 2.25 arc (PS3.5 B.2) from the hash of two texts."""
    digest = hashlib.sha256(f"{seed}/{role}".encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"

"""DICOM Segmentation (SEG) in and out, through highdicom.

Values: the standard numbers segments 1, 2, ... (PS3.3 C.8.20.2), so a label value of another number
is kept in SegmentDescription as ``value=N`` and comes back when the file is read here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core_mri.errors import ConfigError, DataError, GeometryError
from core_mri.files.dicom import SeriesFiles, group_series
from core_mri.files.dicom_frames import quiet_pydicom
from core_mri.files.dicom_header import open_dicom, refuse_bomb
from core_mri.version import __version__
from core_mri.volume import Volume, orientation_of

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Of patient and study: may be empty but not absent (type 2, PS3.3 C.7.1 and C.7.2). Files that
lack them are common, and highdicom copies them."""
_VALUE = re.compile(r"value=(-?\d+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+()/,'-]{0,63}")
_ABNORMAL = re.compile(r"lesion|tumou?r|cancer|metasta|edema|infarct|necro|cyst", re.I)


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM SEG."""
    from pydicom import dcmread

    try:
        with quiet_pydicom(), open_dicom(path) as file:
            refuse_bomb(path, file)
            found = dcmread(file, specific_tags=["SOPClassUID"], stop_before_pixels=True)
            return str(found.get("SOPClassUID", "")) in SEG_CLASSES
    except Exception:
        return False  # whoever reads it will say what is wrong


def read_segmentation(path: Path) -> Volume:
    """A label map ``[slice, row, column]`` on the grid that the SEG states.

    Fractional segments count from 0.5 on. Where segments overlap the one of the higher number wins.
    Facts: PatientID and StudyInstanceUID, and ``LabelNames``, such as ``1=liver;2=spleen``.

    Raises:
        DataError: DATA-02 damaged, DATA-03 no SEG.
        GeometryError: GEOMETRY-02 frames that form no regular volume.
    """
    import highdicom

    path = Path(path)
    if not is_segmentation(path):
        raise DataError("DATA-03", f"{path}: not a DICOM segmentation.")
    try:
        with quiet_pydicom(), open_dicom(path) as file:
            seg = highdicom.seg.segread(file)
            volume = seg.get_volume(combine_segments=False, rescale_fractional=True)
            values = [_value_of(seg, number) for number in seg.segment_numbers]
            names = [_name_of(seg, number) for number in seg.segment_numbers]
            facts = {key: str(seg.get(key, "")) for key in ("PatientID", "StudyInstanceUID")}
    except (RuntimeError, ValueError) as error:
        if "volume" in str(error) or "regular" in str(error):
            raise GeometryError(
                "GEOMETRY-02", f"{path}: its frames form no regular volume."
            ) from None
        raise DataError("DATA-02", f"{path}: a damaged segmentation.") from None
    except Exception as error:
        # pydicom and highdicom raise nearly any exception on damaged bytes.
        raise DataError("DATA-02", f"{path}: damaged ({type(error).__name__}).") from None
    labels = np.zeros(volume.array.shape[:3], dtype=np.int64)
    for place, value in enumerate(values):
        labels[volume.array[..., place] >= 0.5] = value
    smallest = np.result_type(*(np.min_scalar_type(int(x)) for x in (labels.min(), labels.max())))
    facts["LabelNames"] = ";".join(f"{v}={n}" for v, n in zip(values, names, strict=True))
    return Volume(labels.astype(smallest), _LPS_TO_RAS @ volume.affine, "label", dict(facts))


def write_segmentation(
    volume: Volume,
    path: Path,
    source: Path | Sequence[Path],
    *,
    labels: Mapping[int, str] | None = None,
) -> Path:
    """Write a label map as binary SEG that refers to the images it was made on.

    Patient, study and frame of reference are those of the source; the series is new. Each value
    becomes a segment, coded as tissue (SCT 85756007), of the category "morphologically abnormal
    structure" when its name says lesion, tumor or the like, else "anatomical structure".

    Args:
        volume: Integers, 0 for background, on the grid of one series of the source (in any order of
            axes).
        path: The file, ``.dcm``.
        source: Folder, file or files of the series.
        labels: Name of each value; ``label N`` without.

    Returns:
        The file.

    Raises:
        ConfigError: CONFIG-05 when there is nothing but background, or the source is an enhanced
            object of which the series is only a part.
        DataError: DATA-01 and DATA-03 when the source holds no series, DATA-03 for a map that is
            not of integers, DATA-07 when it cannot be written.
        GeometryError: GEOMETRY-03 when no series of the source has the grid of the map.
    """
    import highdicom as hd
    from pydicom import dcmread

    path = Path(path)
    if volume.array.dtype.kind not in "uib":
        raise DataError("DATA-03", f"{path}: a label map holds integers, got {volume.array.dtype}.")
    series = matching_series(volume, source)
    aligned = volume.reorient(orientation_of(series.affine)).array.transpose(2, 1, 0)
    values = [int(v) for v in np.unique(aligned) if v != 0]
    if not values:
        raise ConfigError(
            "CONFIG-05",
            f"{path}: nothing but background, and a segmentation needs a segment.",
            fix="Write NIfTI for an empty mask.",
        )
    segments = np.searchsorted(values, aligned) + 1
    segments = np.where(aligned != 0, segments, 0).astype(np.uint16)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with quiet_pydicom(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = []
            for file in series.files:
                with open_dicom(file) as opened:
                    image = dcmread(opened)
                for keyword in _EMPTY:
                    if keyword not in image:
                        setattr(image, keyword, "")
                images.append(image)
            if len(images) == 1 and len(series.frames) > 1:
                segments = _in_file_order(path, series, images[0], segments)
            seg = hd.seg.Segmentation(
                source_images=images,
                pixel_array=segments,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[
                    _segment(number, value, (labels or {}).get(value, f"label {value}"))
                    for number, value in enumerate(values, start=1)
                ],
                series_instance_uid=hd.UID(),
                series_number=1,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="core-mri",
                manufacturer_model_name="core-mri",
                software_versions=__version__,
                device_serial_number="0",
            )
            seg.save_as(partial)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise DataError("DATA-07", f"{path}: cannot be written ({error.strerror}).") from error
    return path


def matching_series(volume: Volume, source: Path | Sequence[Path]) -> SeriesFiles:
    """The DICOM series of the source (folder, file or files) that has the grid of `volume`.

    Raises:
        DataError: DATA-01 and DATA-03 when the source holds no series.
        GeometryError: GEOMETRY-03 when none has that grid.
    """
    if isinstance(source, (str, Path)):
        root = Path(source)
        files = sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]
    else:
        files = [Path(file) for file in source]
    scan = group_series(files)
    if not scan.series:
        fix = "A DICOM segmentation refers to the images it was made on; else write .nii.gz."
        if scan.rejected:
            error = scan.rejected[0][1]
            raise DataError(error.code, error.message, fix=fix)
        raise DataError("DATA-01", f"{source}: no DICOM series.", fix=fix)
    for series in scan.series:
        grid = np.broadcast_to(np.uint8(0), series.shape)
        aligned = volume.reorient(orientation_of(series.affine))
        if aligned.same_grid(Volume(grid, series.affine)):
            return series
    raise GeometryError(
        "GEOMETRY-03",
        f"the label map ({volume}) lies on the grid of none of {len(scan.series)} series of the "
        "source.",
        fix="Pass the series it was made from.",
    )


def _in_file_order(path: Path, series: SeriesFiles, image: Any, segments: Any) -> Any:
    """Frames of an enhanced object lie in any order; the mask follows it."""
    if int(image.NumberOfFrames) != len(series.frames):
        raise ConfigError(
            "CONFIG-05",
            f"{path}: the source object holds {image.NumberOfFrames} frames, the series "
            f"{len(series.frames)} of them.",
            fix="Write NIfTI instead.",
        )
    ordered = np.empty_like(segments)
    for place, frame in enumerate(series.frames):
        ordered[frame.index] = segments[place]
    return ordered


def _segment(number: int, value: int, name: str) -> SegmentDescription:
    import highdicom as hd
    from highdicom.sr import CodedConcept

    abnormal = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
    normal = CodedConcept("123037004", "SCT", "Anatomical Structure")
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=abnormal if _ABNORMAL.search(name) else normal,
        segmented_property_type=CodedConcept("85756007", "SCT", "Tissue"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="core-mri",
            version=__version__,
            family=CodedConcept("123109", "DCM", "Artificial Intelligence"),
        ),
    )
    description.SegmentDescription = f"value={value}"
    return description


def _name_of(seg: Any, number: int) -> str:
    """What a segment shows: its coded property, or its label where that is tissue of any kind."""
    segment = seg.get_segment_description(number)
    meaning = str(segment.segmented_property_type.meaning).strip()
    name = str(segment.segment_label).strip() if meaning.lower() == "tissue" else meaning
    return name if _NAME.fullmatch(name) else f"segment {number}"


def _value_of(seg: Any, number: int) -> int:
    """The label value of a segment: as we noted it, else its number."""
    text = str(seg.get_segment_description(number).get("SegmentDescription", ""))
    match = _VALUE.fullmatch(text)
    return int(match[1]) if match else int(number)

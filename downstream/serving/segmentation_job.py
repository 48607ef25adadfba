"""Scans to masks: by classes at once, by boxes and clicks as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core_mri.errors import ConfigError, DataError
from core_mri.files.scans import read_volume, write_volume
from core_mri.runs import write_atomically
from core_mri.version import __version__
from downstream.serving.dicom.index import write_indexes
from downstream.serving.intake import Intake
from downstream.serving.packing import pack, unpack_own
from downstream.serving.preview import strip
from downstream.serving.results import NOT_DIAGNOSTIC, likeness, view_of
from downstream.serving.sources import Served

if TYPE_CHECKING:
    from core_mri.predictor import Predictor
    from core_mri.volume import Volume

_KINDS = {"segment": "segmentation", "prompt": "prompts"}
Progress = Callable[[float, str], None]


def store_job(
    intake: Intake, served: Served | None, out: Path, *, device: str, progress: Progress
) -> dict[str, Any]:
    """Keep DICOM objects as they are after de-identification; segment them where that is possible.

    Whatever their images make up, the objects are stored: several series, a localizer.

    Returns:
        The report; ``not_segmented`` says why there is no mask, if weights would give one.
    """
    series = {path.parent for path in intake.path.rglob("*") if path.is_file()}
    why = f"{len(series)} series" if len(series) > 1 else ""
    if not why:
        try:
            return segment_job(intake, served, out, device=device, progress=progress)
        except DataError as error:
            why = error.code
    for path in out.iterdir():
        path.unlink()
    pack(intake.path, out / "images.zip")
    return {
        "notice": f"Research use only, {NOT_DIAGNOSTIC}.",
        "kind": "stored",
        "version": __version__,
        "layout": intake.layout,
        "not_segmented": why,
        "held_back": intake.held_back,
    }


def segment_job(
    intake: Intake, served: Served | None, out: Path, *, device: str, progress: Progress
) -> dict[str, Any]:
    """Write the scan, and its mask where the weights name structures, to `out`.

    Args:
        intake: A clean scan.
        served: Weights; None writes the scan alone.
        out: An empty folder.
        device: Where they run.
        progress: Told the finished part and what is going on.

    Returns:
        The report.

    Raises:
        CoreMRIError: As `core_mri.read_volume` and `core_mri.Predictor.segment`.
    """
    start = time.perf_counter()
    volume = read_volume(intake.path)
    progress(0.3, "reading")
    write_volume(volume, out / "image.nii.gz")
    if intake.layout == "dicom":
        pack(intake.path, out / "images.zip")
    facts: dict[str, Any] = {
        "notice": f"Research use only, {NOT_DIAGNOSTIC}.",
        "kind": _KINDS[served.role] if served is not None else "stored",
        "source": served.name if served is not None else "",
        "weights_sha256": served.sha256 if served is not None else "",
        "version": __version__,
        "layout": intake.layout,
        "shape": list(volume.shape),
        "spacing_mm": [round(float(s), 4) for s in volume.spacing_mm],
        "view": view_of(volume.affine),
        "held_back": intake.held_back,
    }
    array = np.asarray(volume.array, np.float32)
    write_atomically(out / "preview.png", strip({"scan": array[..., array.shape[2] // 2].T}))
    if served is not None and served.role == "segment":
        progress(0.5, "segmenting")
        predictor = predictor_of(served, device)
        mask = predictor.segment(volume)
        facts["likeness"] = likeness(predictor.judgement)
        series = intake.path if intake.layout == "dicom" else None
        facts["structures"] = write_mask(mask, volume, out, series, served.labels)
    facts["seconds"] = round(time.perf_counter() - start, 2)
    return facts


def predictor_of(served: Served, device: str) -> Predictor:
    """The weights, loaded."""
    from core_mri.predictor import Predictor
    from core_mri.weights import load_model

    return Predictor(load_model(served.source, device=device))


def write_mask(
    mask: Volume, volume: Volume, out: Path, series: Path | None, labels: Mapping[int, str]
) -> list[dict[str, Any]]:
    """``mask.nii.gz`` and, of a DICOM series, ``mask.dcm``; the structures with their sizes."""
    write_volume(mask, out / "mask.nii.gz", like=volume)
    if series is not None and mask.array.any():
        write_volume(mask, out / "mask.dcm", like=series, labels=labels)
    ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    values, counts = np.unique(mask.array, return_counts=True)
    return [
        {
            "value": int(value),
            "name": labels.get(int(value), f"object {value}"),
            "voxels": int(count),
            "ml": round(float(count * ml), 3),
        }
        for value, count in zip(values, counts, strict=True)
        if value
    ]


class PromptedScan:
    """A scan that waits for boxes and clicks; answers after the first are quick.

    Args:
        results: Of its job.
        served: Weights with a mask decoder.
        device: Where they run.
        scratch: For the DICOM files of the scan.
    """

    def __init__(self, results: Path, served: Served, device: str, scratch: Path) -> None:
        name = next(n for n in ("image", "reconstruction") if (results / f"{n}.nii.gz").exists())
        self._series = None
        self._volume = read_volume(results / f"{name}.nii.gz")
        if (results / "images.zip").exists():
            self._series = unpack_own(results / "images.zip", scratch / "series")
            self._volume = read_volume(self._series)
        self._predictor = predictor_of(served, device)

    def answer(self, prompts: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """Write the mask of boxes and points to `out`.

        Args:
            prompts: ``boxes`` and ``points``, lists as of `core_mri.Predictor.segment`; ``world``:
                they are RAS+ mm, of a box two opposite corners.
            out: A folder.

        Raises:
            ConfigError: CONFIG-05 for prompts outside of the scan.
        """
        boxes, points = prompts["boxes"], prompts["points"]
        if prompts["world"]:
            boxes = [self._box(box) for box in boxes]
            points = [[*self._voxel(point[:3]), int(point[3])] for point in points]
        elif any(value != int(value) for prompt in (*boxes, *points) for value in prompt):
            raise ConfigError(
                "CONFIG-05", "voxel indices are whole numbers.", fix="For millimetres set world."
            )
        mask = self._predictor.segment(
            self._volume,
            boxes=[[int(value) for value in box] for box in boxes],
            points=[[int(value) for value in point] for point in points],
        )
        structures = write_mask(mask, self._volume, out, self._series, {})
        write_indexes(out)
        return {"structures": structures, "likeness": likeness(self._predictor.judgement)}

    def _box(self, box: list[float]) -> list[int]:
        corners = np.array([self._voxel(box[:3]), self._voxel(box[3:])])
        top = np.array(self._volume.shape)
        first = np.clip(corners.min(0), 0, top - 1)
        return [*first.tolist(), *np.clip(corners.max(0) + 1, first + 1, top).tolist()]

    def _voxel(self, mm: list[float]) -> list[int]:
        inverse = np.linalg.inv(self._volume.affine)
        index: list[int] = np.rint(inverse[:3, :3] @ mm + inverse[:3, 3]).astype(int).tolist()
        return index

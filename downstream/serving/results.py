"""The files that a job may leave, by name; nothing else is ever sent out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri.off_distribution import Judgement

NOT_DIAGNOSTIC = "not for diagnostic use"

RESULTS: dict[str, tuple[str, str]] = {
    "reconstruction.nii.gz": ("application/gzip", "images, NIfTI"),
    "dicom.zip": ("application/zip", "images, DICOM series"),
    "reconstruction.h5": ("application/x-hdf5", "images, fastMRI HDF5"),
    "zero_filled.nii.gz": ("application/gzip", "zero-filled, NIfTI"),
    "reference.nii.gz": ("application/gzip", "reference of the file, NIfTI"),
    "difference.nii.gz": ("application/gzip", "difference to the reference, NIfTI"),
    "image.nii.gz": ("application/gzip", "the de-identified scan, NIfTI"),
    "images.zip": ("application/zip", "the de-identified scan, DICOM"),
    "mask.nii.gz": ("application/gzip", "mask, NIfTI"),
    "mask.dcm": ("application/dicom", "mask, DICOM SEG"),
    "preview.png": ("image/png", "picture of the middle slice"),
    "report.json": ("application/json", "quality report"),
}
"""Name -> media type and what it is."""

_VIEWS = ("sagittal", "coronal", "axial")


def view_of(affine: npt.NDArray[np.float64]) -> str:
    """How slices along the third axis lie in the patient: the view that shows them as they are."""
    return _VIEWS[int(np.abs(affine[:3, 2] / np.linalg.norm(affine[:3, 2])).argmax())]


def likeness(judgement: Judgement | None) -> dict[str, Any] | None:
    """How a scan compares with what the weights saw, with a sentence; None where they do not tell.

    Args:
        judgement: Of `core_mri.Predictor`.
    """
    if judgement is None:
        return None
    sentence = (
        "This scan is unlike those the method was trained on: do not rely on the result without "
        "looking."
        if judgement.unlike
        else "This scan is like those the method was trained on."
    )
    return {**judgement.facts(), "sentence": sentence}


def as_json(report: dict[str, Any]) -> bytes:
    """A report as a file."""
    return (json.dumps(report, indent=1) + "\n").encode()

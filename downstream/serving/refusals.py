"""Errors in the words of somebody who sent a file: what is wrong with it, what to send instead."""

from __future__ import annotations

from pathlib import Path

from core_mri.errors import CoreMRIError
from downstream.serving.intake import TAKEN

_INSTEAD = {
    "DATA-01": f"Send {TAKEN}.",
    "DATA-02": "Copy the file again from where it was made, compare its size, and send it again.",
    "DATA-03": f"Send {TAKEN}.",
    "DATA-04": "Export the raw data again: samples must be finite numbers, without NaN.",
    "DATA-05": "Send a scan that shows something: all values are equal.",
    "DATA-10": "Export the series again, uncompressed or in a common transfer syntax.",
    "DATA-11": "Anonymize it at the scanner or archive first, then send it again.",
    "DATA-13": "Store it without links to other files and without extreme compression (h5repack).",
    "DATA-14": "Send Cartesian raw data whose header states the matrix it was acquired with, "
    "uncropped; convert with the vendor's ISMRMRD converter.",
    "DATA-16": "Send the original images, without text in the pixels.",
    "DATA-18": "Send the MR images themselves, no screenshots or reports.",
    "DATA-21": "Send data with at least 4 fully sampled lines at the center of k-space, or ask for "
    "zero-filled.",
    "GEOMETRY-01": "Export the series again: the distance of its voxels is missing or zero.",
    "GEOMETRY-02": "Send all slices of one series, without gaps.",
    "WEIGHTS-12": "Choose another method: this one was made for another number of coils.",
    "WEIGHTS-11": "Choose another method: the images are too small for this one.",
}


def refusal(error: CoreMRIError, scratch: Path) -> dict[str, str]:
    """Code, message and what to do, without a path of this machine."""
    message = error.message
    for place in sorted(scratch.rglob("*"), key=lambda path: -len(str(path))):
        message = message.replace(str(place), "your file")
    message = message.replace(str(scratch), "your file")
    return {
        "code": error.code,
        "message": message,
        "fix": error.fix or _INSTEAD.get(error.code, ""),
    }

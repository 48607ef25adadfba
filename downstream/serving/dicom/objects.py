"""DICOM objects of an upload, before anything is done with them."""

from __future__ import annotations

from pathlib import Path

from core_mri.errors import DataError, ServingError
from downstream.serving.dicom import syntaxes


def check_objects(folder: Path, study: str = "", *, strict: bool = False) -> dict[str, int]:
    """Erase objects that cannot be taken.

    Args:
        folder: Files; those that are no DICOM are left to others.
        study: Study instance UID that all must have; empty allows any.
        strict: Erase what is no DICOM file (PS3.10) too.

    Returns:
        How many were erased, by code.

    Raises:
        DataError: DATA-03 when nothing is a DICOM file where all must be.
        ServingError: SERVE-34 when no object has a transfer syntax that can be read, SERVE-35 when
            none is of the study.
    """
    unread, strange, others = [], 0, 0
    for path in sorted(folder.iterdir()):
        syntax = syntaxes.syntax_of(path)
        if not syntax:
            if strict:
                others += 1
                path.unlink()
            continue
        if syntax not in syntaxes.supported():
            unread.append(syntax)
            path.unlink()
        elif study and _study_of(path) != study:
            strange += 1
            path.unlink()
    if not any(folder.iterdir()):
        if others:
            raise DataError(
                "DATA-03", f"{others} parts are no DICOM files with a transfer syntax.",
                fix="Send files with preamble and file meta information (PS3.10).",
            )  # fmt: skip
        if unread:
            raise syntaxes.refused(unread)
        if strange:
            raise ServingError(
                "SERVE-35", f"none of {strange} objects is of the study of the request.",
                fix="Post them to the path of their own study, or to /dicomweb/studies.",
            )  # fmt: skip
    counts = {"DATA-03": others, "SERVE-34": len(unread), "SERVE-35": strange}
    return {code: number for code, number in counts.items() if number}


def _study_of(path: Path) -> str:
    import pydicom

    from core_mri.files.dicom_frames import quiet_pydicom

    try:
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[0x0020000D])
        return str(header.get("StudyInstanceUID", ""))
    except Exception:  # damaged: the engine says so
        return ""

"""What runs in the process of a job; importing it loads torch, so that processes fork with it."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core_mri.errors import CoreMRIError, ServingError
from core_mri.runs import write_atomically
from downstream.serving.dicom.index import write_indexes
from downstream.serving.intake import kind_of, take_in
from downstream.serving.mrd.connection import do_mrd
from downstream.serving.orders import JobWork, PromptWork
from downstream.serving.reconstruction_job import reconstruct_job
from downstream.serving.results import as_json
from downstream.serving.segmentation_job import PromptedScan, segment_job, store_job
from downstream.serving.sources import Served, describe, find
from downstream.serving.spool import Spool
from downstream.serving.submission_job import submission_job

__all__ = ["do_describe", "do_job", "do_mrd", "do_prompts"]

for _name in (
    "cryptography.hazmat.primitives.ciphers.aead", "h5py", "ismrmrd",
    "matplotlib.backends.backend_agg", "nibabel", "pydicom", "scipy.ndimage", "skimage.metrics",
    "core_mri.metrics", "data_registry.deidentify.raw_data",
):  # fmt: skip
    importlib.import_module(_name)  # once, before the fork: every job would do it again

Message = dict[str, Any]
Tell = Callable[[Message], None]
Hear = Callable[[], Message]


def do_job(work: JobWork, tell: Tell, _hear: Hear) -> Message:
    """One job, from the sealed upload to its results.

    Raises:
        CoreMRIError: Whatever is wrong with the file.
    """
    torch.set_num_threads(1)

    def progress(part: float, phase: str) -> None:
        tell({"progress": round(part, 3), "phase": phase})

    progress(0.0, "unsealing")
    sent = _unsealed(work)
    if "leaderboard" in work.request:
        report = submission_job(sent, work, progress)
        write_atomically(work.out / "report.json", as_json(report))
        return report
    boundary = str(work.request.get("boundary", ""))
    kind = "multipart" if boundary else kind_of(sent)
    served = _source(work, is_raw=kind in ("hdf5", "npy"))
    progress(0.03, "de-identifying")
    (work.scratch / "clean").mkdir()
    intake = take_in(
        sent, kind, work.scratch / "clean", work.key, boundary=boundary,
        study=str(work.request.get("study", "")),
    )  # fmt: skip
    if work.request.get("store"):
        report = store_job(intake, served, work.out, device=work.device, progress=progress)
    elif intake.is_raw and served is not None:
        report = reconstruct_job(
            intake, served, work.request, work.out, work.scratch, seed=work.job,
            device=work.device, progress=progress,
        )  # fmt: skip
    else:
        report = segment_job(intake, served, work.out, device=work.device, progress=progress)
    write_indexes(work.out)
    write_atomically(work.out / "report.json", as_json(report))
    return report


def do_prompts(work: PromptWork, tell: Tell, hear: Hear) -> Message:
    """Answer prompts until the service ends us."""
    torch.set_num_threads(1)
    scan = PromptedScan(work.results, work.served, work.device, work.scratch)
    tell({"ready": True})
    while True:
        asked = hear()
        out = Path(asked["out"])
        try:
            tell({"answer": scan.answer(asked["prompts"], out)})
        except CoreMRIError as error:
            tell({"refused": {"code": error.code, "message": error.message, "fix": error.fix}})


def do_describe(source: tuple[str, str], _tell: Tell, _hear: Hear) -> Message:
    """What weights do (`Served` as JSON); torch stays out of the service itself."""
    served = describe(*source)
    return {**vars(served), "labels": list(served.labels.items())}


def _unsealed(work: JobWork) -> Path:
    path, digest = work.scratch / "sent", hashlib.sha256()
    with path.open("wb") as file:
        for part in Spool(work.spool).read(work.job, work.size):
            file.write(part)
            digest.update(part)
    wanted = work.request.get("sha256")
    if wanted and wanted.lower() != digest.hexdigest():
        raise ServingError(
            "SERVE-03",
            "what arrived has another SHA-256 than was announced.",
            fix="Upload the file again.",
        )
    return path


def _source(work: JobWork, *, is_raw: bool) -> Served | None:
    """The source that was asked for, or the first one that takes such a file.

    None where objects are only stored.
    """
    name = work.request.get("source") or ""
    roles = ("reconstruct",) if is_raw else ("segment", "prompt")
    for role in roles:
        served = find(work.sources, name, role)  # type: ignore[arg-type]
        if served is not None:
            return served
    if work.request.get("store"):
        return None
    what = "raw data, which is reconstructed" if is_raw else "images, which are segmented"
    wanted = "images (a zip of one DICOM series, NIfTI)" if is_raw else "raw data (HDF5)"
    raise ServingError(
        "SERVE-08",
        f"your file holds {what}; {name or 'this service'} takes {wanted}.",
        fix=f"Send {wanted}, or choose another method.",
    )

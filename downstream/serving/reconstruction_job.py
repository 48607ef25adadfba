"""Raw data to images: reconstructed, zero-filled and the reference of the file, in all forms."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from core_mri.devices import available_cores
from core_mri.files.dicom_write import write_dicom_series
from core_mri.files.kspace import read_kspace
from core_mri.files.scans import write_volume
from core_mri.kspace_inference import image_volume
from core_mri.physics.coils import root_sum_of_squares
from core_mri.physics.fourier import ifft2c
from core_mri.physics.masks import center_lines
from core_mri.physics.preparation import center_crop
from core_mri.runs import write_atomically
from core_mri.version import __version__
from downstream.reconstruction.config import ReconstructConfig
from downstream.reconstruction.scores import volume_scores
from downstream.reconstruction.stream import Scan, reconstruct_file
from downstream.serving.intake import Intake
from downstream.serving.packing import pack
from downstream.serving.preview import strip
from downstream.serving.results import NOT_DIAGNOSTIC, likeness, view_of
from downstream.serving.sources import Served

Image = npt.NDArray[np.float32]
Progress = Callable[[float, str], None]


def reconstruct_job(
    intake: Intake,
    served: Served,
    request: dict[str, Any],
    out: Path,
    scratch: Path,
    *,
    seed: str,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Write all results of raw data to `out`.

    Args:
        intake: Clean raw data.
        served: Solver or network.
        request: ``mask``: undersampling to simulate, or None.
        out: A folder.
        scratch: For what is thrown away.
        seed: From which the UIDs of the series follow, so that a repeated job makes the same.
        device: Of a network.
        progress: Told the finished part and what is going on.

    Returns:
        The report.

    Raises:
        CoreMRIError: As `reconstruct_file`.
    """
    start = time.perf_counter()
    config = _config(intake, served, request, out / "reconstruction.h5", device)
    scan = reconstruct_file(config, progress=_slices(progress, 0.1, 0.7))
    plain = None
    if served.source != "zero-filled":
        progress(0.7, "zero-filled")
        plain = _zero_filled(scan)
    progress(0.8, "writing")
    reference, estimate, base = _comparable(scan, plain)
    volumes = {"reconstruction": _volume(scan, scan.images, served.name)}
    if plain is not None:
        volumes["zero_filled"] = _volume(scan, plain, "zero-filled")
    if reference is not None:
        volumes["reference"] = _volume(scan, reference, scan.reference_name)
        volumes["difference"] = _volume(scan, np.abs(estimate - reference), "difference")
    for name, volume in volumes.items():
        write_volume(volume, out / f"{name}.nii.gz")
    facts = _facts(scan, served, intake)
    facts["view"] = view_of(volumes["reconstruction"].affine)
    if reference is not None:
        facts["metrics"] = {
            "reference": scan.reference_name,
            served.name: _scores(reference, estimate),
            **({} if base is None else {"zero-filled": _scores(reference, base)}),
        }
    progress(0.85, "writing DICOM")
    series = scratch / "dicom"
    write_dicom_series(volumes["reconstruction"], series, seed=seed, derivation=_derivation(facts))
    pack(series, out / "dicom.zip")
    progress(0.95, "drawing")
    middle = len(estimate) // 2
    panels = {served.name: estimate[middle]}
    if base is not None:
        panels = {"zero-filled": base[middle], **panels}
    shown = None if reference is None else reference[middle]
    write_atomically(out / "preview.png", strip(panels, reference=shown))
    facts["seconds"] = round(time.perf_counter() - start, 2)
    return facts


def _config(
    intake: Intake, served: Served, request: dict[str, Any], out: Path, device: str
) -> ReconstructConfig:
    mask = request.get("mask")
    drawn = {}
    if mask is not None:
        drawn = {
            "mask": mask["kind"],
            "acceleration": mask["acceleration"],
            "center_fraction": mask["center_fraction"],
            "seed": str(mask["seed"]),
        }
    return ReconstructConfig(
        source=served.source, kspace=intake.path, out=out, device=device, **drawn
    )


def _slices(progress: Progress, first: float, last: float) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        progress(first + (last - first) * done / total, f"slice {done} of {total}")

    return told


def _volume(scan: Scan, images: Image, name: str) -> Any:
    return image_volume(images, scan.header, scan.shape, f"{name}, {NOT_DIAGNOSTIC}")


def _zero_filled(scan: Scan) -> Image:
    """Root sum of squares of what was measured, for comparison; no coil maps are made for it."""
    size = scan.images.shape[1:]
    with read_kspace(scan.config.kspace) as kspace:

        def image(index: int) -> Image:
            kept, _ = scan.sampling.apply(kspace.read_slice(index))
            whole = root_sum_of_squares(ifft2c(torch.from_numpy(kept)), 0)
            return center_crop(whole, size).numpy()

        with ThreadPoolExecutor(available_cores()) as pool:
            return np.stack(list(pool.map(image, range(kspace.shape[0]))))


def _comparable(scan: Scan, plain: Image | None) -> tuple[Image | None, Image, Image | None]:
    """Reference, reconstruction and zero-filled, cut to the size of the reference."""
    if scan.reference is None:
        return None, scan.images, plain
    rows, columns = scan.reference.shape[1:]
    base = None if plain is None else _middle(plain, rows, columns)
    return scan.reference, _middle(scan.images, rows, columns), base


def _middle(images: Image, rows: int, columns: int) -> Image:
    top, left = (images.shape[1] - rows) // 2, (images.shape[2] - columns) // 2
    return images[:, top : top + rows, left : left + columns]


def _scores(reference: Image, estimate: Image) -> dict[str, float | None]:
    """Those of fastMRI; None for an infinite PSNR, of equal images."""
    scores = volume_scores(reference, estimate)
    return {name: float(v) if np.isfinite(v) else None for name, v in scores.items()}


def _facts(scan: Scan, served: Served, intake: Intake) -> dict[str, Any]:
    """The quality report."""
    mask = scan.sampling.mask
    slices, height, width = scan.images.shape
    return {
        "notice": f"Research use only, {NOT_DIAGNOSTIC}.",
        "kind": "reconstruction",
        "source": served.name,
        "weights_sha256": served.sha256,
        "version": __version__,
        "layout": scan.layout,
        "slices": slices,
        "rows": height,
        "columns": width,
        "coils": scan.shape[1],
        "encoded": list(scan.shape[2:]),
        "acceleration": round(scan.sampling.acceleration, 3),
        "center_lines": int(center_lines(mask)) if mask.ndim == 1 else None,
        "simulated_undersampling": scan.sampling.drawn,
        "geometry": "from the raw data" if scan.header.affine is not None else "synthetic",
        "likeness": likeness(scan.judgement),
        "residual": scan.residuals,
        "cpu_s": [round(s, 3) for s in scan.cpu_s],
        "metrics": None,
        "held_back": intake.held_back,
    }


def _derivation(facts: dict[str, Any]) -> str:
    simulated = ", undersampling simulated" if facts["simulated_undersampling"] else ""
    return (
        f"Reconstructed by core-mri {__version__}, {facts['source']}, "
        f"{facts['acceleration']:.2f}-fold undersampled{simulated}. Research use only, "
        f"{NOT_DIAGNOSTIC}."
    )

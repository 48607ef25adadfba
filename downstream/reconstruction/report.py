"""The page of one reconstruction: pictures, zoom, errors five times as bright, times."""

from __future__ import annotations

import numpy as np

from core_mri.devices import environment
from core_mri.pictures import comparison, contact_sheet
from core_mri.reports import Report
from downstream.reconstruction.scores import volume_scores
from downstream.reconstruction.stream import Scan

MAX_SHEET = 24
ERROR_GAIN = 5


def scan_report(scan: Scan) -> Report:
    """Verdict, slices, the middle slice in detail, numbers and settings."""
    config, (slices, height, width) = scan.config, scan.images.shape
    simulated = " Undersampling is simulated." if scan.sampling.drawn else ""
    verdict = (
        f"{slices} slice{'s' if slices > 1 else ''} by {config.source}, "
        f"{scan.sampling.acceleration:.2f}-fold undersampled, "
        f"{sum(scan.cpu_s) / slices:.2f} CPU-seconds a slice.{simulated}"
    )
    residuals = [r for r in scan.residuals if r is not None]
    if residuals:
        verdict += f" Residual of the measured samples at most {max(residuals):.4f}."
    rows: list[dict[str, str | int | float | bool | None]] = []
    if scan.reference is not None:
        scores = volume_scores(scan.reference, scan.images)
        verdict += f" PSNR {scores['PSNR']:.2f} dB, SSIM {scores['SSIM']:.4f}."
        rows.append({"volume": "all slices", **scores})
    report = Report(f"Reconstruction of {config.kspace.name}", verdict, "Not for diagnosis.")
    middle = slices // 2
    report.add_figure(
        "Middle slice",
        comparison(
            scan.images[middle],
            None if scan.reference is None else scan.reference[middle],
            zoom=(3 * height // 8, 3 * width // 8, max(height // 4, 1), max(width // 4, 1)),
            gain=ERROR_GAIN,
        ),
        f"Slice {middle}: whole, and the marked window enlarged."
        + (f" Right: the difference to {scan.reference_name}, {ERROR_GAIN} times as bright."
           if scan.reference is not None else ""),
    )  # fmt: skip
    if scan.errors is not None:
        report.add_figure(
            "Error map",
            contact_sheet(
                [scan.images[middle], scan.errors[middle]], [f"{middle}", "estimated error"]
            ),
            "Where two halves of the samples and all of them disagree; smoothed, in its own window "
            f"(largest value {scan.errors[middle].max():.3g}, of the image "
            f"{scan.images[middle].max():.3g}). Small is no proof: errors that all share are not "
            "seen.",
        )
    shown = np.unique(np.linspace(0, slices - 1, min(slices, MAX_SHEET)).round().astype(int))
    report.add_figure(
        "Slices",
        contact_sheet([scan.images[i] for i in shown], [f"{i}" for i in shown]),
        "Rows along the readout, columns along the phase encoding; each slice in its own window.",
    )
    if rows:
        report.add_table(
            "Scores", rows, f"As fastMRI scores, over the volume, against {scan.reference_name}."
        )
    columns = (scan.residuals, scan.weights, scan.wall_s, scan.cpu_s)
    report.add_table(
        "Slice by slice",
        [
            {"slice": i, "residual": r, "regularization": w, "wall s": t, "CPU s": c}
            for i, (r, w, t, c) in enumerate(zip(*columns, strict=True))
        ],
        "Residual: |M F S x - y| / |y| over the measured samples, whose noise is in it; none "
        f"without a center for coil maps. Times with maps, in all {scan.total_s:.1f} s.",
    )
    geometry = (
        "from the raw data" if scan.header.affine is not None else "synthetic: none is stated"
    )
    report.add_facts(
        "Scan",
        {
            "layout": scan.layout, "coils": scan.shape[1],
            "readout x phase": f"{scan.shape[2]} x {scan.shape[3]}",
            "image": f"{height} x {width}", "geometry": geometry,
        },
    )  # fmt: skip
    settings = {
        name: str(getattr(config, name))
        for name in ("source", "backend", "maps", "mask", "acceleration", "center_fraction", "seed",
                     "weight", "iterations", "partial_fourier", "whiten", "remove_oversampling")
    }  # fmt: skip
    report.add_facts("Settings", settings)
    versions = environment().get("packages")
    if isinstance(versions, dict):
        report.add_facts("Software", {str(k): str(v) for k, v in versions.items()})
    return report

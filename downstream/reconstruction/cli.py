"""The verb `core-mri reconstruct`, and `core-mri evaluate` for suites of raw data."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from downstream.reconstruction.stream import Scan


def reconstruct_main(arguments: Sequence[str]) -> int:
    """Slices of a raw data file: ``SOURCE KSPACE --out F [flags]``."""
    import tyro

    from downstream.reconstruction.config import ReconstructConfig

    config = tyro.cli(ReconstructConfig, prog="core-mri reconstruct", args=list(arguments))
    from downstream.reconstruction.outputs import check_output
    from downstream.reconstruction.stream import reconstruct_file

    logging.getLogger("downstream").setLevel(logging.INFO)
    check_output(config)
    scan = reconstruct_file(config)
    if config.json:
        print(json.dumps(facts(scan)))
    else:
        print("\n".join(summary(scan)))
    if config.report is not None:
        from downstream.reconstruction.report import scan_report

        scan_report(scan).write(config.report)
        if not config.json:
            print(f"report: {config.report}")
    if scan.header.affine is None and config.out.suffix not in (".h5", ".hdf5"):
        print("the raw data states no position: geometry is synthetic", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Options:
    """Flags that change no result."""

    resume: bool = False
    """Demand that the output folder holds an unfinished suite."""


def evaluate_main(arguments: Sequence[str], folder: Path) -> int:
    """Reconstructions to one report: ``SUITE.yaml [flags] [--resume]``."""
    from core_mri.config import parse_command
    from downstream.cli import table
    from downstream.reconstruction.suite import ReconstructionSuite, evaluate_reconstruction

    suite, options = parse_command(
        ReconstructionSuite, Options, arguments, program="core-mri evaluate", folder=folder
    )
    logging.getLogger("downstream").setLevel(logging.INFO)
    out = evaluate_reconstruction(suite, resume=options.resume)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    print(table([row | {"p_holm": None} for row in results["summary"]]))
    if results["failed"]:
        print(f"{len(results['failed'])} failed: see {out / 'report.html'}")
    print(f"\nreport: {out / 'report.html'}\nimages: {out / 'submissions'}")
    return 1 if results["failed"] else 0


def summary(scan: Scan) -> list[str]:
    """What was done, in a few lines."""
    from downstream.reconstruction.scores import volume_scores

    slices, height, width = scan.images.shape
    weights = [w for w in scan.weights if w is not None]
    residuals = [r for r in scan.residuals if r is not None]
    lines = [
        f"{scan.config.out}: {slices} slice{'s' if slices > 1 else ''} of {height}x{width}, "
        f"{scan.config.source}, {scan.sampling.acceleration:.2f}-fold undersampled, "
        f"{scan.shape[1]} coils",
        f"{sum(scan.cpu_s) / slices:.2f} CPU-s a slice, {scan.total_s:.1f} s in all",
    ]
    if residuals:
        lines.append(
            f"residual of the measured samples {min(residuals):.4f} to {max(residuals):.4f}"
        )
    if weights:
        lines.append(
            f"regularization {min(weights):.4f} to {max(weights):.4f} of the largest value"
        )
    if scan.judgement is not None:
        lines.append(f"a scan {scan.judgement}")
    if scan.reference is not None:
        scores = volume_scores(scan.reference, scan.images)
        simulated = ", undersampling simulated" if scan.sampling.drawn else ""
        lines.append(
            f"against {scan.reference_name}{simulated}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        )
    return lines


def facts(scan: Scan) -> dict[str, object]:
    """The same for programs."""
    from downstream.reconstruction.outputs import error_path
    from downstream.reconstruction.scores import volume_scores

    config, scored = scan.config, scan.reference is not None
    in_file = config.out.suffix.lower() in (".h5", ".hdf5")
    beside = str(config.out if in_file else error_path(config.out))
    return {
        "out": str(config.out),
        "error_map": beside if config.error_map else None,
        "source": config.source,
        "shape": list(scan.images.shape),
        "coils": scan.shape[1],
        "acceleration": scan.sampling.acceleration,
        "simulated_undersampling": scan.sampling.drawn,
        "residual": scan.residuals,
        "weight": scan.weights,
        "wall_s": scan.wall_s,
        "cpu_s": scan.cpu_s,
        "likeness": None if scan.judgement is None else scan.judgement.facts(),
        "reference": scan.reference_name or None,
        "scores": volume_scores(scan.reference, scan.images) if scored else None,  # type: ignore[arg-type]
    }

"""`core-mri finetune` and `core-mri evaluate` for networks that reconstruct."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def finetune_main(arguments: Sequence[str], folder: Path) -> int:
    """Train a network for reconstruction: ``CONFIG [flags] [--dry-run | --resume]``."""
    from core_mri.config import parse_command
    from downstream.cli import FinetuneOptions, Task, carry_out
    from downstream.reconstruction.training.config import ReconstructionConfig
    from downstream.reconstruction.training.finetune import (
        finetune_reconstruction,
        rehearse_reconstruction,
    )

    config, options = parse_command(
        ReconstructionConfig,
        FinetuneOptions,
        arguments,
        program="core-mri finetune",
        folder=folder,
    )
    task = Task(
        heading=f"finetune: {config.network.name}, {config.supervision}, seed {config.seed}, "
        f"device {config.device}",
        out=config.out,
        rehearse=lambda: rehearse_reconstruction(config),
        run=lambda: finetune_reconstruction(config, resume=options.resume, workers=options.workers),
        told=lambda _results, out: [
            f"\nreport: {out / 'report.html'}",
            f"weights: {out / 'weights'}",
            "next:",
            f"  core-mri reconstruct {shlex.quote(str(out))} KSPACE.h5 --out F.h5",
        ],
    )
    return carry_out(task, options)


def evaluate_main(arguments: Sequence[str], folder: Path) -> int:
    """Networks and classical methods in one table: ``SUITE.yaml [--dry-run | --resume]``."""
    from core_mri.config import parse_command
    from downstream.cli import Options, Task, carry_out
    from downstream.reconstruction.training.study import evaluate_study, rehearse_study
    from downstream.reconstruction.training.study_config import ReconstructionStudy

    study, options = parse_command(
        ReconstructionStudy, Options, arguments, program="core-mri evaluate", folder=folder
    )
    task = Task(
        heading=f"evaluate: {', '.join(study.contenders)} beside {', '.join(study.classical)}; "
        f"{study.steps} steps, seeds {list(study.seeds)}",
        out=study.out,
        rehearse=lambda: rehearse_study(study),
        run=lambda: evaluate_study(study, resume=options.resume),
        told=lambda results, out: [
            *_differences(results),
            *(f"failed: {cell['cell']}: {cell['error']}" for cell in results["failed"]),
            f"\nreport: {out / 'report.html'}",
            f"results: {out / 'results.json'}, results.csv",
        ],
    )
    return carry_out(task, options)


def _differences(results: Mapping[str, Any]) -> Iterator[str]:
    for row in results["comparisons"]:
        p = "-" if row["p_holm"] is None else f"{row['p_holm']:.4f}"
        yield (
            f"{row['task']}: {row['weights']} minus {row['minus']}, {row['k']} labelled: "
            f"{row['difference']:+.2f} dB ({row['ci_low']:.2f} to {row['ci_high']:.2f}), "
            f"{row['n']} patients, p (Holm) {p}"
        )

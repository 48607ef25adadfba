"""`core-mri finetune` and `core-mri evaluate` for networks that reconstruct."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def finetune_main(arguments: Sequence[str], folder: Path) -> int:
    """Train a network for reconstruction: ``CONFIG [flags] [--dry-run | --resume]``."""
    from core_mri.config import parse_command
    from downstream.cli import FinetuneOptions, table
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
    logging.getLogger("downstream").setLevel(logging.INFO)
    print(
        f"finetune: {config.network.name}, {config.supervision}, seed {config.seed}, device "
        f"{config.device}\noutput: {config.out}",
        file=sys.stderr,
    )
    if options.dry_run:
        print("\n".join(rehearse_reconstruction(config)))
        return 0
    out = finetune_reconstruction(config, resume=options.resume, workers=options.workers)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    print(table(results["summary"]))
    quoted = shlex.quote(str(out))
    print(f"\nreport: {out / 'report.html'}\nweights: {out / 'weights'}")
    print(f"next:\n  core-mri reconstruct {quoted} KSPACE.h5 --out F.h5")
    return 0


def evaluate_main(arguments: Sequence[str], folder: Path) -> int:
    """Networks and classical methods in one table: ``SUITE.yaml [--dry-run | --resume]``."""
    from core_mri.config import parse_command
    from downstream.cli import Options, table
    from downstream.reconstruction.training.study import evaluate_study, rehearse_study
    from downstream.reconstruction.training.study_config import ReconstructionStudy

    study, options = parse_command(
        ReconstructionStudy, Options, arguments, program="core-mri evaluate", folder=folder
    )
    logging.getLogger("downstream").setLevel(logging.INFO)
    print(
        f"evaluate: {', '.join(study.contenders)} beside {', '.join(study.classical)}; "
        f"{study.steps} steps, seeds {list(study.seeds)}\noutput: {study.out}",
        file=sys.stderr,
    )
    if options.dry_run:
        print("\n".join(rehearse_study(study)))
        return 0
    out = evaluate_study(study, resume=options.resume)
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    print(table(results["summary"]))
    for row in results["comparisons"]:
        p = "-" if row["p_holm"] is None else f"{row['p_holm']:.4f}"
        print(
            f"{row['task']}: {row['weights']} minus {row['minus']}, {row['k']} labelled: "
            f"{row['difference']:+.2f} dB ({row['ci_low']:.2f} to {row['ci_high']:.2f}), "
            f"{row['n']} patients, p (Holm) {p}"
        )
    for cell in results["failed"]:
        print(f"failed: {cell['cell']}: {cell['error']}")
    print(f"\nreport: {out / 'report.html'}\nresults: {out / 'results.json'}, results.csv")
    return 1 if results["failed"] else 0

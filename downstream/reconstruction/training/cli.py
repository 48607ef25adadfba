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

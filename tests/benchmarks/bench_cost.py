"""How well ``core-mri pretrain cost`` foretells the speed of steps that it was not calibrated on.

    python tests/benchmarks/bench_cost.py [--rounds 3] [--steps 4] [--registry FOLDER] [--keep DIR]
    python tests/benchmarks/bench_cost.py --measured DIR --calibrated NAME NAME

Two settings calibrate (`CALIBRATED`); the others differ from both in views, width, prototypes,
batch or drop path. All take turns in each round, each as ``pretrain bench`` measures it but in
processor time of one thread, since other programs may share the machine; medians over the rounds so
far are printed after each, and written to --keep, a file a setting. Without --registry, slices are
those of synthetic phantoms of 96 px. Random weights, seed 0.

--measured compares what lies there: files of ``pretrain bench CONFIG --json``, all of one device.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from core_mri.config import load_config
from core_mri.files.nifti import write_nifti
from core_mri.physics.phantoms import phantom_volume
from data_registry import IngestConfig, Source, ingest
from pretrain.bench import Bench, bench
from pretrain.calibration import load_calibration
from pretrain.config import CONFIGS, PretrainConfig
from pretrain.flops import StepWork

CALIBRATED = ("micro", "tiny, 16384 prototypes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--registry", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--measured", type=Path)
    parser.add_argument("--calibrated", nargs="+")
    arguments = parser.parse_args()
    if arguments.measured:
        compare(arguments.measured, arguments.calibrated)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = settings(arguments.registry or phantoms(folder))
        kept = arguments.keep or folder / "measured"
        kept.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[Bench]] = {name: [] for name in runs}
        for number in range(1, arguments.rounds + 1):
            for setting, config in runs.items():
                found[setting].append(bench(config, arguments.steps, clock=time.process_time))
                (kept / f"{setting}.json").write_text(json.dumps(median(found[setting])))
            print(f"\nafter {number} round(s) of {arguments.steps} steps")
            compare(kept, CALIBRATED)


def settings(registry: Path) -> dict[str, PretrainConfig]:
    """Runs by their names; float32 on the processor, without figures of health."""
    base = load_config(PretrainConfig, CONFIGS / "tiny_cpu.yaml")
    base = replace(
        base,
        registry=registry,
        out=registry / "no-run",
        device="cpu",
        health=replace(base.health, every=10**6, probe_every=0),
    )

    def run(
        views: Mapping[str, Any] | None = None, prototypes: int = 1024, **changes: Any
    ) -> PretrainConfig:
        return replace(
            base,
            views=replace(base.views, **(views or {})),
            objective=replace(base.objective, num_prototypes=prototypes),
            **changes,
        )

    tiny: dict[str, Any] = {"model": "vit_tiny_patch8", "batch_size": 16}
    return {
        CALIBRATED[0]: run(),
        CALIBRATED[1]: run(prototypes=16384, **tiny),
        "micro, 10 local views": run({"num_local": 10}),
        "micro, 96 and 48 px": run({"global_size": 96, "local_size": 48}),
        "micro, 8192 prototypes": run(prototypes=8192),
        "micro, batch 64": run(batch_size=64),
        "tiny, 4096 prototypes, drop path 0.3": run(prototypes=4096, drop_path=0.3, **tiny),
        "small, 128 and 64 px": run(
            {"global_size": 128, "local_size": 64}, model="vit_small_patch16", batch_size=16
        ),
    }


def phantoms(folder: Path) -> Path:
    """A registry of synthetic scans."""
    for region in ("brain", "knee", "heart"):
        for subject in range(10):
            scan = folder / "scans" / f"sub-{subject:02d}{region}" / f"{region}_T1.nii.gz"
            scan.parent.mkdir(parents=True)
            write_nifti(phantom_volume(region, subject, size=96, num_slices=8)[0], scan)
    source = Source(name="phantoms", licence="CC0-1.0", root=str(folder / "scans"), synthetic=True)
    ingest(IngestConfig(registry=folder / "registry", sources=(source,), jobs=1))
    return folder / "registry"


def median(rows: list[Bench]) -> dict[str, Any]:
    """The row of the round with the median time."""
    return asdict(sorted(rows, key=lambda row: row.seconds_per_step)[(len(rows) - 1) // 2])


def compare(folder: Path, calibrated: Sequence[str]) -> None:
    """Print measured and foretold images a second, waiting for slices left out."""
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    both = load_calibration([files[name] for name in calibrated])
    one = load_calibration([files[calibrated[0]]])
    print(f"{'setting':<36} measured  foretold   error   with the first alone")
    for name in sorted(files, key=lambda name: name not in calibrated):
        row = json.loads(files[name].read_text())
        seconds = row["seconds_per_step"] * (1 - row["data_wait"])
        work = StepWork(**row["work"])
        print(
            f"{name:<36} {row['batch_size'] / seconds:8.1f}  "
            f"{row['batch_size'] / both.seconds(work):8.1f}  "
            f"{seconds / both.seconds(work) - 1:+6.1%}  {seconds / one.seconds(work) - 1:+6.1%}"
            f"{'   (calibrated on)' if name in calibrated else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()

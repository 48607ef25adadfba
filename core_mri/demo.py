"""`core-mri demo`: the whole chain, verb by verb, on scans that need no download.

Real scans come from inside installed packages (the `demo` extra); phantoms of several body regions
are synthetic and called so. Each step is the verb a user would type; running the demo again in the
same folder continues where it stopped.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core_mri.errors import ConfigError
from core_mri.runs import write_atomically, writing

NUM_SUBJECTS = 44
"""Synthetic subjects; about one in five falls into the test split."""
SEQUENCES = ("T1", "T2", "PD")
SIZE, NUM_SLICES = 96, 10
"""Pixels of a side and slices of a phantom."""
SPLIT_KEY = f"{27:064x}"
"""The key of the demo's registry. It is public, so that everybody gets the same split; the ids it
makes protect nobody, which synthetic and public scans do not need. It is the first number whose
draw gives 29 of the 44 synthetic subjects to training, 5 to validation and 10 to test."""
MARKER = "demo.json"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The whole chain on embedded data, ending with a report. Under five minutes on two cores."""

    out: Path = Path("demo")
    """Folder for everything; new, empty or of an earlier demo."""
    launcher: str = "ray"
    """How pretraining runs: ray, torchrun or local."""
    num_workers: int = 2
    """Worker processes of pretraining."""
    ray: str | None = None
    """Address of a Ray cluster; by default one is started here for the run."""
    steps: int = 80
    """Optimizer steps of pretraining."""


def main(arguments: Sequence[str]) -> int:
    """The verb."""
    import tyro

    options = tyro.cli(DemoOptions, args=list(arguments), prog="core-mri demo")
    out: Path = options.out
    started = time.perf_counter()
    _prepare(out)
    registry = str(out / "registry")
    key = ["--key-file", str(out / "registry.key")]
    launcher = ["--launcher", options.launcher]
    launcher += ["--num-workers", str(options.num_workers if options.launcher != "local" else 1)]
    launcher += ["--ray", options.ray] if options.ray else []
    steps = ["--steps", str(options.steps)]
    transfer = ["--registry", registry, "--weights", str(out / "pretrain")]
    evaluation = out / "evaluate"
    _verb("data", "ingest", "--sources", "embedded", "--registry", registry, *key)
    _verb("data", "ingest", "--sources", str(out / "scans.yaml"), "--registry", registry, *key)
    _verb(
        *("pretrain", "run", "tiny_cpu", "--registry", registry, "--out", str(out / "pretrain")),
        *(*steps, *launcher),
    )
    _verb("finetune", "few_shot_5", *transfer, "--out", str(out / "finetune-organs"))
    _verb("finetune", "linear_probe", *transfer, "--out", str(out / "finetune-sequence"))
    _verb(
        *("evaluate", "demo", "--registry", registry, "--out", str(evaluation)),
        *("--weights.demo-encoder", str(out / "pretrain"), "--reuse"),
        *(str(out / "finetune-organs"), str(out / "finetune-sequence")),
    )
    for name in ("results.json", "results.csv", "report.html"):
        shutil.copy(evaluation / name, out / name)
    verdict = json.loads((out / "results.json").read_text(encoding="utf-8"))["verdict"]
    print(_ending(out, verdict, time.perf_counter() - started))
    return 0


def _verb(*words: str) -> None:
    """Run one verb in this process, announced as a user would type it."""
    from core_mri.__main__ import VERBS

    print(f"\n$ core-mri {shlex.join(words)}", flush=True)
    started = time.perf_counter()
    module, _, function = VERBS[words[0]][0].partition(":")
    code = getattr(importlib.import_module(module), function)(list(words[1:]))
    if code:
        raise SystemExit(code)
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)


def _prepare(out: Path) -> None:
    """Write phantoms, the derived tissue labels, their source list and the public key, once.

    Raises:
        ConfigError: CONFIG-03 when `out` holds something else, CONFIG-06 without the demo extra.
    """
    for package in ("nilearn", "data_store"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                "CONFIG-06",
                f"the demo's scans come with {package}, which is not installed.",
                fix='Install them: pip install "core-mri[demo]".',
            )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (out / MARKER).exists():
            raise ConfigError(
                "CONFIG-03",
                f"{out}: the output folder is not empty and holds no demo.",
                fix="Choose another folder with --out.",
            )
        facts = {"subjects": NUM_SUBJECTS, "size": SIZE, "slices": NUM_SLICES}
        write_atomically(out / MARKER, json.dumps(facts).encode())
        if (out / "scans.yaml").exists():
            return
        print("Writing synthetic phantoms of nine body regions ...", file=sys.stderr, flush=True)
        shutil.rmtree(out / "scans", ignore_errors=True)
        _write_phantoms(out / "scans" / "phantoms")
        _write_tissue(out / "scans" / "icbm152")
        key = out / "registry.key"
        key.touch(mode=0o600)
        key.write_text(SPLIT_KEY + "\n", encoding="ascii")
        write_atomically(out / "scans.yaml", _source_list().encode())


def _write_phantoms(folder: Path) -> None:
    """Each synthetic subject: an abdomen with organ labels (NIfTI) and another region (DICOM)."""
    from core_mri.files.dicom_write import write_dicom_series
    from core_mri.files.nifti import write_nifti
    from core_mri.physics.phantoms import REGIONS, phantom_volume

    others = [region for region in REGIONS if region != "abdomen"]
    for subject in range(NUM_SUBJECTS):
        name = f"sub-{subject:03d}"
        sequence = SEQUENCES[subject % len(SEQUENCES)]
        image, labels = phantom_volume(
            "abdomen", subject, sequence, size=SIZE, num_slices=NUM_SLICES
        )
        (folder / name).mkdir(parents=True)
        write_nifti(image, folder / name / f"{name}_abdomen_{sequence}.nii.gz")
        write_nifti(labels, folder / name / f"{name}_abdomen_organs.nii.gz")
        region = others[subject % len(others)]
        sequence = SEQUENCES[(subject // len(others)) % len(SEQUENCES)]
        image, _ = phantom_volume(region, subject, sequence, size=SIZE, num_slices=NUM_SLICES)
        write_dicom_series(
            image,
            folder / name / f"{region}_{sequence}",
            facts={
                **image.facts,
                "PatientID": name,
                "PatientName": f"Phantom^{region.capitalize()}",
                "SeriesDescription": f"{region} {sequence}",
            },
            seed=f"{name} {region} {sequence}",
        )


def _write_tissue(folder: Path) -> None:
    """Labels derived from nilearn's probability maps: 1 gray matter, 2 white matter (p > 0.5)."""
    from core_mri.files.nifti import read_nifti, write_nifti

    found = importlib.util.find_spec("nilearn")
    assert found is not None
    assert found.submodule_search_locations is not None
    maps = Path(next(iter(found.submodule_search_locations)), "datasets", "data")
    gray, white = (
        read_nifti(maps / f"mni_icbm152_{tissue}_tal_nlin_sym_09a_converted.nii.gz")
        for tissue in ("gm", "wm")
    )
    # The maps are uint8 with 255 for probability one.
    is_gray, is_white = np.asarray(gray.array) > 127, np.asarray(white.array) > 127
    tissue = np.where(is_gray, 1, np.where(is_white, 2, 0)).astype(np.uint8)
    folder.mkdir(parents=True)
    write_nifti(gray.with_array(tissue, kind="label"), folder / "mni_icbm152_tissue.nii.gz")


def _source_list() -> str:
    """The ingest list of what this module wrote, as YAML; paths are relative to it."""
    import yaml

    phantoms: dict[str, Any] = {
        "name": "phantoms",
        "licence": "CC0-1.0",
        "root": "scans/phantoms",
        "subject": r"(?P<subject>sub-\d+)",
        "synthetic": True,
    }
    abdomens = [
        {
            **phantoms,
            "include": [f"**/*_abdomen_{sequence}.nii.gz"],
            "region": "abdomen",
            "sequence": sequence,
        }
        for sequence in SEQUENCES
    ]
    organs = {**phantoms, "include": ["**/*_organs.nii.gz"], "role": "label", "region": "abdomen"}
    tissue = {
        "name": "nilearn_icbm152",
        "licence": "LicenseRef-MNI-ICBM152",
        "root": "scans/icbm152",
        "subject": "(?P<subject>mni_icbm152)",
        "role": "label",
        "region": "brain",
        "label_values": {1: "gray matter", 2: "white matter"},
    }
    series = {**phantoms, "include": ["**/*.dcm"]}
    return yaml.safe_dump({"sources": [*abdomens, organs, series, tissue]}, sort_keys=False)


def _ending(out: Path, verdict: str, seconds: float) -> str:
    """The verdict, where the report is, and what to type next."""
    own = "--registry runs/registry"
    return "\n".join(
        [
            "",
            f"Done in {seconds:.0f} s.",
            "",
            *textwrap.wrap(verdict, 88),
            "",
            f"Report: {out / 'report.html'}",
            "",
            "Next:",
            f"  core-mri data ls --registry {out / 'registry'}",
            f"  core-mri data ingest YOUR_SCANS {own} --source NAME --licence LicenseRef-own",
            f"  core-mri pretrain run small_1gpu {own} --out runs/pretrain --dry-run",
        ]
    )

"""Trained generators, and what their pairs are worth: all of it in minutes of one GPU.

    R=runs/registry; printf '%064x\n' 570 > $R.key; chmod 600 $R.key
    core-mri data ingest --sources core_mri_data --registry $R --key-file $R.key
    python -m tests.benchmarks.generator_study --registry $R --out runs/generators --pack runs/gpu

Four groups of generators of real scans of CORE_MRI_DATA, each a SPADE GAN and a diffusion of
pixels (hearts: of latents too), trained for the same time on patients of the train split alone:
hippocampus from 5 patients (the draw that a few-shot run of seed 0 makes), hippocampus from all,
hearts from all, and T1 with FLAIR of the one patient with lesions. Pairs of the first three, and of
physics beside them, go into a copy of the registry; `core-mri synthesize evaluate` then measures
likeness and privacy, and for the hippocampus what segmentation learns from real, synthetic and
both, scored on test patients. Steps, sizes and shares were fixed beforehand.

``figures.json`` tells what came out and what failed. ``--pack`` is a folder for it and for archives
of the weights (float16) and some pairs. It runs in minutes of a CPU, with figures that mean
nothing, as ``--groups hippocampus_5 --steps 3 --width 8 --count 3 --suite-steps 2 --jobs 1``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

import core_mri
from core_mri.config import save_config
from core_mri.errors import CoreMRIError
from core_mri.models.generator import Generator
from core_mri.models.generator_config import GeneratorConfig, GeneratorKind, Space
from core_mri.runs import write_atomically
from data_registry.catalogue import Registry
from downstream.config import SuiteConfig, Task
from downstream.recipe import Recipe
from downstream.synthesis.cases import training_pairs
from downstream.synthesis.config import (
    PHYSICS,
    Anatomy,
    EvaluateConfig,
    GeneratorTraining,
    SampleConfig,
    TrainConfig,
)

KINDS: dict[str, tuple[GeneratorKind, Space]] = {
    "spade": ("spade", "pixel"),
    "diffusion": ("diffusion", "pixel"),
    "latent": ("diffusion", "latent"),
}
PAIRS_SHOWN = 3
"""Of each source, packed for pictures."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Generators of one task."""

    task: Task
    size: int
    """Side of a slice, px."""
    patients: int = 0
    """0: all of the train split."""
    tissues: int = 4
    batch_size: int = 32
    count: int = 0
    """Pairs of each source; 0 only trains."""
    kinds: tuple[str, ...] = ("spade", "diffusion")
    worth: bool = False
    """Train segmentation on them too."""


HIPPOCAMPUS = Task(
    name="hippocampus", kind="segmentation", where="source = 'msd_hippocampus'",
    labels={"anterior hippocampus": 1, "posterior hippocampus": 2},
)  # fmt: skip
HEART = Task(
    name="left-ventricle", kind="segmentation", where="source = 'sunnybrook'",
    labels={"left ventricle": 255},
)  # fmt: skip
MS = Task(
    name="ms", kind="segmentation", where="source = 'open_ms_data'", labels={"lesion": 1},
    sequences=("T1", "FLAIR"),
)  # fmt: skip
GROUPS = {
    "hippocampus_5": Group(task=HIPPOCAMPUS, size=64, patients=5, count=50, worth=True),
    "hippocampus": Group(task=HIPPOCAMPUS, size=64, count=56, worth=True),
    "heart": Group(
        task=HEART, size=128, batch_size=16, count=120, kinds=("spade", "diffusion", "latent")
    ),
    "ms": Group(task=MS, size=128, tissues=5, batch_size=16),
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is run, and for how long."""

    registry: Path
    """Registry of the sources ``core_mri_data``; it is copied, never written to."""
    out: Path
    """New folder."""
    key_file: Path | None = None
    """Project key of the registry; the one beside it when None."""
    pack: Path | None = None
    """Folder for figures and archives."""
    groups: tuple[str, ...] = tuple(GROUPS)
    """Which, in the order of their trainings."""
    encoder: str = ""
    """Weights for KID on features of an encoder, anything that core_mri.load_model takes."""
    seconds: float = 100.0
    """Of each training."""
    steps: int = 100_000
    """At most, of each training."""
    jobs: int = 4
    """Trainings at a time."""
    count: int = 0
    """Pairs of each source in place of the groups' own; 0 keeps those."""
    width: int = 0
    """Of the generators in place of the groups' own, a multiple of 8; 0 keeps those."""
    suite_steps: int = 400
    """Of each training of a segmentation."""
    deadline: float = 3600.0
    """Seconds after which everything that still runs is ended, and what there is is packed."""


class Runner:
    """Runs commands until the deadline, and notes what failed.

    Args:
        study: What is run.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.ends = time.monotonic() + study.deadline
        self.failed: dict[str, str] = {}

    def verb(self, name: str, verb: str, config: Any) -> bool:
        """``core-mri synthesize VERB`` with a configuration; whether it went well."""
        path = self.study.out / "configs" / f"{name}-{verb}.yaml"
        save_config(config, path)
        command = [sys.executable, "-m", "core_mri", "synthesize", verb, str(path)]
        begun = time.monotonic()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False,
                timeout=max(1.0, self.ends - begun),
            )  # fmt: skip
            error = done.stderr[-2000:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            error = "the deadline came first"
        took = time.monotonic() - begun
        print(f"{name} {verb}: {'failed' if error else 'done'} in {took:.0f} s", flush=True)
        if error:
            print(error, flush=True)
            self.failed[f"{name} {verb}"] = error
        return not error


def main(study: Study) -> None:
    """Train, sample, evaluate, pack."""
    study.out.mkdir(parents=True)
    (study.out / "configs").mkdir()
    torch.manual_seed(7)
    core_mri.save_model(core_mri.create_model("vit_micro_patch8"), study.out / "micro")
    runner = Runner(study)
    trainings = ThreadPoolExecutor(study.jobs)
    with ThreadPoolExecutor(len(study.groups)) as groups:
        running = []
        for name in study.groups:
            trained: dict[str, Future[bool]] = {
                kind: trainings.submit(_train, runner, name, kind) for kind in GROUPS[name].kinds
            }
            running.append(groups.submit(_group, runner, name, trained))
        for one in as_completed(running):
            one.result()
            _write(runner)
    trainings.shutdown()
    _write(runner)


def _folder(study: Study, group: str, kind: str) -> Path:
    return study.out / group / kind


def _train(runner: Runner, name: str, kind: str) -> bool:
    study, group = runner.study, GROUPS[name]
    network, space = KINDS[kind]
    spade = network == "spade"
    sizes = GeneratorConfig(
        kind=network,
        space=space,
        image_size=group.size,
        width=study.width or (24 if group.size > 64 else 32),
        depth=4 if spade and group.size > 64 else 3,
        style=16,
    )
    config = TrainConfig(
        registry=study.registry,
        out=_folder(study, name, kind),
        task=group.task,
        steps=study.steps,
        seconds=study.seconds,
        patients=group.patients,
        anatomy=Anatomy(tissues=group.tissues),
        generator=sizes,
        training=GeneratorTraining(
            batch_size=group.batch_size,
            learning_rate=2e-4 if spade else 3e-4,
            ema=0.998,
            discriminator_width=32,
            autoencoder_steps=min(1500, study.steps - 1),
        ),
        checkpoint_every=study.steps,
    )
    return runner.verb(f"{name}-{kind}", "train", config)


def _group(runner: Runner, name: str, trained: dict[str, Future[bool]]) -> None:
    """Pairs of every source of a group, then what they are like and worth."""
    study, group = runner.study, GROUPS[name]
    if not group.count:
        for training in trained.values():
            training.result()
        return
    registry = study.out / name / "registry"
    shutil.copytree(study.registry, registry)
    key = study.key_file or study.registry.with_name(f"{study.registry.name}.key")
    made = []
    for kind in (PHYSICS, *trained):
        training = trained.get(kind)
        if training is not None and not training.result():
            continue
        config = SampleConfig(
            registry=registry,
            out=study.out / name / f"{kind}_pairs",
            task=group.task,
            generator=PHYSICS if kind == PHYSICS else str(_folder(study, name, kind)),
            source=kind,
            count=study.count or group.count,
            patients=group.patients,
            anatomy=Anatomy(tissues=group.tissues),
            key_file=key,
            compression="none",
        )
        if runner.verb(f"{name}-{kind}", "sample", config):
            made.append(kind)
    with ThreadPoolExecutor(len(trained) + 1) as judges:
        list(judges.map(lambda kind: _evaluate(runner, name, kind, registry), made))


def _evaluate(runner: Runner, name: str, kind: str, registry: Path) -> None:
    study, group = runner.study, GROUPS[name]
    where = f"({group.task.where} OR source = '{kind}')"
    task = replace(group.task, where=where)
    suite = None
    if group.worth:
        real = training_pairs(Registry.open(study.registry), group.task, patients=0, seed=0)[1]
        patients = len({pair.image.subject_id for pair in real})
        suite = SuiteConfig(
            registry=registry,
            out=study.out / "unused",
            weights={"micro": str(study.out / "micro")},
            tasks=(task,),
            k=(group.patients or patients,),
            draws=1,
            steps=study.suite_steps,
            adaptation="full",
            recipe=Recipe(
                image_size=64,
                shots_unit="patients",
                num_validation=3,
                validate_every=max(1, study.suite_steps // 6),
                batch_size=16,
                decoder="pyramid",
                learning_rate=1e-3,
                encoder_learning_rate=3e-4,
            ),
        )
    config = EvaluateConfig(
        registry=registry,
        out=study.out / name / f"{kind}_judged",
        task=task,
        source=kind,
        encoder=study.encoder,
        reader_slices=0,
        suite=suite,
    )
    runner.verb(f"{name}-{kind}", "evaluate", config)


def _write(runner: Runner) -> None:
    """Figures and archives of all that is there."""
    study = runner.study
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "seconds": study.seconds,
        "jobs": study.jobs,
        "suite_steps": study.suite_steps,
        "trained": {},
        "judged": {},
        "failed": runner.failed,
    }  # fmt: skip
    for name in study.groups:
        for kind in GROUPS[name].kinds:
            folder = _folder(study, name, kind)
            if (folder / "weights" / "config.json").is_file():
                figures["trained"][f"{name} {kind}"] = _figures(folder)
        for path in sorted((study.out / name).glob("*_judged/results.json")):
            key = f"{name} {path.parent.name.removesuffix('_judged')}"
            figures["judged"][key] = json.loads(path.read_text())
    text = (json.dumps(figures, indent=1) + "\n").encode()
    write_atomically(study.out / "figures.json", text)
    if study.pack is None:
        return
    study.pack.mkdir(parents=True, exist_ok=True)
    write_atomically(study.pack / "figures.json", text)
    for name in study.groups:
        _pack(study, name)
    pairs = [
        pair
        for name in study.groups
        for source in sorted((study.out / name).glob("*_pairs"))
        for pair in sorted(source.glob("[!.]*/provenance.json"))[:PAIRS_SHOWN]
    ]
    _archive(study.pack / "pairs.tar.gz", [path.parent for path in pairs], study.out)


def _figures(folder: Path) -> dict[str, Any]:
    """Steps, time and last losses of a training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    last = lines[-max(1, len(lines) // 20) :]
    names = [key for key, value in last[-1].items() if isinstance(value, float)]
    model = core_mri.load_model(folder, device="cpu")
    return {
        "steps": len(lines),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "last": {name: sum(line[name] for line in last) / len(last) for name in names},
    }


def _pack(study: Study, name: str) -> None:
    """Weights of a group in float16, with the configuration and losses of their training."""
    parts = []
    for kind in GROUPS[name].kinds:
        folder = _folder(study, name, kind)
        if not (folder / "weights" / "config.json").is_file():
            continue
        half = study.out / "half" / name / kind
        if not half.exists():
            model = core_mri.load_model(folder, device="cpu")
            assert isinstance(model, Generator)
            card = dict(model.card) | {"rounded": "float16"}  # type: ignore[arg-type]
            core_mri.save_model(model.half(), half / "weights", card)
            for file in ("config.yaml", "metrics.jsonl"):
                shutil.copy(folder / file, half / file)
        parts.append(half)
    if parts:
        assert study.pack is not None
        _archive(study.pack / f"{name}.tar.gz", parts, study.out / "half")


def _archive(path: Path, parts: Sequence[Path], root: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for part in parts:
            archive.add(part, part.relative_to(root))


if __name__ == "__main__":
    try:
        main(tyro.cli(Study))
    except CoreMRIError as error:
        sys.exit(f"error: {error}")

"""`core-mri synthesize train`: from a registry to the weights folder of a generator."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core_mri.config import load_config, to_mapping
from core_mri.devices import is_main, select_device
from core_mri.errors import ConfigError, DataError
from core_mri.launch import Workers, launch, preemption_due
from core_mri.models.generator_config import GeneratorConfig
from core_mri.runs import Run
from core_mri.slice_grid import SliceGrid
from core_mri.training.loop import fit
from core_mri.training.parallel import any_worker, sum_numbers
from core_mri.weights import save_model
from data_registry.catalogue import Registry
from data_registry.governance.uses import note_training
from downstream.cohort import fingerprint
from downstream.config import Task
from downstream.segmentation.data import Pair
from downstream.segmentation.structures import sided
from downstream.synthesis.cases import Case, class_names, licence_of, read_case, training_pairs
from downstream.synthesis.config import TrainConfig
from downstream.synthesis.latent import LatentTrainer
from downstream.synthesis.train import DiffusionTrainer, GeneratorTrainer, SpadeTrainer


def train(config: TrainConfig, *, resume: bool = False, workers: Workers | None = None) -> Path:
    """Fit a generator to labelled training patients.

    Args:
        config: What to do.
        resume: Demand that the folder holds an unfinished run.
        workers: Where it runs; several share the batches.

    Returns:
        The run folder; ``weights/`` is what `core-mri synthesize sample` takes.

    Raises:
        CoreMRIError: What went wrong, with its code; the newest checkpoint is kept.
    """
    workers = workers or Workers()
    if workers.num_workers > config.training.batch_size:
        raise ConfigError(
            "CONFIG-05",
            f"training.batch_size {config.training.batch_size} cannot be shared by "
            f"{workers.num_workers} workers.",
        )
    Run.open(config.out, config, resume=resume)  # wrong folders are refused before workers start
    payload = {"config": to_mapping(config), "folder": str(Path.cwd())}
    launch(f"{__name__}:worker", payload, workers, storage=config.out / "launcher")
    return config.out


def worker(payload: Mapping[str, Any]) -> None:
    """What every worker of `train` runs; the main one writes the weights."""
    os.chdir(payload["folder"])
    config = load_config(TrainConfig, payload["config"])
    registry = Registry.open(config.registry)
    task, pairs = training_pairs(registry, config.task, patients=config.patients, seed=config.seed)
    trainer = make_trainer(config, task, registry, pairs)
    scans = fingerprint([row for pair in pairs for row in pair.volumes])

    def restore(state: Mapping[str, Any]) -> None:
        if state["scans"] != scans:
            raise ConfigError(
                "CONFIG-04",
                f"{config.out}: the training scans have changed since this run was started.",
                fix="Choose another --out.",
            )
        trainer.restore(state)

    since = time.monotonic()

    def enough() -> bool:
        """Whether the time is up for any worker."""
        late = time.monotonic() - since >= config.seconds
        return bool(config.seconds) and sum_numbers({"late": float(late)})["late"] > 0

    with Run.open(config.out, config, main=is_main()) as run:
        fit(
            trainer.step,
            run=run,
            steps=config.steps,
            state=lambda: {"scans": scans, **trainer.state()},
            restore=restore,
            checkpoint_every=config.checkpoint_every,
            description=f"generator of {task.name}",
            interrupted=any_worker(run),
            urgent=preemption_due,
            enough=enough,
        )
        if run.main:
            card = card_of(config, task, pairs)
            save_model(trainer.finish(), config.out / "weights", card)
            note_training(registry.path, config.out / "weights", card["subjects"], "synthesize")


def make_trainer(
    config: TrainConfig, task: Task, registry: Registry, pairs: Sequence[Pair]
) -> GeneratorTrainer:
    """Read the slices and set up the training.

    Raises:
        ConfigError: CONFIG-05 when slices of structures with sides would be mirrored.
        DataError: DATA-09 when no slice shows anything.
    """
    if config.training.mirror and (names := sided(task.labels)):
        raise ConfigError(
            "CONFIG-05", f"training.mirror makes left out of right in {', '.join(names)}."
        )
    size = config.generator.image_size
    parts = []
    for pair in pairs:
        case = read_case(registry, pair, task, config.anatomy, config.seed)
        images, labels = on_grid(case, size)
        shown = labels.flatten(1).any(1)
        parts.append((images[shown], labels[shown]))
    if not any(len(images) for images, _ in parts):
        raise DataError("DATA-09", f"task {task.name}: no training slice shows anything.")
    return trainer_of(config.generator)(
        torch.cat([images for images, _ in parts]),
        torch.cat([labels for _, labels in parts]),
        config=config.generator,
        training=config.training,
        names=class_names(task, config.anatomy),
        sequences=task.sequences or ("",),
        seed=config.seed,
        device=select_device(config.device),
    )


def trainer_of(config: GeneratorConfig) -> type[SpadeTrainer] | type[DiffusionTrainer]:
    """What trains a generator."""
    if config.kind == "spade":
        return SpadeTrainer
    return LatentTrainer if config.space == "latent" else DiffusionTrainer


def on_grid(case: Case, size: int) -> tuple[Tensor, Tensor]:
    """Images [S, Q, size, size] and labels [S, size, size] of a case."""
    rows, columns = case.labels.shape[1:]
    grid = SliceGrid(rows=rows, columns=columns, size=size)
    images = torch.cat([grid.images(channel) for channel in case.channels], 1)
    return images, grid.masks(case.labels.array)  # type: ignore[arg-type]


def card_of(config: TrainConfig, task: Task, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Facts for the model card."""
    patients = sorted({pair.image.subject_id for pair in pairs})
    sources = sorted({(row.source, row.licence) for pair in pairs for row in pair.volumes})
    return {
        "summary": f"Makes synthetic slices from label maps of the task {task.name}.",
        "data": {"patients": len(patients), "scans": len(pairs)},
        "sources": [{"name": name, "licence": licence} for name, licence in sources],
        "training": {"steps": config.steps, "seed": config.seed, **to_mapping(config.training)},
        "licence": licence_of(row for pair in pairs for row in pair.volumes),
        "subjects": patients,
        "anatomy": to_mapping(config.anatomy),
        "structures": list(task.labels),
        "limits": [
            "What it makes is synthetic: never test on it, and say so wherever it is shown.",
            "It may copy training patients; `core-mri synthesize evaluate` looks for that.",
        ],
    }

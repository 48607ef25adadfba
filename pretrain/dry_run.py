"""One batch without a run folder: what a run would need, and what its views look like."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from core_mri.runs import writing
from pretrain.config import PretrainConfig
from pretrain.data import open_slices
from pretrain.overlap import check_overlap
from pretrain.pictures import views_picture
from pretrain.sampler import check_batch, sample_numbers
from pretrain.train import Trainer


@dataclass(frozen=True)
class DryRun:
    """What one batch told."""

    memory_gib: float
    """Highest use of memory."""
    memory_of: str
    """Of which memory: that of the device, or of the process."""
    seconds_per_step: float
    """Of the second step; the first one warms up."""
    loss: float
    """Of the first step."""
    picture: Path
    """Views and masks of some slices."""


def dry_run(config: PretrainConfig) -> DryRun:
    """Do the first step twice, on this worker alone with the whole batch, and keep nothing.

    The picture is written beside the output folder, as ``<out>-dry-run.png``.

    Raises:
        CoreMRIError: As `pretrain.train` for data and batch.
    """
    dataset = open_slices(config)
    check_batch(len(dataset), config.batch_size, 1, config.objective.koleo_group)
    check_overlap(config, dataset.volumes)
    trainer = Trainer(config, dataset)
    loss = trainer.step(0)["loss"]
    started = time.perf_counter()
    if config.steps > 1:
        trainer.step(1)
    seconds = time.perf_counter() - started
    figure = views_picture(
        *trainer.views_of(trainer.samples_of(0)[:4], sample_numbers(0, config.batch_size)[:4])
    )
    picture = config.out.with_name(f"{config.out.name}-dry-run.png")
    with writing(picture):
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture)
    memory, memory_of = _highest_memory(trainer.choice.device)
    return DryRun(memory, memory_of, seconds, loss, picture)


def _highest_memory(device: torch.device) -> tuple[float, str]:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30, "on the device"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "of the process"

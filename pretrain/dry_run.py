"""One batch without a run folder: what a run would need, and what its views look like."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from core_mri.runs import writing
from pretrain.advice import advice
from pretrain.config import PretrainConfig
from pretrain.data import open_slices, open_validation
from pretrain.memory import advises_batch
from pretrain.overlap import check_overlap
from pretrain.pictures import views_picture
from pretrain.sampler import check_batch
from pretrain.stages import stages_of
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
    flops: float
    """Floating point operations of a step, forward and backward, as torch counts them: matrix
    products, convolutions and attention where its kernel is known."""
    picture: Path
    """Views and masks of some slices."""
    advice: list[str]
    """What looks wrong with the configuration; see `pretrain.advice`."""


def dry_run(config: PretrainConfig) -> DryRun:
    """Do the first step twice, on this worker alone with the whole batch, and keep nothing.

    The picture is written beside the output folder, as ``<out>-dry-run.png``.

    Raises:
        CoreMRIError: As `pretrain.train` for data, batch and the weights to start from; RUN-04 when
            memory runs out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    dataset, validation = open_slices(config), open_validation(config)
    for stage in stages_of(config):
        check_batch(len(dataset), stage.config.batch_size, 1, config.objective.koleo_group)
    check_overlap(config, dataset.volumes)
    with advises_batch(config, 1):
        trainer = Trainer(config, dataset)
    # The products of `pretrain.linear`, which torch does not count by itself.
    own = {torch.ops.mkldnn._linear_pointwise: _linear_flops}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        loss = trainer.step(0)["loss"]
    started = time.perf_counter()
    if config.steps > 1:
        dict(trainer.step(1))  # looking at the numbers waits for the device
    seconds = time.perf_counter() - started
    figure = views_picture(*trainer.example())
    picture = config.out.with_name(f"{config.out.name}-dry-run.png")
    with writing(picture):
        picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture)
    memory, memory_of = highest_memory(trainer.choice.device)
    told = advice(config, dataset, validation)
    return DryRun(memory, memory_of, seconds, loss, float(counter.get_total_flops()), picture, told)


def _linear_flops(x: torch.Size, weight: torch.Size, *_rest: object, **_named: object) -> int:
    """Operations of ``x @ weight.T`` by the shapes [N, I] and [O, I]."""
    return 2 * x.numel() * weight[0]


def highest_memory(device: torch.device) -> tuple[float, str]:
    """Highest use of memory so far, GiB, and of which memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30, "on the device"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "of the process"

"""How fast the steps of a run are, and where their time goes; nothing is kept."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch

from pretrain.config import PretrainConfig
from pretrain.data import open_slices
from pretrain.dry_run import highest_memory
from pretrain.flops import peak_of, step_flops
from pretrain.memory import advises_batch
from pretrain.overlap import check_overlap
from pretrain.sampler import check_batch
from pretrain.student_teacher import StudentTeacher
from pretrain.train import Trainer

WARMUP = 5
"""Steps before the clock starts: memory is allocated, blocks are compiled."""
_HEAD_PASSES = 5


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What some steps of one worker told."""

    model: str
    device: str
    """Name of the device."""
    threads: int
    """Threads of the processor."""
    precision: str
    batch_size: int
    steps: int
    """Measured ones."""
    images_per_second: float
    seconds_per_step: float
    """Mean, waiting for data included."""
    data_wait: float
    """Part of the time in which the step waited for slices."""
    head_share: float | None
    """Time of the heads, forward and backward, alone on random features / time of a step; without
    their share of the optimizer. None for an objective without prototypes."""
    flops_per_step: float | None
    """`pretrain.flops.StepFlops.nominal`; None for an objective whose formula is not known."""
    mfu: float | None
    """Model FLOP utilization: nominal operations per second / `peak_flops`."""
    mfu_kept: float | None
    """The same without the operations that stochastic depth leaves out."""
    peak_flops: float
    """Operations per second that the device can do."""
    peak_source: str
    memory_gib: float
    """Highest use of memory."""
    memory_of: str
    loss: float
    """Of the last step."""


def bench(config: PretrainConfig, steps: int = 50) -> Bench:
    """Do the first steps of a run, on this worker alone with the whole batch, and time them.

    Args:
        config: Of the run.
        steps: Measured ones, after `WARMUP`.

    Raises:
        CoreMRIError: As `pretrain.train` for data and batch; RUN-04 when memory runs out.
    """
    config = replace(config, steps=max(config.steps, WARMUP + steps))
    dataset = open_slices(config)
    check_batch(len(dataset), config.batch_size, 1, config.objective.koleo_group)
    check_overlap(config, dataset.volumes)
    with advises_batch(config, 1):
        trainer = Trainer(config, dataset)
    device, precision = trainer.choice.device, trainer.choice.precision
    for step in range(WARMUP):
        last = dict(trainer.step(step))
    waited, started = 0.0, time.perf_counter()
    newest = trainer.step(WARMUP)
    for step in range(WARMUP + 1, WARMUP + steps):
        # Numbers are looked at one step late, as in a run.
        before, newest = newest, trainer.step(step)
        waited += before["wait_seconds"]
    last = dict(newest)
    seconds = time.perf_counter() - started
    waited += last["wait_seconds"]
    memory, memory_of = highest_memory(device)
    peak = peak_of(device, precision)
    flops, head_share, model = None, None, trainer.model
    if isinstance(model, StudentTeacher):
        flops = step_flops(config, model.teacher_encoder)
        head_share = _head_seconds(trainer, model) * steps / seconds
    return Bench(
        model=config.model,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        precision=precision,
        batch_size=config.batch_size,
        steps=steps,
        images_per_second=config.batch_size * steps / seconds,
        seconds_per_step=seconds / steps,
        data_wait=waited / seconds,
        head_share=head_share,
        flops_per_step=flops and flops.nominal,
        mfu=flops and flops.nominal * steps / seconds / peak.flops_per_second,
        mfu_kept=flops and flops.kept * steps / seconds / peak.flops_per_second,
        peak_flops=peak.flops_per_second,
        peak_source=peak.source,
        memory_gib=memory,
        memory_of=memory_of,
        loss=last["loss"],
    )


def _head_seconds(trainer: Trainer, model: StudentTeacher) -> float:
    """Median time of the heads alone, with as many rows as the first step has."""
    device, passes = trainer.choice.device, []
    for _ in range(_HEAD_PASSES):
        started = time.perf_counter()
        with torch.autocast(
            device.type, torch.bfloat16, enabled=trainer.choice.precision == "bfloat16"
        ):
            loss = model.head_pass()
        loss.backward()
        float(loss.detach())  # waits for the device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passes.append(time.perf_counter() - started)
    return statistics.median(passes[1:])

"""How fast the steps of a run are, and where their time goes; nothing is kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from pretrain.config import PretrainConfig
from pretrain.data import open_slices
from pretrain.dry_run import highest_memory
from pretrain.flops import step_flops, step_work
from pretrain.hardware import peak_of
from pretrain.memory import advises_batch
from pretrain.overlap import check_overlap
from pretrain.sampler import check_batch
from pretrain.stages import samples_at
from pretrain.student_teacher import StudentTeacher
from pretrain.train import Trainer

WARMUP = 5
"""Steps before the clock starts: memory is allocated, blocks are compiled."""
_PASSES = 5


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
    loader_workers: int
    """Processes that read slices meanwhile; with 0 the step itself reads them."""
    views_share: float
    """Time of the views alone / time of a step."""
    update_share: float | None
    """Time of clipping, optimizer and moving average alone / time of a step."""
    head_share: float | None
    """Time of the heads, forward and backward, alone on random features / time of a step; without
    their share of the optimizer. None for an objective without prototypes."""
    flops_per_step: float | None
    """`pretrain.flops.StepFlops.nominal`; None for an objective whose formula is not known."""
    mfu: float | None
    """Model FLOP utilization: nominal operations per second / `peak_flops`."""
    mfu_kept: float | None
    """The same without the operations that stochastic depth leaves out."""
    work: dict[str, float] | None
    """`pretrain.flops.StepWork` of a step: with the shares what `pretrain cost` calibrates with."""
    peak_flops: float
    """Operations per second that the device can do."""
    peak_source: str
    memory_gib: float
    """Highest use of memory."""
    memory_of: str
    loss: float
    """Of the last step."""


def bench(
    config: PretrainConfig, steps: int = 50, *, clock: Callable[[], float] = time.perf_counter
) -> Bench:
    """Do the first steps of a run, on this worker alone with the whole batch, and time them.

    Args:
        config: Of the run.
        steps: Measured ones, after `WARMUP`.
        clock: Seconds; `time.process_time` counts what one thread does on a shared machine.

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
    waited, started = 0.0, clock()
    newest = trainer.step(WARMUP)
    for step in range(WARMUP + 1, WARMUP + steps):
        # Numbers are looked at one step late, as in a run.
        before, newest = newest, trainer.step(step)
        waited += before["wait_seconds"]
    last = dict(newest)
    seconds = clock() - started
    waited += last["wait_seconds"]
    memory, memory_of = highest_memory(device)
    peak = peak_of(device, precision)
    samples, numbers = trainer.samples_of(0), samples_at(config, 0)

    def alone(part: Callable[[], object]) -> float:
        return _alone(part, device, clock) * steps / seconds

    views_share = alone(lambda: trainer.views_of(samples, numbers))
    flops, work, head_share, update_share, model = None, None, None, None, trainer.model
    if isinstance(model, StudentTeacher):
        flops = step_flops(config)
        work = asdict(step_work(config, attention_matrix=device.type == "cpu"))
        head_share = alone(lambda: _head_pass(trainer, model))
        now = {name: float(values[0]) for name, values in trainer.schedules.items()}
        update_share = alone(lambda: trainer.optimization.update(0, now))
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
        loader_workers=config.loader_workers,
        views_share=views_share,
        update_share=update_share,
        head_share=head_share,
        flops_per_step=flops and flops.nominal,
        mfu=flops and flops.nominal * steps / seconds / peak.flops_per_second,
        mfu_kept=flops and flops.kept * steps / seconds / peak.flops_per_second,
        work=work,
        peak_flops=peak.flops_per_second,
        peak_source=peak.source,
        memory_gib=memory,
        memory_of=memory_of,
        loss=last["loss"],
    )


def _alone(part: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Median time of a part of the step, after one pass that warms up."""
    passes = []
    for _ in range(_PASSES):
        started = clock()
        part()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passes.append(clock() - started)
    return statistics.median(passes[1:])


def _head_pass(trainer: Trainer, model: StudentTeacher) -> None:
    """Heads, forward and backward, with as many rows as the first step has."""
    with torch.autocast(
        trainer.choice.device.type,
        torch.bfloat16,
        enabled=trainer.choice.precision == "bfloat16",
    ):
        loss = model.head_pass()
    loss.backward()

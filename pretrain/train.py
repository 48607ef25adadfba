"""The run: from a configuration to a weights folder, on one worker or many."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from core_mri.config import load_config, to_mapping
from core_mri.devices import Choice, is_main, rank, select_device, select_precision, world_size
from core_mri.errors import RunError
from core_mri.launch import Workers, launch, preemption_due
from core_mri.models.encoder import Encoder
from core_mri.runs import Run, write_atomically, writing
from core_mri.training.late import LateNumbers
from core_mri.training.loop import fit
from core_mri.training.parallel import any_worker
from pretrain.config import PretrainConfig
from pretrain.data import Sample, Slices, batches, open_slices, open_validation
from pretrain.health.alarms import Alarm
from pretrain.health.anchor import Anchor
from pretrain.health.monitor import HealthMonitor
from pretrain.health.responder import Responder
from pretrain.losses import reduce_sum
from pretrain.memory import advises_batch
from pretrain.objectives import ENCODER, FEATURES, LOSS, Batch, create_objective
from pretrain.optimization import Optimization, schedules
from pretrain.overlap import OVERLAP_FILE, check_overlap
from pretrain.probe import probe_set, whole_slices
from pretrain.report import finish, report_stopped
from pretrain.sampler import (
    DROP_PATH,
    check_batch,
    micro_batches,
    random_stream,
    rank_slice,
)
from pretrain.sharding import Shared, gathered, whole_state
from pretrain.stages import Stage, resize, samples_at, stage_at, stages_of
from pretrain.start import HeadWarmup
from pretrain.upload import upload
from pretrain.views import Views, make_views

log = logging.getLogger(__name__)

STOPPED = ("RUN-01", "RUN-06", "RUN-07")
"""Errors of all workers at the same step, after which a report is written."""
_SHOWN = 4
"""Slices on pictures."""


def train(
    config: PretrainConfig,
    *,
    resume: bool = False,
    workers: Workers | None = None,
) -> Path:
    """Pretrain an encoder on the training slices of a registry.

    Args:
        config: The run. A run folder of the same configuration is continued.
        resume: Demand that there is a run to continue.
        workers: Where it runs; the batch is shared among them and the losses stay the same.

    Returns:
        The weights folder (the teacher's encoder), beside ``report.html`` and ``results.json``.

    Raises:
        ConfigError: CONFIG-03 or -04 for the output folder, CONFIG-05 for a batch that data or
            workers cannot fill, or for test patients in the training data.
        DataError: DATA-08 or -09 when there is no registry or no slice.
        WeightsError: When `start` cannot be loaded or does not fit the model.
        RunError: RUN-01 when the loss is not finite, RUN-02 when a worker dies, RUN-04 when a step
            runs out of memory, RUN-06 and -07 when an alarm of health stops it.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint.
    """
    config = replace(
        config,
        registry=config.registry.absolute(),
        out=config.out.absolute(),
        test_sets=tuple(path.absolute() for path in config.test_sets),
    )
    workers = workers or Workers()
    slices = open_slices(config)
    for stage in stages_of(config):
        check_batch(
            len(slices), stage.config.batch_size, workers.num_workers, config.objective.koleo_group
        )
    overlap = check_overlap(config, slices.volumes)
    Run.open(config.out, config, resume=resume)  # wrong folders are refused before workers start
    write_atomically(config.out / OVERLAP_FILE, f"{overlap}\n".encode())
    launch(
        "pretrain.train:run_worker",
        {"config": to_mapping(config)},
        workers,
        storage=config.out / "launcher",
    )
    return config.out / "weights"


def run_worker(payload: Mapping[str, Any]) -> None:
    """What every worker process runs.

    Args:
        payload: ``config``, the plain mapping of a `PretrainConfig` with absolute paths.
    """
    config = load_config(PretrainConfig, payload["config"])
    dataset, validation = open_slices(config), open_validation(config)
    with advises_batch(config, world_size()):
        trainer = Trainer(config, dataset)
    if is_main() and config.health.probe_every:
        trainer.health.watch(Anchor(probe_set(config, dataset, validation, online=True)))
    with Run.open(config.out, config, main=is_main(), checkpoints=config.checkpoints) as run:
        _record_workers(run)
        if run.main:
            with writing(run.out):
                np.savez(run.out / "schedules.npz", allow_pickle=False, **trainer.schedules)
        log.info("%s", trainer.choice.reason)
        try:
            fit(
                trainer.step,
                run=run,
                steps=config.steps,
                state=trainer.state,
                restore=trainer.restore,
                checkpoint_every=config.checkpoint_every,
                description="pretraining",
                interrupted=any_worker(run),
                late=trainer.choice.device.type == "cuda",
                after=Responder(run, trainer),
                urgent=preemption_due,
            )
        except RunError as error:
            if error.code in STOPPED:
                encoder = trainer.released()
                if is_main():
                    report_stopped(run, trainer, encoder, error)
                if world_size() > 1:  # launchers end all workers when one has left
                    dist.barrier()
            raise
        encoder = trainer.released()
        if is_main():
            finish(run, trainer, encoder, probe_set(config, dataset, validation), validation)


class Trainer:
    """Everything a step needs, and what a checkpoint must hold of it.

    Args:
        config: Of the run.
        dataset: The training slices.
    """

    def __init__(self, config: PretrainConfig, dataset: Slices) -> None:
        self.config = config
        self.dataset = dataset
        self.choice: Choice = select_precision(select_device(config.device), config.precision)
        torch.manual_seed(config.seed)
        self.model = create_objective(config).to(self.choice.device).train()
        self.shared = Shared(self.model, config, self.choice.precision)
        self.schedules = schedules(config) | self.model.schedules()
        self.optimization = Optimization(self.model, config.optimizer)
        self.health = HealthMonitor(config, judged_features=self.model.judged_features)
        self.warmup = HeadWarmup(config.start_freeze_steps)
        self.alarms: list[Alarm] = []
        """Those of the newest step whose numbers have arrived."""
        self.stage = stages_of(config)[0]
        self._finished = 0.0
        self._batches: Iterator[list[Sample]] | None = None

    def step(self, step: int) -> Mapping[str, float]:
        """Do step `step` (0-based) and return its numbers, which are fetched when looked at.

        A loss or gradient that is not finite leaves the weights alone.

        Raises:
            RunError: RUN-04 when it runs out of memory.
        """
        with advises_batch(stage_at(self.config, step).config, world_size()):
            return self._step(step)

    def _step(self, step: int) -> Mapping[str, float]:
        config, now = self.config, {name: float(v[step]) for name, v in self.schedules.items()}
        probed = self._probe(0) if step == 0 else {}
        self._enter(stage_at(config, step))
        started = time.perf_counter()
        samples = self._next(step)
        waited = time.perf_counter() - started
        everything = samples_at(config, step)
        group = config.objective.koleo_group
        numbers = rank_slice(everything, rank(), world_size(), group)
        views, masks = self.views_of(samples, numbers)
        # timm's stochastic depth draws from the global generator: a function of the samples.
        draws = random_stream(config.seed, int(numbers[0]), DROP_PATH)
        torch.manual_seed(int(draws.integers(2**63)))
        self.optimization.clear()
        self.model.prepare(now)
        batch = Batch(views.global_views, views.local_views, masks, numbers)
        out = self._gradients(batch, now, len(everything))
        features = out.pop(FEATURES)
        student = self.model.student
        frozen = student[ENCODER].parameters() if self.warmup.frozen(step) else ()
        norm = self.optimization.update(step, now, frozen)
        out |= self.health.measure(
            step, features, student, samples, scale=self.optimization.clipped_by(norm)
        )
        if self.health.probe_due(step + 1):
            probed = self._probe(step + 1)
        names = (LOSS, *self.model.losses)
        share = len(samples) / len(everything)
        shared = reduce_sum(torch.stack([out[name] for name in names]) * share)
        out |= dict(zip(names, shared, strict=True))
        out[LOSS] = torch.where(norm.isfinite(), out[LOSS], torch.nan)

        def finish(results: Mapping[str, float]) -> dict[str, float]:
            seconds = time.perf_counter() - max(started, self._finished)
            self._finished = time.perf_counter()
            self.warmup.update(step, results[LOSS])
            self.alarms = self.health.judge(
                step, {**results, **probed}, skipped=not math.isfinite(results[LOSS])
            )
            return {
                **probed,
                **now,
                "alarms": float(len(self.health.alarms.raised)),
                "upsampled": float(views.num_upsampled),
                "wait_seconds": waited,
                "images_per_second": len(everything) / seconds,
            }

        return LateNumbers(out | {"grad_norm": norm}, finish)

    def _gradients(
        self, batch: Batch, now: Mapping[str, float], batch_size: int
    ) -> dict[str, Tensor]:
        """Add up the gradients of the share of this worker, part by part.

        Workers are averaged, so a part of n images counts ``n * workers / batch_size``.
        """
        images, group = len(batch.global_views), self.config.objective.koleo_group
        num_parts = micro_batches(batch_size, world_size(), group, self.config.micro_batch)
        ends = (np.linspace(0, images // group, num_parts + 1).round().astype(int) * group).tolist()
        found = []
        with self._autocast():
            lesson = self.shared.teach(batch, now)
        for begin, end in itertools.pairwise(ends):
            images_of_part, is_last = slice(begin, end), end == images
            with self.shared.averaging(is_last):
                with self._autocast():
                    taught = lesson.part(images_of_part) if lesson and num_parts > 1 else lesson
                    out = self.shared(batch.part(images_of_part), now, taught)
                (out[LOSS] * ((end - begin) * world_size() / batch_size)).backward()
            found.append({name: value.detach() for name, value in out.items()})
        if num_parts == 1:
            return found[0]
        shares = [(end - begin) / images for begin, end in itertools.pairwise(ends)]
        mean = {
            name: torch.stack([out[name] * share for out, share in zip(found, shares, strict=True)])
            for name in found[0]
            if name != FEATURES
        }
        return {name: parts.sum(0) for name, parts in mean.items()} | {
            FEATURES: torch.cat([out[FEATURES] for out in found])
        }

    def state(self) -> dict[str, Any]:
        """Weights of student and teacher, optimizer, alarms: with the seed enough to continue."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimization.adamw.state_dict(),
            "health": self.health.state(),
            "warmup": self.warmup.state(),
            "stage": self.stage.number,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self._enter(stages_of(self.config)[state["stage"]])
        self.warmup.restore(state["warmup"])
        self.shared.load(state["model"])
        self.optimization.load(state["optimizer"])
        self.health.restore(state["health"])

    def released(self) -> Encoder:
        """The teacher's encoder; all workers call it, and that of the main one is whole."""
        encoder = self.model.teacher_encoder
        return gathered(encoder) if self.shared.sharded else encoder

    def example(self) -> tuple[Views, Tensor]:
        """Views and masks of some slices of the first step, for a picture."""
        return self.views_of(self.samples_of(0)[:_SHOWN], samples_at(self.config, 0)[:_SHOWN])

    def shown_slices(self) -> Tensor:
        """Some whole slices [N, 1, S, S] in [0, 1], for pictures of patches."""
        stored = [sample.own for sample in self.samples_of(0)[:_SHOWN]]
        images = [upload([item], torch.device("cpu"))[0].numpy() for item in stored]
        return whole_slices(images, self.config.views.global_size).float()

    def samples_of(self, step: int) -> list[Sample]:
        """This worker's slices of a step, read now."""
        stream = batches(
            self.dataset, self.config, start=step, rank=rank(), world_size=world_size()
        )
        return next(stream)

    def views_of(
        self, samples: list[Sample], numbers: npt.NDArray[np.int64]
    ) -> tuple[Views, Tensor]:
        """Views and masks (bool [B, 2, h, w]) of slices with the given global sample indices."""
        config, device = self.stage.config, self.choice.device
        near = [sample.adjacent for sample in samples if sample.adjacent is not None]
        views = make_views(
            [sample.own for sample in samples],
            numbers,
            config.views,
            seed=config.seed,
            device=device,
            adjacent=near or None,
        )
        return views, torch.from_numpy(self.model.sample_masks(numbers))

    def _next(self, step: int) -> list[Sample]:
        if self._batches is None:
            self._batches = batches(
                self.dataset, self.config, start=step, rank=rank(), world_size=world_size()
            )
        return next(self._batches)

    def _enter(self, stage: Stage) -> None:
        """Go on with the sizes of a stage; nothing when it is the present one."""
        if stage.number == self.stage.number:
            return
        config, size = self.config, stage.config.views.global_size
        if self.shared.sharded:  # FSDP does not take new tables: made anew, whole for a moment
            state = whole_state(
                {"model": self.model.state_dict(), "moments": self.optimization.adamw.state_dict()}
            )
            self.model = create_objective(self.stage.config).to(self.choice.device).train()
            self.model.load_state_dict(state["model"])
            self.optimization = Optimization(self.model, config.optimizer)
            self.optimization.load(state["moments"])
        self.stage = stage
        self.model.config = stage.config
        resize(self.model, self.optimization.adamw, size)
        moments = self.optimization.adamw.state_dict()
        self.shared = Shared(self.model, config, self.choice.precision)
        if self.shared.sharded:
            self.optimization = Optimization(self.model, config.optimizer)
            self.optimization.load(moments)

    def _probe(self, finished: int) -> dict[str, float]:
        with self._autocast():
            return self.health.probe(finished, self.released())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.choice.device.type, torch.bfloat16, enabled=self.choice.precision == "bfloat16"
        )


def _record_workers(run: Run) -> None:
    """Add the process of every rank to ``environment.json``."""
    own = {"rank": rank(), "pid": os.getpid()}
    workers: list[dict[str, int] | None] = [None] * world_size()
    if world_size() > 1:
        dist.all_gather_object(workers, own)
    else:
        workers = [own]
    if run.main:
        path = run.out / "environment.json"
        facts = json.loads(path.read_text(encoding="utf-8")) | {"workers": workers}
        write_atomically(path, (json.dumps(facts, indent=2) + "\n").encode())

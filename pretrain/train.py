"""The run: from a configuration to a weights folder, on one worker or many."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from core_mri.config import load_config, to_mapping
from core_mri.devices import Choice, is_main, rank, select_device, select_precision, world_size
from core_mri.launch import Launcher, launch
from core_mri.runs import Run, write_atomically
from core_mri.training.loop import fit
from core_mri.training.schedules import warmup_cosine
from pretrain.config import PretrainConfig
from pretrain.data import Sample, Slices, batches, open_slices, open_validation
from pretrain.health import HealthMonitor
from pretrain.losses import reduce_sum
from pretrain.objectives import FEATURES, LOSS, Batch, create_objective
from pretrain.overlap import OVERLAP_FILE, check_overlap
from pretrain.report import finish
from pretrain.sampler import (
    DROP_PATH,
    check_batch,
    random_stream,
    rank_slice,
    sample_numbers,
)
from pretrain.views import Views, make_views

log = logging.getLogger(__name__)


def train(
    config: PretrainConfig,
    *,
    resume: bool = False,
    launcher: Launcher = "local",
    num_workers: int = 1,
    ray_address: str | None = None,
) -> Path:
    """Pretrain an encoder on the training slices of a registry.

    Args:
        config: The run. A run folder of the same configuration is continued.
        resume: Demand that there is a run to continue.
        launcher: ``local`` (this process), ``torchrun`` or ``ray``.
        num_workers: Worker processes; the batch is shared among them and the losses stay the same.
        ray_address: A running Ray cluster; None starts one on this machine.

    Returns:
        The weights folder (the teacher's encoder), beside ``report.html`` and ``results.json``.

    Raises:
        ConfigError: CONFIG-03 or -04 for the output folder, CONFIG-05 for a batch that data or
            workers cannot fill, or for test patients in the training data.
        DataError: DATA-08 or -09 when there is no registry or no slice.
        RunError: RUN-01 when the loss is not finite, RUN-02 when a worker dies.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint.
    """
    config = replace(
        config,
        registry=config.registry.absolute(),
        out=config.out.absolute(),
        test_sets=tuple(path.absolute() for path in config.test_sets),
    )
    slices = open_slices(config)
    check_batch(len(slices), config.batch_size, num_workers, config.objective.koleo_group)
    overlap = check_overlap(config, slices.volumes)
    Run.open(config.out, config, resume=resume)  # wrong folders are refused before workers start
    write_atomically(config.out / OVERLAP_FILE, f"{overlap}\n".encode())
    launch(
        "pretrain.train:run_worker",
        {"config": to_mapping(config)},
        launcher=launcher,
        num_workers=num_workers,
        ray_address=ray_address,
        storage=config.out / "launcher",
    )
    return config.out / "weights"


def run_worker(payload: Mapping[str, Any]) -> None:
    """What every worker process runs.

    Args:
        payload: ``config``, the plain mapping of a `PretrainConfig` with absolute paths.
    """
    config = load_config(PretrainConfig, payload["config"])
    dataset = open_slices(config)
    check_batch(len(dataset), config.batch_size, world_size(), config.objective.koleo_group)
    trainer = Trainer(config, dataset)
    with Run.open(config.out, config, main=is_main()) as run:
        _record_workers(run)
        log.info("%s", trainer.choice.reason)
        fit(
            trainer.step,
            run=run,
            steps=config.steps,
            state=trainer.state,
            restore=trainer.restore,
            checkpoint_every=config.checkpoint_every,
            description="pretraining",
            interrupted=_any_worker(run, trainer.choice.device),
        )
        if is_main():
            example = trainer.views_of(trainer.samples_of(0)[:4], sample_numbers(0, 4))
            finish(run, config, trainer.model, dataset, open_validation(config), *example)


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
        self.parallel: nn.Module = self.model
        if world_size() > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.model)
        self.schedules = schedules(config) | self.model.schedules()
        self.optimizer = _optimizer(self.model.student)
        self.health = HealthMonitor(config.objective.num_prototypes, config.steps)
        self._batches: Iterator[list[Sample]] | None = None

    def step(self, step: int) -> dict[str, float]:
        """Do step `step` (0-based) and return its numbers; a bad loss leaves the weights alone."""
        config, now = self.config, {name: float(v[step]) for name, v in self.schedules.items()}
        started = time.perf_counter()
        samples = self._next(step)
        waited = time.perf_counter() - started
        numbers = rank_slice(sample_numbers(step, config.batch_size), rank(), world_size())
        views, masks = self.views_of(samples, numbers)
        for group in self.optimizer.param_groups:
            group["lr"] = now["learning_rate"]
            group["weight_decay"] = now["weight_decay"] if group["decays"] else 0.0
        # Stochastic depth draws from the global generator: a function of the step, not of history.
        draws = random_stream(config.seed, step * world_size() + rank(), DROP_PATH)
        torch.manual_seed(int(draws.integers(2**63)))
        with torch.autocast(
            self.choice.device.type, torch.bfloat16, enabled=self.choice.precision == "bfloat16"
        ):
            out = self.parallel(Batch(views.global_views, views.local_views, masks), now)
        del out[FEATURES]
        names = (LOSS, *self.model.losses)
        losses = reduce_sum(torch.stack([out[name].detach() for name in names])) / world_size()
        results = dict(zip(names, losses.tolist(), strict=True))
        norm = math.nan
        if math.isfinite(results[LOSS]):
            norm = self._update(out[LOSS], step, now)
        if not math.isfinite(norm):
            results[LOSS] = math.nan
        results |= {name: float(value) for name, value in out.items() if name not in names}
        results |= self.health.update(step, results)
        return results | {
            "grad_norm": norm,
            **now,
            "upsampled": float(views.num_upsampled),
            "wait_seconds": waited,
            "images_per_second": config.batch_size / (time.perf_counter() - started),
        }

    def state(self) -> dict[str, Any]:
        """Weights of student and teacher, optimizer, alarms: with the seed enough to continue."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "health": self.health.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.health.restore(state["health"])

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
        config, device = self.config, self.choice.device
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

    def _update(self, loss: Tensor, step: int, now: Mapping[str, float]) -> float:
        """Backward, clip, step, teacher; the gradient norm, not finite when nothing was changed."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for parameter in self.model.frozen(step):
            parameter.grad = None
        parameters = self.model.student.parameters()
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip_norm))
        if math.isfinite(norm):
            self.optimizer.step()
            self.model.update(now)
        return norm


def schedules(config: PretrainConfig) -> dict[str, npt.NDArray[np.float64]]:
    """The optimizer's schedules of a run, each an array [steps]."""
    steps, optimizer = config.steps, config.optimizer
    peak, warmup = optimizer.learning_rate, optimizer.warmup_steps
    return {
        "learning_rate": warmup_cosine(
            peak / max(warmup, 1), peak, optimizer.final_learning_rate, warmup, steps
        ),
        "weight_decay": warmup_cosine(0.0, *optimizer.weight_decay, 0, steps),
    }


def _optimizer(student: nn.Module) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999); matrices decay, biases, norms and single vectors do not."""
    parameters = list(student.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.squeeze().ndim > 1], "decays": True},
            {"params": [p for p in parameters if p.squeeze().ndim <= 1], "decays": False},
        ],
        lr=0.0,
        fused=True,
    )


def _any_worker(run: Run, device: torch.device) -> Callable[[], bool]:
    """Whether any worker was asked to stop: the same answer in all of them."""

    def asked() -> bool:
        flag = torch.tensor([float(run.stop_requested)], device=device)
        return bool(reduce_sum(flag).item() > 0)

    return asked


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

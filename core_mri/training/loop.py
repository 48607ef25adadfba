"""The training loop: steps, checkpoints, resume, interruption; models and launchers are outside."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from core_mri.errors import RunError
from core_mri.runs import Run

MAX_BAD_STEPS = 3
"""Consecutive losses that are not finite before a run stops (as DINOv3's trainer does)."""


def fit(
    step: Callable[[int], Mapping[str, float]],
    *,
    run: Run,
    steps: int,
    state: Callable[[], Mapping[str, Any]],
    restore: Callable[[Mapping[str, Any]], None],
    checkpoint_every: int,
    description: str = "training",
    interrupted: Callable[[], bool] | None = None,
    enough: Callable[[], bool] | None = None,
) -> None:
    """Call ``step(i)`` for every step that is not done yet, and keep the run safe around it.

    Args:
        step: Does step i (0-based) and returns its numbers, ``loss`` among them. A step whose loss
            is not finite must leave the weights as they were.
        run: Where metrics and checkpoints go; its newest checkpoint is restored first.
        steps: Steps of the whole run.
        state: What a checkpoint must hold for an exact continuation.
        restore: Takes what `state` gave.
        checkpoint_every: Save after every so many steps, and after the last.
        description: For the progress bar.
        interrupted: Whether any worker was asked to stop; must give the same answer in all workers
            at the same step. Default: this process's own signals.
        enough: Asked after every step: whether to stop before `steps`, as if that step were the
            last.

    Raises:
        RunError: RUN-01 after `MAX_BAD_STEPS` consecutive losses that are not finite; the last good
            checkpoint is kept.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint of the last finished step.
    """
    done = 0
    found = run.load_checkpoint()
    if found is not None:
        done, saved = found
        restore(saved)
    bad = 0
    with run.progress(steps, description) as update:
        for index in range(done, steps):
            if enough is not None and enough():
                break
            started = time.perf_counter()
            numbers = dict(step(index))
            run.log_metrics(index, **numbers, seconds=time.perf_counter() - started)
            bad = 0 if math.isfinite(numbers["loss"]) else bad + 1
            if bad == MAX_BAD_STEPS:
                raise RunError(
                    "RUN-01",
                    f"the loss was not finite for {bad} steps, up to step {index}; "
                    f"the last checkpoint is in {run.out / 'checkpoints'}.",
                    fix="Lower the learning rate, or look at the data with `core-mri data ls`.",
                )
            update(index + 1, f"loss {numbers['loss']:.4f}")
            finished = index + 1
            last = finished == steps or (enough is not None and enough())
            if bad == 0 and (finished % checkpoint_every == 0 or last):
                run.save_checkpoint(finished, state())
            if interrupted is not None and interrupted():
                run.request_stop()
            if finished < steps:
                run.check_interrupt(finished, state)

"""The training loop: steps, checkpoints, resume, interruption; models and launchers are outside."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from core_mri.errors import RunError
from core_mri.launch import show_metrics
from core_mri.runs import Run

log = logging.getLogger(__name__)

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
    late: bool = False,
    after: Callable[[int], None] | None = None,
    urgent: Callable[[int], bool] | None = None,
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
        late: Look at the numbers of a step only after the next one was started, or before a
            checkpoint: the device never waits for the processor.
        after: Called with the step when its numbers were written down; may raise to end the run.
        urgent: Called with the number of finished steps, by all workers alike: whether a checkpoint
            must be complete before the next step, as one of them may be lost.
        enough: Asked around every step, of all workers alike: whether to stop before `steps`, as if
            the last finished step were the last of all.

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
        log.info("going on after step %d of %d", done, steps)
    watch = _Watch(run, after)
    with run.progress(steps, description) as update:
        for index in range(done, steps):
            if enough is not None and enough():
                break
            numbers = step(index)
            finished = index + 1
            last = finished == steps or (enough is not None and enough())
            hurry = urgent is not None and urgent(finished)
            saves = finished % checkpoint_every == 0 or last or hurry
            watch.take(index, numbers, wait=not late or saves or run.stop_requested)
            update(finished, watch.text)
            if saves and watch.bad == 0:
                run.save_checkpoint(finished, state())
                if hurry:
                    run.checkpoints.wait()
            if interrupted is not None and interrupted():
                run.request_stop()
            if finished < steps and run.stop_requested:
                watch.settle()
                run.check_interrupt(finished, state)


class _Watch:
    """Writes down the numbers of steps, and stops a run that diverges."""

    def __init__(self, run: Run, after: Callable[[int], None] | None) -> None:
        self.run = run
        self.after = after
        self.bad = 0
        self.text = ""
        self._waiting: list[tuple[int, Mapping[str, float]]] = []
        self._since = time.perf_counter()

    def take(self, index: int, numbers: Mapping[str, float], *, wait: bool) -> None:
        """Settle the step before, whose numbers have arrived meanwhile; this one too to `wait`."""
        self.settle()
        self._waiting.append((index, numbers))
        if wait:
            self.settle()

    def settle(self) -> None:
        """Look at the numbers that are waiting.

        Raises:
            RunError: RUN-01.
        """
        while self._waiting:
            index, late = self._waiting.pop()
            numbers = dict(late)
            now = time.perf_counter()
            seconds = now - self._since
            self.run.log_metrics(index, **numbers, seconds=seconds)
            self._since = now
            if self.run.main:
                show_metrics(self.run.out.name, _shown(index, numbers, seconds))
            self.text = f"loss {numbers['loss']:.4f}"
            self.bad = 0 if math.isfinite(numbers["loss"]) else self.bad + 1
            if self.bad == MAX_BAD_STEPS:
                raise RunError(
                    "RUN-01",
                    f"the loss was not finite for {self.bad} steps, up to step {index}; "
                    f"the last checkpoint is in {self.run.out / 'checkpoints'}.",
                    fix="Lower the learning rate, or look at the data with `core-mri data ls`.",
                )
            if self.after is not None:
                self.after(index)


def _shown(index: int, numbers: Mapping[str, float], seconds: float) -> dict[str, float]:
    """What of a step the dashboard of Ray shows."""
    shown = {"step": float(index + 1), "loss": numbers["loss"]}
    if "images_per_second" in numbers:
        shown["images_per_second"] = numbers["images_per_second"]
    if "wait_seconds" in numbers:
        shown["data_wait_share"] = numbers["wait_seconds"] / seconds
    return shown

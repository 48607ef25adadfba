"""Training a cell: with checkpoints, and with several learning rates where a suite asks for it.

Tuning is part of the budget of a cell. Every contender is trained once per factor of the suite on
its learning rates, and the training with the best validation Dice is tested; the processor time of
the cell is that of all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from core_mri.errors import ConfigError
from core_mri.launch import preemption_due
from core_mri.runs import Run
from core_mri.training.loop import fit
from core_mri.training.parallel import any_worker
from downstream.best_step import BestStep
from downstream.recipe import Recipe

if TYPE_CHECKING:
    from downstream.evaluation.cells import Cell

CHECKPOINT_EVERY = 500
"""Steps of a cell between two checkpoints; a finished cell keeps none."""


class Training(Protocol):
    """What can be trained."""

    best: BestStep
    """By validation patients: Dice first."""

    def step(self, index: int) -> Mapping[str, float]:
        """Do step `index`; ``loss`` is among its numbers."""

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint holds."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""


T = TypeVar("T", bound=Training)


def fit_best(
    make: Callable[[float], T], cell: Cell, run: Run, *, main: bool = False
) -> tuple[T, tuple[str, ...]]:
    """Train with every factor of the cell and keep the one that is best on validation patients.

    Args:
        make: Factor on the learning rates to a model before its first step.
        cell: What is fitted; it trains in its folder of the run, or in one of each factor in that.
        run: The run of the whole evaluation.
        main: Train in the folder of `run` itself; such a cell has one factor.

    Returns:
        The trained model, and what a reader should know of the choice. The first of equals is kept,
        and the first factor where there are no validation patients.
    """
    best: T | None = None
    scores = []
    for factor in cell.tuning:
        trainer = make(factor)
        part = "" if len(cell.tuning) == 1 else f"x{factor:g}"
        train(trainer, cell, run, main=main, part=part)
        scores.append(trainer.best.validated)
        if best is None or trainer.best.validated > best.best.validated:
            best = trainer
        if trainer.best.validated < 0:
            break
    assert best is not None
    if len(cell.tuning) == 1:
        return best, ()
    if best.best.validated < 0:
        return best, (f"learning rates x{cell.tuning[0]:g}, not tuned: no validation patients",)
    found = ", ".join(f"x{f:g}: {s:.3f}" for f, s in zip(cell.tuning, scores, strict=True))
    chosen = cell.tuning[scores.index(max(scores))]
    return best, (
        f"learning rates x{chosen:g} chosen by validation Dice ({found}); "
        f"{len(cell.tuning)} trainings of {cell.steps} steps",
    )


def train(trainer: Training, cell: Cell, run: Run, *, main: bool = False, part: str = "") -> None:
    """All steps, with checkpoints.

    Args:
        trainer: Before its first step.
        cell: What is trained.
        run: The run of the whole evaluation.
        main: Train in the folder of `run` itself, not in one of the cell.
        part: Name of a folder within that of the cell.

    Raises:
        ConfigError: CONFIG-04 when the checkpoint of the folder is of other weights or scans.
    """
    if main:
        _fit(trainer, run, cell)
        return
    with run.part(f"cells/{cell.key}/{part}", cell) as own:
        _fit(trainer, own, cell)


def kept(trainer: Training, cell: Cell) -> str:
    """Which step is kept, for readers."""
    done = trainer.best.curve[-1].step
    early = f" (stopped early, {cell.steps} were allowed)" if done < cell.steps else ""
    return f"step {trainer.best.step} of {done} kept{early}"


def drop_checkpoints(run: Run, cell: Cell) -> None:
    """Remove the checkpoints of a finished cell; its metrics stay."""
    for folder in (run.out / "cells" / cell.key).glob("**/checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with every learning rate times `factor`."""
    rates = [field.name for field in fields(recipe) if field.name.endswith("learning_rate")]
    return replace(recipe, **{name: getattr(recipe, name) * factor for name in rates})


def _fit(trainer: Training, run: Run, cell: Cell) -> None:
    def restore(state: Mapping[str, Any]) -> None:
        if state["cell"] != cell.key:
            raise ConfigError(
                "CONFIG-04",
                f"{run.out}: weights, labels or scans have changed since this run was started.",
                fix="Choose another --out, or empty this folder.",
            )
        trainer.restore(state)

    fit(
        trainer.step,
        run=run,
        steps=cell.steps,
        state=lambda: {"cell": cell.key, **trainer.state()},
        restore=restore,
        checkpoint_every=CHECKPOINT_EVERY,
        enough=lambda: trainer.best.enough,
        interrupted=any_worker(run),
        urgent=preemption_due,
        description=f"{cell.task.name}, {cell.weights}, k {cell.k}, draw {cell.draw}",
    )

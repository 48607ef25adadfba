"""Baselines as contenders of a suite: same tasks, draws, budget and scores, no weights, no twin."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from core_mri.devices import select_device
from core_mri.runs import Run
from downstream.baselines import myopari, nnunetv2
from downstream.baselines.planning import plan_unet
from downstream.baselines.unet import PlannedSlices, UNetTrainer, planned
from downstream.cohort import read_image
from downstream.config import BaselineName, SuiteConfig
from downstream.evaluation.cells import (
    Cell,
    Contender,
    TaskData,
    measured_scores,
    outcome_of,
)
from downstream.evaluation.draws import draw, seed_of
from downstream.evaluation.fitting import drop_checkpoints, fit_best, kept
from downstream.evaluation.results import Outcome
from downstream.evaluation.setup import cells_of
from downstream.evaluation.testing import score_predictions
from downstream.segmentation.data import Pair, Pairs, Shot, read_mask
from downstream.segmentation.predict import Prediction, predicted
from downstream.segmentation.sequences import read_channels

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

FROM_SCRATCH = "from scratch"
AS_RELEASED = "as released"


@dataclass(frozen=True)
class Baseline:
    """A contender that is no encoder."""

    name: BaselineName
    against = ""
    pretraining_patients = None

    @cached_property
    def version(self) -> str:
        """Of the program behind it; empty when it is not installed or part of this package."""
        program = {"unet": lambda: "", "nnunetv2": nnunetv2.version, "myopari": myopari.version}
        return program[self.name]()

    @property
    def standing(self) -> str:
        """Version for the dry run, or that it is not installed."""
        if self.name == "unet":
            return ""
        return f" {self.version}" if self.version else ": not installed, its cells stay empty"

    @property
    def leakage(self) -> str:
        """What is known about test patients among those it has seen, one sentence."""
        if self.name == "myopari":
            return "Not checked: trained by its authors on ACDC, a public set of another hospital."
        return "Trained from scratch: it has seen nobody but the examples of the cell."


def baselines(config: SuiteConfig) -> list[Baseline]:
    """Those the suite asks for."""
    return [Baseline(name) for name in config.baselines]


def baseline_cells(config: SuiteConfig, baseline: Baseline, data: TaskData) -> list[Cell]:
    """Its cells on a task: every k and draw, one for a released model; segmentation only."""
    if data.task.kind != "segmentation":
        return []
    released = baseline.name == "myopari"
    return [
        Cell(
            task=data.task,
            weights=baseline.name,
            against="",
            baseline=baseline.name,
            fingerprint=f"{baseline.name} {baseline.version}",
            scans=data.scans,
            k=k,
            draw=number,
            seed=config.seed,
            steps=0 if released else config.baseline_steps or config.steps,
            protocol=config.protocol,
            tuning=config.tuning if baseline.name == "unet" else (1.0,),
            recipe=config.recipe,
        )
        for k in ((0,) if released else data.task.k or config.k)
        for number in range(1 if released else config.draws)
    ]


def all_cells(config: SuiteConfig, contender: Contender | Baseline, data: TaskData) -> list[Cell]:
    """The cells of an encoder or a baseline on a task."""
    if isinstance(contender, Baseline):
        return baseline_cells(config, contender, data)
    return cells_of(config, contender, data)


def run_baseline(cell: Cell, data: TaskData, registry: Registry, run: Run, device: str) -> Outcome:
    """Fit and test; the outcome is `Outcome.empty` where a program is missing or has no answer.

    Args:
        cell: What to do.
        data: The scans, of a segmentation task.
        registry: Where their voxels are.
        run: The run of the whole evaluation.
        device: As in the suite.

    Raises:
        DataError: DATA-06, DATA-09 from labels and draws; DATA-30 when another program fails.
        RunError: RUN-01 when the training diverges.
        Interrupted: With a checkpoint in the cell's folder.
    """
    assert isinstance(data.data, Pairs)
    started = time.process_time()
    if cell.baseline == "unet":
        outcome = _unet(cell, data.data, registry, run, device)
    elif cell.baseline == "nnunetv2":
        outcome = _nnunet(cell, data.data, registry, run, device)
    else:
        outcome = _myopari(cell, data.data, registry, run)
    return replace(
        outcome,
        sources=tuple(sorted({f"{row.source} ({row.licence})" for row in data.rows})),
        synthetic=all(row.synthetic for row in data.rows),
        cpu_seconds=outcome.cpu_seconds or round(time.process_time() - started, 2),
    )


def _unet(cell: Cell, pairs: Pairs, registry: Registry, run: Run, device: str) -> Outcome:
    shots, validation = draw(cell, pairs, registry)
    rows = [shot.pair.image for shot in shots]
    plan = plan_unet(
        [(row.rows, row.columns) for row in rows], [_in_plane(shot.pair) for shot in shots]
    )

    def read(shot: Shot) -> PlannedSlices:
        channels = read_channels(registry, shot.pair.images)
        classes = read_mask(registry, shot.pair, cell.task)
        return planned(channels, classes, shot.slices, _in_plane(shot.pair), plan)

    training, held_out = [read(shot) for shot in shots], [read(shot) for shot in validation]

    def make(factor: float) -> UNetTrainer:
        return UNetTrainer(
            plan,
            training,
            held_out,
            labels=dict(enumerate(cell.task.labels, start=1)),
            recipe=cell.recipe,
            steps=cell.steps,
            seed=seed_of(cell),
            learning_rate=factor,
            device=select_device(device),
            name=cell.task.name,
        )

    trainer, tuned = fit_best(make, cell, run)
    model = trainer.finish()

    def predictions() -> Iterator[Prediction]:
        for pair in pairs.test:
            channels = read_channels(registry, pair.images)
            estimate = model.segment(channels, _in_plane(pair))
            reference = read_mask(registry, pair, cell.task)
            yield predicted(pair, channels[0], reference, estimate, cell.task)

    tested = score_predictions(predictions(), cell, run, method=FROM_SCRATCH)
    drop_checkpoints(run, cell)
    absent = trainer.absent
    size = "x".join(map(str, plan.patch))
    return outcome_of(
        cell,
        _used(shots, validation, pairs),
        scores=measured_scores(cell, tested),
        curve=tuple(map(astuple, trainer.best.curve)),
        cases=tested.cases,
        notes=(
            kept(trainer, cell),
            f"planned: patches {size} at {plan.spacing[0]:g}x{plan.spacing[1]:g}, "
            f"{len(plan.strides)} stages of {plan.channels[0]} to {plan.channels[-1]} channels",
            *tuned,
            *([f"no training example shows {', '.join(absent)}"] if absent else []),
        ),
    )


def _nnunet(cell: Cell, pairs: Pairs, registry: Registry, run: Run, device: str) -> Outcome:
    shots, validation = draw(cell, pairs, registry)
    used = _used(shots, validation, pairs)
    if not nnunetv2.version():
        return outcome_of(cell, used, empty=nnunetv2.MISSING)
    found = nnunetv2.segment(
        shots,
        validation,
        pairs.test,
        task=cell.task,
        registry=registry,
        folder=run.out / "cells" / cell.key,
        steps=cell.steps,
        device=str(select_device(device)),
    )
    predictions = (
        predicted(
            pair,
            read_image(registry, pair.image),
            read_mask(registry, pair, cell.task),
            found.read(pair),
            cell.task,
        )
        for pair in pairs.test
    )
    tested = score_predictions(predictions, cell, run, method=FROM_SCRATCH)
    return outcome_of(
        cell,
        used,
        scores=measured_scores(cell, tested),
        cases=tested.cases,
        notes=found.notes,
        cpu_seconds=found.cpu_seconds,
    )


def _myopari(cell: Cell, pairs: Pairs, registry: Registry, run: Run) -> Outcome:
    used = _used([], [], pairs)
    reason = myopari.unable(list(cell.task.labels), len(cell.task.sequences))
    if reason:
        return outcome_of(cell, used, empty=reason)
    model = myopari.Myopari(list(cell.task.labels))

    def predictions() -> Iterator[Prediction]:
        for pair in pairs.test:
            image = read_image(registry, pair.image)
            estimate = model.segment(image)
            yield predicted(pair, image, read_mask(registry, pair, cell.task), estimate, cell.task)

    tested = score_predictions(predictions(), cell, run, method=AS_RELEASED)
    return outcome_of(
        cell,
        used,
        scores=measured_scores(cell, tested),
        cases=tested.cases,
        notes=(f"myopari {myopari.version()}: no example of this data was used",),
    )


def _in_plane(pair: Pair) -> tuple[float, float]:
    """Row and column spacing."""
    return pair.image.spacing_mm[1], pair.image.spacing_mm[2]


def _used(
    shots: Sequence[Shot], validation: Sequence[Shot], pairs: Pairs
) -> dict[str, list[VolumeRow]]:
    return {
        "train": [shot.pair.image for shot in shots],
        "val": [shot.pair.image for shot in validation],
        "test": [pair.image for pair in pairs.test],
    }

"""Trainings x seeds x labelled patients beside classical methods: one table, resumable.

A cell is one training, tested at every acceleration, or one classical method at one acceleration.
Test scans are the same for all of them: coils, phases, noise and masks depend on the slice alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core_mri.config import to_mapping
from core_mri.errors import CoreMRIError, Interrupted
from core_mri.metrics import psnr
from core_mri.runs import Run
from data_registry.catalogue import Registry
from downstream.cohort import fingerprint
from downstream.evaluation.results import Outcome, Score, load_outcome, save_outcome, write_results
from downstream.evaluation.summary import Comparison
from downstream.reconstruction.training.batches import fixed_lines, kept
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.finetune import Job, train
from downstream.reconstruction.training.slices import SimulatedSlices
from downstream.reconstruction.training.study_config import (
    Classical,
    Contender,
    ReconstructionStudy,
)
from downstream.reconstruction.training.study_pictures import load_picture, save_picture
from downstream.reconstruction.training.study_report import study_report
from downstream.reconstruction.training.summary import Group, compared, grouped, summarized
from downstream.reconstruction.training.testing import (
    METRICS,
    Tested,
    Way,
    by_classical,
    by_network,
    scored_volumes,
)

log = logging.getLogger(__name__)

TUNED = ("tv", "wavelet")
_TUNING_SEED = 30_000


@dataclass(frozen=True)
class Cell:
    """One training, or one classical method at one acceleration."""

    name: str
    key: str
    config: ReconstructionConfig | None
    """None for a classical method."""
    choice: int = 0
    """Classical: which acceleration."""
    weight: float | None = None
    """Classical: of the penalty, None for its default."""


def evaluate_study(study: ReconstructionStudy, *, resume: bool = False) -> Path:
    """Run a study.

    Args:
        study: What to do.
        resume: Demand that the folder holds an earlier start.

    Returns:
        The folder with ``results.json``, ``results.csv``, ``report.html`` and ``cells/``.

    Raises:
        CoreMRIError: When the registry or the folder cannot be used. A failed training is recorded
            and tried again at the next start.
    """
    registry = Registry.open(study.registry)
    test = SimulatedSlices(registry, study.test_split, study.where, study.simulation)
    with Run.open(study.out, study, resume=resume) as run:
        outcomes, shown = [], []
        folders = [folder / "cells" for folder in (run.out, *study.reuse)]
        for cell in _cells(study, registry, test):
            earlier = (load_outcome(folder, cell.key) for folder in folders)
            found = next((outcome for outcome in earlier if outcome is not None), None)
            if found is None:
                found = _outcome(cell, study, test, run)
                save_outcome(found, run.out / "cells")
            outcomes.append(found)
            if cell.config is None or cell.config.seed == study.seeds[0]:
                shown.append(cell.key)
            if run.stop_requested:
                raise Interrupted(f"{run.out}: run the same command again to go on.")
        rows = summarized(outcomes, study.seeds[0])
        comparisons = _comparisons(study, outcomes)
        pictures = {
            f"{rate:g}x": [
                kept
                for key in shown
                for folder in folders
                if (kept := load_picture(folder, key, rate))
            ]
            for rate in study.undersampling.accelerations
        }
        report = study_report(study, test, outcomes, rows, comparisons, pictures)
        write_results(run.out, outcomes, rows, report.verdict, comparisons)
        report.write(run.out / "report.html")
    return study.out


def rehearse_study(study: ReconstructionStudy) -> list[str]:
    """Check data and weights and time a few steps of every contender; nothing is written."""
    lines, seconds = [], 0.0
    for name, contender in study.contenders.items():
        config = training_config(study, contender, study.seeds[0], _counts(study, contender)[0])
        trainer = Job(config).trainer()
        trainer.step(0)
        started = time.process_time()
        trainer.step(1)
        step = time.process_time() - started
        cells = len(study.seeds) * len(_counts(study, contender))
        seconds += step * study.steps * cells
        lines.append(f"{name}: {cells} trainings of {study.steps} steps of {step:.2f} CPU-s")
    return [*lines, f"training alone takes about {seconds / 60:.0f} CPU-minutes here"]


def training_config(
    study: ReconstructionStudy, contender: Contender, seed: int, labelled: int
) -> ReconstructionConfig:
    """One training of a study."""
    fitting = contender.fitting
    if study.test_split == "val":
        fitting = replace(fitting, num_validation=0)
    return ReconstructionConfig(
        registry=study.registry,
        where=contender.train_where or study.where,
        out=study.out,
        seed=seed,
        steps=study.steps,
        supervision=contender.supervision,
        labelled=labelled,
        network=contender.network,
        encoder=contender.encoder,
        simulation=study.simulation,
        undersampling=study.undersampling,
        loss=contender.loss,
        fitting=fitting,
        device=study.device,
        allow_overlap=study.allow_overlap,
    )


def _counts(study: ReconstructionStudy, contender: Contender) -> tuple[int, ...]:
    """Numbers of labelled patients; without labels they make no difference."""
    if contender.supervision == "self-supervised":
        return (0,)
    return contender.labelled or study.labelled


def _cells(study: ReconstructionStudy, registry: Registry, test: SimulatedSlices) -> Iterator[Cell]:
    common = {
        "test": fingerprint(test.rows), "test_every": study.test_every,
        "simulation": to_mapping(study.simulation),
        "undersampling": to_mapping(study.undersampling),
    }  # fmt: skip
    training = None
    for name in study.classical:
        for choice in range(len(study.undersampling.accelerations)):
            weight = None
            if name in TUNED:
                training = training or SimulatedSlices(
                    registry, "train", study.where, study.simulation
                )
                weight = _tuned(name, study, training, choice)
            key = _key(name, common | {"choice": choice, "weight": weight})
            yield Cell(name, key, None, choice, weight)
    for title, contender in study.contenders.items():
        for labelled in _counts(study, contender):
            for seed in study.seeds:
                config = training_config(study, contender, seed, labelled)
                settings = {k: v for k, v in to_mapping(config).items() if k != "out"}
                yield Cell(title, _key(title, common | settings), config)


def _key(name: str, facts: dict[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{digest[:16]}"


def _tuned(
    name: Classical, study: ReconstructionStudy, training: SimulatedSlices, choice: int
) -> float:
    """The weight with the best PSNR on slices of training patients."""
    positions = np.linspace(0, len(training) - 1, study.tuning_slices).round().astype(int)
    scores = []
    for weight in study.tuning:
        method = by_classical(name, weight)
        found = []
        for position in positions.tolist():
            own = training.read(position, np.random.default_rng((_TUNING_SEED, position)))
            mask = fixed_lines(
                study.undersampling, choice, own.kspace.shape[-1], (_TUNING_SEED, position)
            )
            image = method(kept(own.kspace, mask), mask, own.size)
            assert own.reference is not None
            found.append(psnr(own.reference[None], image[None]))
        scores.append(float(np.mean(found)))
    best = study.tuning[int(np.argmax(scores))]
    log.info("%s, acceleration %d: weight %g", name, choice, best)
    return best


def _outcome(
    cell: Cell,
    study: ReconstructionStudy,
    test: SimulatedSlices,
    run: Run,
) -> Outcome:
    """What one cell gives; an error of ours is recorded."""
    log.info("cell %s", cell.key)
    started = time.process_time()
    config = cell.config
    labelled = 0 if config is None else config.labelled
    seed = study.seeds[0] if config is None else config.seed
    base = Outcome(
        key=cell.key, task="simulated", weights=cell.name, against="", k=labelled, draw=seed
    )
    notes: tuple[str, ...] = ()
    try:
        if config is None:
            way: Way = by_classical(cell.name, cell.weight)  # type: ignore[arg-type]
            choices = [cell.choice]
            if cell.weight is not None:
                rate = study.undersampling.accelerations[cell.choice]
                notes = (f"{cell.name}, {rate:g}x: weight {cell.weight:g} chosen on training",)
        else:
            way, notes = _trained(cell, config, run)
            choices = list(range(len(study.undersampling.accelerations)))
        scores = []
        for choice in choices:
            rate = study.undersampling.accelerations[choice]
            volumes = scored_volumes(way, test, study.undersampling, choice, study.test_every)
            for number, volume in enumerate(volumes):
                if number == 0 and seed == study.seeds[0]:
                    named = replace(volume, volume=f"{cell.name}, {_patients(labelled)}")
                    save_picture(run.out / "cells", cell.key, rate, named)
                scores += _scores(volume, cell, f"simulated {rate:g}x", labelled, seed)
    except CoreMRIError as error:
        if isinstance(error, Interrupted):
            raise
        log.warning("cell %s failed: %s", cell.key, error)
        return replace(base, error=str(error))
    return replace(
        base,
        scores=tuple(scores),
        notes=notes,
        patients={"test": tuple(sorted(set(test.patients)))},
        cpu_seconds=round(time.process_time() - started, 1),
    )


def _trained(cell: Cell, config: ReconstructionConfig, run: Run) -> tuple[Way, tuple[str, ...]]:
    job = Job(config)
    trainer = job.trainer()
    with run.part(f"cells/{cell.key}", config) as own:
        train(trainer, own, f"{cell.name}, seed {config.seed}")
    moving, _ = trainer.num_moving
    told = f"{cell.name}, {_patients(config.labelled)}, seed {config.seed}: "
    told += f"step {trainer.best.step} of {trainer.steps} kept, {moving:,} parameters moved"
    network = trainer.finish()
    return by_network(network), (told, *([job.leakage] if job.leakage else []))


def _scores(volume: Tested, cell: Cell, task: str, labelled: int, seed: int) -> list[Score]:
    method = "classical" if cell.config is None else cell.config.supervision
    return [
        Score(
            task=task, weights=cell.name, twin=False, method=method, k=labelled, draw=seed,
            seed=seed, patient=volume.patient, structure=volume.volume, metric=metric, value=value,
            unit=METRICS[metric],
        )
        for metric, value in volume.scores.items()
    ]  # fmt: skip


def _comparisons(study: ReconstructionStudy, outcomes: list[Outcome]) -> list[Comparison]:
    """The pairs that were asked for, at every acceleration and number of labelled patients."""
    groups = grouped(outcomes)
    pairs: list[tuple[Group, Group]] = []
    for first, second in study.compare:
        ours, theirs = ([group for group in groups if group[1] == n] for n in (first, second))
        for own in ours:
            found = [group for group in theirs if group[0] == own[0]]
            # What exists for one number of labels stands beside every number of the other.
            alone = any(len({group[3] for group in side}) == 1 for side in (ours, theirs))
            pairs += [(own, other) for other in found if alone or other[3] == own[3]]
    return compared(outcomes, pairs, study.seeds[0])


def _patients(labelled: int) -> str:
    return f"{labelled} labelled" if labelled else "all labelled"

"""Run the cells of an evaluation, keep what is finished, and write results and report.

A fine-tuning run is an evaluation of one encoder on one task that also keeps model and masks.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core_mri.config import load_config, to_mapping
from core_mri.devices import is_main
from core_mri.errors import ConfigError, CoreMRIError, Interrupted
from core_mri.launch import Workers, launch
from core_mri.runs import Run
from core_mri.weights import save_model
from data_registry.catalogue import Registry
from data_registry.governance.propagation import mixture_of_volumes
from data_registry.governance.uses import note_training
from downstream.adapt import architecture
from downstream.config import FinetuneConfig, Running, SuiteConfig
from downstream.evaluation.baselines import (
    Baseline,
    all_cells,
    baseline_cells,
    baselines,
    run_baseline,
)
from downstream.evaluation.cells import (
    Cell,
    Contender,
    TaskData,
    outcome_of,
    run_cell,
)
from downstream.evaluation.draws import draw, draw_unlabelled, make_trainer
from downstream.evaluation.release import card_facts, trained_on, update_cards
from downstream.evaluation.remote import Job, cells_on_ray
from downstream.evaluation.report import build_report
from downstream.evaluation.results import Outcome, load_outcome, save_outcome, write_results
from downstream.evaluation.setup import (
    Failed,
    as_suite,
    cells_of,
    check_leakage,
    contenders,
    describe,
    prepared,
)
from downstream.evaluation.summary import summarize
from downstream.feature_cache import FeatureCache
from downstream.segmentation.data import Pairs

log = logging.getLogger(__name__)

TIMED_STEPS = 3


def finetune(
    config: FinetuneConfig, *, resume: bool = False, workers: Workers | None = None
) -> Path:
    """Adapt an encoder to a task and compare it with its random-initialised twin.

    The run folder gets ``results.json``, ``results.csv``, ``report.html``, ``weights/`` (the model
    of the first draw: a segmenter, a promptable model, or the classifier by attention, else the
    linear probe) and for a segmentation or prompting task ``predictions/*.nii.gz`` (its masks of
    the test volumes on their stored grid; prompting: its answers to boxes).

    Args:
        config: What to do.
        resume: Demand that the folder holds an unfinished run.
        workers: Where it runs; several share the batches of a segmentation.

    Returns:
        The run folder.

    Raises:
        ConfigError: CONFIG-05 for several workers that have nothing to share.
        CoreMRIError: What went wrong, with its code; finished cells are kept.
    """
    workers = workers or Workers()
    if workers.num_workers > 1:
        _check_shared(config, workers.num_workers)
    study = Study.of(as_suite(config), keep_model=True, running=Running(embeddings_gb=0))
    if workers.launcher == "local":
        with Run.open(config.out, config, resume=resume) as run:
            return _run(study, run)
    Run.open(config.out, config, resume=resume)  # wrong folders are refused before workers start
    launch(
        f"{__name__}:finetune_worker",
        {"config": to_mapping(config), "folder": str(Path.cwd())},
        workers,
        storage=config.out / "launcher",
    )
    return config.out


def finetune_worker(payload: Mapping[str, Any]) -> None:
    """What every worker of `finetune` runs: the main one also tests and writes.

    Args:
        payload: ``config``, the plain mapping of a `FinetuneConfig`, and the ``folder`` to which
            its paths belong.
    """
    os.chdir(payload["folder"])
    config = load_config(FinetuneConfig, payload["config"])
    study = Study.of(as_suite(config), keep_model=True, running=Running(embeddings_gb=0))
    with Run.open(config.out, config, main=is_main()) as run:
        if run.main:
            _run(study, run)
        else:
            study.outcomes(run)


def _check_shared(config: FinetuneConfig, num_workers: int) -> None:
    """Refuse workers that would have nothing to do."""
    if config.task.kind != "segmentation":
        raise ConfigError(
            "CONFIG-05",
            f"a task of kind {config.task.kind} runs on one worker, not {num_workers}.",
            fix="Leave out --num-workers.",
        )
    if num_workers > config.recipe.batch_size:
        raise ConfigError(
            "CONFIG-05",
            f"recipe.batch_size {config.recipe.batch_size} cannot be shared by {num_workers} "
            "workers.",
            fix=f"Use --num-workers {config.recipe.batch_size} at most.",
        )


def evaluate(config: SuiteConfig, *, resume: bool = False, running: Running | None = None) -> Path:
    """Compare encoders on tasks, each beside its random-initialised twin.

    Finished cells of an earlier start are not computed again as long as nothing they depend on has
    changed: settings, weights, scans. A failed cell is recorded and tried again at the next start.

    Args:
        config: What to do.
        resume: Demand that the folder holds an earlier start.
        running: Where cells are computed, and where features are kept.

    Returns:
        The folder with ``results.json``, ``results.csv``, ``summary.csv``, ``summary.tex`` and
        ``report.html``.

    Raises:
        CoreMRIError: When the registry or the folder cannot be used, or RUN-02 when there is no
            Ray cluster at the address given.
    """
    study = Study.of(config, keep_model=False, running=running or Running())
    with Run.open(config.out, config, resume=resume) as run:
        return _run(study, run)


def rehearse(config: FinetuneConfig | SuiteConfig) -> list[str]:
    """Check data, weights and draws and time a few steps; nothing is written.

    Returns:
        Lines for the start screen.

    Raises:
        CoreMRIError: The first thing that would make a cell fail.
    """
    suite = as_suite(config) if isinstance(config, FinetuneConfig) else config
    registry = Registry.open(suite.registry)
    found = prepared(suite, registry)
    lines = [describe(data) for data in found]
    tasks = []
    for data in found:
        if not isinstance(data, Failed):
            tasks.append(data)
        elif not (data.optional and _is_few(data.error)):
            raise data.error
    num_cells, seconds = 0, 0.0
    for contender in contenders(suite):
        if isinstance(contender, Failed):
            raise contender.error
        device = next(contender.start.parameters()).device
        lines.append(f"weights {contender.name}: {architecture(contender.start)} on {device}")
        for data in tasks:
            check_leakage(contender, data, suite.allow_overlap)
            cells = cells_of(suite, contender, data)
            num_cells += len(cells)
            if isinstance(data.data, Pairs):
                draw(max(cells, key=lambda cell: cell.k), data.data, registry)
            tried = len(cells) * len(suite.tuning)
            seconds += tried * suite.steps * _step_seconds(cells[0], contender, data, registry)
    for baseline in baselines(suite):
        num_cells += sum(len(baseline_cells(suite, baseline, data)) for data in tasks)
        lines.append(f"baseline {baseline.name}{baseline.standing}")
    return [
        *lines,
        f"{num_cells} cells; training steps of the encoders alone take about {seconds:.0f} s here",
    ]


def _run(study: Study, run: Run) -> Path:
    """All cells, then the files."""
    config = study.config
    tasks = zip(config.tasks, study.tasks, strict=True)
    named = tuple(asked if isinstance(data, Failed) else data.task for asked, data in tasks)
    config = replace(config, tasks=named)  # structures told by name are known now
    for data in study.tasks:
        log.info("%s", describe(data))
    outcomes = study.outcomes(run)
    summary, comparisons = summarize(outcomes, seed=config.seed)
    folders = [folder / "cells" for folder in (run.out, *config.reuse)]
    report = build_report(config, outcomes, summary, comparisons, folders)
    write_results(run.out, outcomes, summary, report.verdict, comparisons)
    report.write(run.out / "report.html")
    if study.running.update_cards:
        update_cards(config, outcomes, summary)
    return run.out


@dataclass(frozen=True)
class Study:
    """The cells of one evaluation, in order."""

    config: SuiteConfig
    registry: Registry
    tasks: Sequence[TaskData | Failed]
    contenders: Iterator[Contender | Baseline | Failed]
    keep_model: bool = False
    """The first cell is the main one, whose model is kept; errors are raised, not recorded."""
    running: Running = field(default_factory=Running)

    @classmethod
    def of(cls, config: SuiteConfig, *, keep_model: bool, running: Running) -> Study:
        """Look at the inputs, so that wrong ones are refused before a folder is made."""
        registry = Registry.open(config.registry)
        tasks = prepared(config, registry)
        found = contenders(config)
        first = next(found)
        if keep_model:
            for part in (*tasks, first):
                if isinstance(part, Failed):
                    raise part.error
        everybody = itertools.chain([first], found, baselines(config))
        return cls(config, registry, tasks, everybody, keep_model, running)

    def outcomes(self, run: Run) -> list[Outcome]:
        """Every cell's outcome: an earlier one that still holds, or a new one."""
        remote = self._on_ray(run) if self.running.ray else {}
        found: list[Outcome] = []
        first = True
        for contender in self.contenders:
            for data in self.tasks:
                if isinstance(contender, Failed) or isinstance(data, Failed):
                    found.append(_failed_setup(contender, data))
                    continue
                for cell in all_cells(self.config, contender, data):
                    main = first and self.keep_model
                    found.append(
                        remote.get(cell.key) or self.outcome(cell, contender, data, run, main=main)
                    )
                    first = False
                    _stop_if_asked(run)
        return found

    def outcome(
        self,
        cell: Cell,
        contender: Contender | Baseline,
        data: TaskData,
        run: Run,
        *,
        main: bool = False,
    ) -> Outcome:
        """An earlier outcome, a new one, or with its error a failed one."""
        try:
            outcome = self._earlier(run, cell.key)
            if isinstance(contender, Baseline):
                outcome = outcome or self._baseline(cell, data, run)
                return replace(outcome, leakage=contender.leakage)
            leakage = check_leakage(contender, data, self.config.allow_overlap)
            if outcome is None:
                outcome = self._fit(cell, contender, data, run, main, leakage)
            else:
                log.info("cell %s: finished before", cell.key)
            return _named(outcome, cell, leakage)
        except Interrupted:
            raise
        except Exception as error:
            if self.keep_model:
                raise
            log.exception("cell %s failed", cell.key)
            failed = _failure(cell.key, cell.task.name, contender, cell.k, cell.draw, error)
            save_outcome(failed, run.out / "cells")
            return failed

    def _on_ray(self, run: Run) -> dict[str, Outcome]:
        """Key to outcome of the cells that were computed on the cluster, failed ones too."""
        planned = {
            cell.key: cell
            for contender in itertools.chain(contenders(self.config), baselines(self.config))
            for data in self.tasks
            if not isinstance(contender, Failed) and isinstance(data, TaskData)
            for cell in all_cells(self.config, contender, data)
            if self._earlier(run, cell.key) is None
        }
        jobs = [Job(cell.weights, cell.task.name, cell.key) for cell in planned.values()]
        found: dict[str, Outcome] = {}
        for job, result in cells_on_ray(self.config, jobs, run, self.running) if jobs else ():
            cell = planned[job.key]
            outcome = (
                result if isinstance(result, Outcome) else outcome_of(cell, {}, error=str(result))
            )
            if not outcome.empty:
                save_outcome(outcome, run.out / "cells")
            found[job.key] = outcome
            _log_outcome(outcome)
        _stop_if_asked(run)
        return found

    def _earlier(self, run: Run, key: str) -> Outcome | None:
        folders = (folder / "cells" for folder in (run.out, *self.config.reuse))
        found = (load_outcome(folder, key) for folder in folders)
        return next((outcome for outcome in found if outcome is not None), None)

    @property
    def _cache(self) -> FeatureCache | None:
        limit = self.running.embeddings_gb * 1e9
        folder = self.running.embeddings or self.config.out / "embeddings"
        return FeatureCache(folder, limit) if limit else None

    def _baseline(self, cell: Cell, data: TaskData, run: Run) -> Outcome:
        log.info("cell %s: %s", cell.key, cell.weights)
        outcome = run_baseline(cell, data, self.registry, run, self.config.device)
        if outcome.empty:
            log.warning("cell %s: empty: %s", outcome.key, outcome.empty)
            return outcome
        save_outcome(outcome, run.out / "cells")
        _log_outcome(outcome)
        return outcome

    def _fit(
        self,
        cell: Cell,
        contender: Contender,
        data: TaskData,
        run: Run,
        main: bool,
        leakage: str,
    ) -> Outcome:
        log.info("cell %s: %s", cell.key, cell.weights)
        outcome, model = run_cell(
            cell, contender, data, self.registry, run, main=main, cache=self._cache
        )
        if not run.main:
            return outcome
        if main and model is not None:
            licence = mixture_of_volumes(self.registry, data.rows).card(contender.card)
            facts = {**card_facts(cell, contender, outcome, leakage), **licence}
            save_model(model, run.out / "weights", facts)
            known = set(contender.pretraining_patients or ()) | trained_on(outcome)
            note_training(self.registry.path, run.out / "weights", known, "finetune")
        save_outcome(outcome, run.out / "cells")
        _log_outcome(outcome)
        return outcome


def _failed_setup(contender: Contender | Baseline | Failed, data: TaskData | Failed) -> Outcome:
    """One failed cell stands for all those of an encoder or a task that cannot be set up."""
    culprit = contender if isinstance(contender, Failed) else data
    assert isinstance(culprit, Failed)
    if isinstance(data, Failed) and data.optional and _is_few(data.error):
        return Outcome(
            key=f"{data.name}-{contender.name}-empty",
            task=data.name,
            weights=contender.name,
            against="",
            k=0,
            draw=0,
            empty=str(data.error),
        )
    task = data.name if isinstance(data, Failed) else data.task.name
    key = f"{task}-{contender.name}-not-set-up"
    log.error("cell %s: %s", key, culprit.error)
    return _failure(key, task, contender, 0, 0, culprit.error)


def _is_few(error: Exception) -> bool:
    return isinstance(error, CoreMRIError) and error.code == "DATA-09"


def _stop_if_asked(run: Run) -> None:
    if run.stop_requested:
        raise Interrupted(
            f"stopped between cells; finished ones are kept in {run.out / 'cells'}. Run the same "
            "command again with --resume to continue."
        )


def _named(outcome: Outcome, cell: Cell, leakage: str) -> Outcome:
    """The outcome under the names of this run, whatever run it comes from."""
    scores = tuple(replace(score, weights=cell.weights, twin=cell.twin) for score in outcome.scores)
    return replace(
        outcome, weights=cell.weights, against=cell.against, leakage=leakage, scores=scores
    )


def _failure(
    key: str,
    task: str,
    contender: Contender | Baseline | Failed,
    k: int,
    number: int,
    error: Exception,
) -> Outcome:
    against = "its random twin" if isinstance(contender, Failed) else contender.against
    text = str(error) if isinstance(error, CoreMRIError) else f"{type(error).__name__}: {error}"
    return Outcome(
        key=key,
        task=task,
        weights=contender.name,
        against=against,
        baseline=isinstance(contender, Baseline),
        k=k,
        draw=number,
        error=text,
    )


def _log_outcome(outcome: Outcome) -> None:
    if outcome.error:
        log.error("cell %s: %s", outcome.key, outcome.error)
        return
    by_metric: dict[str, list[float]] = {}
    for score in outcome.scores:
        if score.value is not None:
            by_metric.setdefault(f"{score.method} {score.metric}", []).append(score.value)
    means = ", ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in by_metric.items())
    log.info("cell %s: %s (%.1f CPU-s)", outcome.key, means, outcome.cpu_seconds)


def _step_seconds(cell: Cell, contender: Contender, data: TaskData, registry: Registry) -> float:
    """Seconds of a training step, 0 for cells that take none."""
    if not isinstance(data.data, Pairs):
        return 0.0
    shots, validation = draw(cell, data.data, registry)
    unlabelled = draw_unlabelled(cell, data.data)
    trainer = make_trainer(
        cell, contender.start, shots, validation, registry, unlabelled=unlabelled
    )
    num_steps = min(TIMED_STEPS, cell.steps)
    started = time.perf_counter()
    for index in range(num_steps):
        trainer.step(index)
    return (time.perf_counter() - started) / num_steps

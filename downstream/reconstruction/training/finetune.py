"""One training run: train, keep the best step, test it beside classical methods, write everything.

The run folder is that of every other training: ``config.yaml``, ``metrics.jsonl``,
``checkpoints/``, ``weights/``, ``results.json``, ``results.csv``, ``report.html``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import core_mri
from core_mri.config import load_config, to_mapping
from core_mri.devices import is_main, select_device
from core_mri.errors import ConfigError
from core_mri.launch import Workers, launch, preemption_due
from core_mri.models.reconstruction import Reconstructor
from core_mri.physics.classical import Method
from core_mri.runs import Run
from core_mri.training.loop import fit
from core_mri.training.parallel import any_worker
from core_mri.weights import save_model
from data_registry.governance.propagation import mixture_of_volumes
from data_registry.governance.uses import note_training
from downstream.evaluation.results import Outcome, Score, write_results
from downstream.evaluation.setup import seen_before
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.networks import load_encoder
from downstream.reconstruction.training.report import training_report
from downstream.reconstruction.training.sets import Sets, load_sets
from downstream.reconstruction.training.slices import SimulatedSlices, Slices
from downstream.reconstruction.training.statistics import keep_statistics
from downstream.reconstruction.training.summary import summarized
from downstream.reconstruction.training.testing import (
    METRICS,
    Tested,
    Way,
    by_classical,
    by_network,
    scored_volumes,
)
from downstream.reconstruction.training.trainer import ReconstructionTrainer

if TYPE_CHECKING:
    from core_mri.models.encoder import Encoder

log = logging.getLogger(__name__)

CHECKPOINT_EVERY = 200
"""Steps."""
BESIDE: tuple[Method, ...] = ("zero-filled", "cg-sense", "wavelet")
"""Classical methods of the report, at their fixed settings."""


def finetune_reconstruction(
    config: ReconstructionConfig, *, resume: bool = False, workers: Workers | None = None
) -> Path:
    """Train a network for reconstruction and test it.

    Args:
        config: What to do.
        resume: Demand that the folder holds an unfinished run.
        workers: Where it runs; several share the slices of a batch.

    Returns:
        The run folder.

    Raises:
        ConfigError: CONFIG-05 for more workers than slices in a batch, or test patients among those
            of the weights it begins with.
        CoreMRIError: What else went wrong, with its code; checkpoints are kept.
    """
    workers = workers or Workers()
    if workers.num_workers > config.fitting.batch_size:
        raise ConfigError(
            "CONFIG-05",
            f"fitting.batch_size {config.fitting.batch_size} cannot be shared by "
            f"{workers.num_workers} workers.",
            fix=f"Use --num-workers {config.fitting.batch_size} at most.",
        )
    job = Job(config)
    if workers.launcher == "local":
        with Run.open(config.out, config, resume=resume) as run:
            return job.run(run)
    Run.open(config.out, config, resume=resume)  # wrong folders are refused before workers start
    payload = {"config": to_mapping(config), "folder": str(Path.cwd())}
    launch(f"{__name__}:reconstruction_worker", payload, workers, storage=config.out / "launcher")
    return config.out


def reconstruction_worker(payload: Mapping[str, Any]) -> None:
    """What every worker of `finetune_reconstruction` runs: the main one also tests and writes.

    Args:
        payload: ``config``, the plain mapping of a `ReconstructionConfig`, and the ``folder`` to
            which its paths belong.
    """
    os.chdir(payload["folder"])
    config = load_config(ReconstructionConfig, payload["config"])
    with Run.open(config.out, config, main=is_main()) as run:
        Job(config).run(run)


def rehearse_reconstruction(config: ReconstructionConfig) -> list[str]:
    """Check data and weights and time a few steps; nothing is written."""
    job = Job(config)
    trainer = job.trainer()
    started = time.perf_counter()
    timed = min(3, trainer.steps)
    for index in range(timed):
        trainer.step(index)
    seconds = (time.perf_counter() - started) / timed
    moving, total = trainer.num_moving
    return [
        job.sets.describe(),
        f"{config.network.name}: {moving:,} of {total:,} parameters move",
        *([job.leakage] if job.leakage else []),
        f"{trainer.steps} steps of {seconds:.2f} s here, {trainer.steps * seconds / 60:.0f} min",
    ]


class Job:
    """The inputs of a run, looked at before a folder is made."""

    def __init__(self, config: ReconstructionConfig) -> None:
        self.config = config
        self.device = select_device(config.device)
        self.sets = load_sets(config)
        self.encoder: Encoder | None = load_encoder(config.encoder, config.seed)
        self.cards: list[Mapping[str, Any]] = []
        self.leakage = self._check_leakage()

    def trainer(self) -> ReconstructionTrainer:
        """A trainer before its first step."""
        return ReconstructionTrainer(
            self.config, self.sets.training, self.sets.validation, self.encoder, self.device
        )

    def run(self, run: Run) -> Path:
        """All steps, then tests and files by the main worker."""
        log.info("%s", self.sets.describe())
        trainer = self.trainer()
        train(trainer, run, self.config.network.name)
        network = trainer.finish()
        if run.main:
            self._finish(run, trainer, network)
        return run.out

    def _finish(self, run: Run, trainer: ReconstructionTrainer, network: Reconstructor) -> None:
        config, sets = self.config, self.sets
        tested = {} if sets.test is None else self._test(network, sets.test)
        outcomes = [
            outcome_of(config, name, rate, found, sets) for (name, rate), found in tested.items()
        ]
        rows = summarized(outcomes, config.seed)
        report = training_report(config, sets, trainer, tested, rows, self.leakage)
        write_results(run.out, outcomes, rows, report.verdict)
        save_model(network, run.out / "weights", self._card(trainer, rows))
        keep_statistics(run.out / "weights", network, sets, config.undersampling)
        if sets.registry is not None:
            known = set(sets.training.patients) | set(
                sets.validation.patients if sets.validation else ()
            )
            note_training(sets.registry.path, run.out / "weights", known, "finetune")
        report.write(run.out / "report.html")

    def _test(self, network: Reconstructor, test: Slices) -> dict[tuple[str, str], list[Tested]]:
        methods: dict[str, Way] = {self.config.network.name: by_network(network)}
        methods |= {name: by_classical(name) for name in BESIDE}
        found = {}
        for choice, rate in enumerate(self.config.undersampling.accelerations):
            for name, method in methods.items():
                log.info("testing %s at %gx", name, rate)
                volumes = scored_volumes(method, test, self.config.undersampling, choice)
                found[name, f"{rate:g}x"] = list(volumes)
        return found

    def _card(self, trainer: ReconstructionTrainer, rows: list[Any]) -> dict[str, Any]:
        config, sets = self.config, self.sets
        kind = "simulated" if sets.training.simulated else "measured"
        moving, _ = trainer.num_moving
        facts: dict[str, Any] = {
            "summary": f"Reconstructs undersampled k-space: {config.network.name}, "
            f"{config.supervision}, trained on {kind} k-space.",
            "data": {
                "patients": {
                    name: len(set(slices.patients)) if slices else 0
                    for name, slices in (
                        ("train", sets.training), ("val", sets.validation), ("test", sets.test)
                    )
                },
                "labelled patients": config.labelled or "all",
                "leakage": self.leakage,
            },
            "training": {
                "seed": config.seed, "steps": trainer.steps, "kept step": trainer.best.step,
                "moving parameters": moving, "loss": to_mapping(config.loss),
                "undersampling": to_mapping(config.undersampling),
            },
            "results": [
                {"task": row.task, "method": row.weights, "metric": row.metric,
                 "mean": round(row.mean, 4), "test patients": row.n}
                for row in rows if row.weights == config.network.name
            ],
            "subjects": sorted(
                set(sets.training.patients)
                | set(sets.validation.patients if sets.validation else ())
                | {name for card in self.cards for name in card.get("subjects") or ()}
            ),
        }  # fmt: skip
        if isinstance(sets.training, SimulatedSlices) and sets.registry is not None:
            mixture = mixture_of_volumes(sets.registry, sets.training.rows)
            facts |= mixture.card(self.cards[0] if self.cards else None)
        return facts

    def _check_leakage(self) -> str:
        """Of the encoder and of the weights that training begins with."""
        config = self.config
        started = {"encoder": "" if config.encoder.random else config.encoder.weights,
                   "network.start": config.network.start}  # fmt: skip
        notes = []
        for name, source in started.items():
            if source:
                card = getattr(core_mri.load_model(source, device="cpu"), "card", {}) or {}
                self.cards.append(card)
                test = set(self.sets.test.patients) if self.sets.test else set()
                seen = card.get("subjects")
                found = seen_before(seen, test, source, "reconstruction", config.allow_overlap)
                notes.append(f"{name}: {found}")
        return " ".join(notes)


def train(trainer: ReconstructionTrainer, run: Run, description: str) -> None:
    """All steps, with checkpoints."""
    torch.set_flush_denormal(True)
    fit(
        trainer.step,
        run=run,
        steps=trainer.steps,
        state=trainer.state,
        restore=trainer.restore,
        checkpoint_every=CHECKPOINT_EVERY,
        enough=lambda: trainer.best.enough,
        interrupted=any_worker(run),
        urgent=preemption_due,
        description=description,
    )


def outcome_of(
    config: ReconstructionConfig, name: str, rate: str, tested: list[Tested], sets: Sets
) -> Outcome:
    """One method at one acceleration, as ``results.json`` has it; a volume is a structure."""
    kind = "simulated" if sets.training.simulated else "measured"
    task = f"{kind} {rate}"
    trained = name == config.network.name
    scores = tuple(
        Score(
            task=task, weights=name, twin=False,
            method=config.supervision if trained else "classical", k=config.labelled, draw=0,
            seed=config.seed, patient=volume.patient, structure=volume.volume, metric=metric,
            value=value, unit=METRICS[metric],
        )
        for volume in tested
        for metric, value in volume.scores.items()
    )  # fmt: skip
    return Outcome(
        key=f"{name}-{rate}", task=task, weights=name, against="", k=config.labelled, draw=0,
        scores=scores, patients={"test": tuple(sorted({v.patient for v in tested}))},
    )  # fmt: skip

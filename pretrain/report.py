"""What a run leaves: weights with a card, results, and a report with pictures."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core_mri.config import config_hash
from core_mri.errors import RunError
from core_mri.models.encoder import Encoder
from core_mri.reports import Report
from core_mri.runs import Run, writing
from data_registry.governance.uses import note_training
from pretrain.config import OBJECTIVES, PretrainConfig
from pretrain.data import Slices, left_out
from pretrain.objectives import LOSS, create_objective
from pretrain.overlap import OVERLAP_FILE
from pretrain.pictures import patches_picture, views_picture
from pretrain.probe import PIXELS, ProbeResult, ProbeSet, Row, probe
from pretrain.report_curves import add_curves, add_probe_curves
from pretrain.start import start_of

if TYPE_CHECKING:
    from pretrain.train import Trainer

PRETRAINED = "pretrained"


def finish(
    run: Run, trainer: Trainer, encoder: Encoder, slices: ProbeSet, validation: Slices | None
) -> None:
    """Write ``weights/``, ``results.json``, ``results.csv`` and ``report.html`` of a run.

    Args:
        run: The finished run.
        trainer: Its configuration and health.
        encoder: The one that is released.
        slices: Those of the probe.
        validation: Slices of patients who were not trained on, None without any.
    """
    from core_mri.weights import save_model

    config = trainer.config
    encoders, origin = _encoders(trainer, encoder), _origin(config)
    result = (
        probe(encoders, slices, seed=config.seed, twin=origin)
        if config.probe_slices
        else ProbeResult([], [], ["No probe: probe_slices is 0."])
    )
    metrics = run.metrics()
    facts = card(config, trainer.dataset, metrics, result, _overlap(run))
    save_model(encoder, run.out / "weights", facts)
    if config.statistics_slices:
        _keep_statistics(run.out / "weights", encoder, trainer, validation)
    note_training(config.registry, run.out / "weights", facts["subjects"], "pretrain")
    with writing(run.out):
        results = {"schema": 1, "cells": result.cells, "summary": result.summary}
        (run.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        _write_csv(run.out / "results.csv", result.summary)
    verdict = _verdict(metrics, result, trainer.health.history, origin)
    report = Report(f"Pretraining of {config.model}", verdict)
    _fill(report, run, trainer, encoders, facts, result)


def _keep_statistics(
    folder: Path, encoder: Encoder, trainer: Trainer, validation: Slices | None
) -> None:
    """What the weights saw, beside them, and a section about it in their card."""
    from core_mri.training_statistics import save_statistics
    from core_mri.weights.folder import read_config, update_card
    from data_registry.similarity.features import EncoderFeatures
    from data_registry.similarity.training import training_statistics

    if len({row.subject_id for row in trainer.dataset.volumes}) < 2:
        update_card(
            folder, {"statistics": "None are kept: all training slices are of one patient."}
        )
        return
    statistics = training_statistics(
        EncoderFeatures(encoder, "pretrained"),
        read_config(folder)["sha256"],
        trainer.dataset,
        validation,
        most_slices=trainer.config.statistics_slices,
    )
    save_statistics(statistics, folder)
    update_card(folder, {"statistics": statistics.card()})


def report_stopped(run: Run, trainer: Trainer, encoder: Encoder, error: RunError) -> None:
    """Write ``report.html`` of a run that an alarm or bad losses have ended; no weights."""
    result = ProbeResult([], [], ["No probe: the run was stopped."])
    metrics = run.metrics()
    facts = card(trainer.config, trainer.dataset, metrics, result, _overlap(run))
    facts["training"]["steps"] = f"{metrics[-1]['step'] + 1} of {trainer.config.steps}"
    verdict = str(error).replace(f"{run.out}/", "")  # the page may be sent to others
    report = Report(f"Pretraining of {trainer.config.model}: stopped", verdict)
    _fill(report, run, trainer, _encoders(trainer, encoder), facts, result)


def card(
    config: PretrainConfig,
    train: Slices,
    metrics: list[dict[str, Any]],
    result: ProbeResult,
    overlap: str,
) -> dict[str, Any]:
    """Facts for the model card; `overlap` is what `check_overlap` said."""
    volumes = train.volumes
    slices = Counter[str]()
    counts = np.bincount(train.volume_numbers(), minlength=len(volumes)).tolist()
    for row, count in zip(volumes, counts, strict=True):
        slices[row.region] += count
    sources = Counter((row.source, row.licence) for row in volumes)
    synthetic = sum(row.synthetic for row in volumes)
    return {
        "summary": f"{config.model} pretrained without labels on {len(train)} MRI slices "
        f"of {len({row.subject_id for row in volumes})} subjects"
        + (f" ({synthetic} of {len(volumes)} volumes are synthetic)." if synthetic else "."),
        "data": {
            "slices": len(train),
            "volumes": len(volumes),
            "synthetic volumes": synthetic,
            "subjects": len({row.subject_id for row in volumes}),
            "slices by region": dict(slices.most_common()),
            "subjects by region": {
                region: len({row.subject_id for row in volumes if row.region == region})
                for region in slices
            },
            "excluded": "all validation and test patients of the registry, by patient",
            **(
                {"volumes excluded for their licence": left_out(config)}
                if config.exclude_noncommercial
                else {}
            ),
            "test patients": overlap,
        },
        # Pseudonyms, so that an evaluation can refuse test patients the encoder was trained on.
        "subjects": sorted({row.subject_id for row in volumes}),
        "sources": [
            {"name": name, "licence": licence, "volumes": count}
            for (name, licence), count in sorted(sources.items())
        ],
        **train.mixture().card(),
        "training": {
            "objective": OBJECTIVES[config.objective.name],
            "start": start_of(config),
            "model": config.model,
            "steps": config.steps,
            "batch size": config.batch_size,
            "seed": config.seed,
            "seconds in steps": round(sum(line["seconds"] for line in metrics), 1),
            "config SHA-256": config_hash(config),
        },
        "results": [
            {key: row[key] for key in ("task", "weights", "method", "metric", "mean", "n")}
            for row in result.summary
        ],
    }


def _fill(
    report: Report,
    run: Run,
    trainer: Trainer,
    encoders: dict[str, Encoder],
    facts: dict[str, Any],
    result: ProbeResult,
) -> None:
    metrics, origin = run.metrics(), _origin(trainer.config)
    report.add_text(
        "Data",
        [
            facts["summary"],
            f"Excluded: {facts['data']['excluded']}.",
            f"Test patients: {facts['data']['test patients']}.",
        ],
    )
    report.add_table("Sources", facts["sources"], "Training volumes by source and licence.")
    if trainer.health.history:
        report.add_table(
            "Alarms", trainer.health.history,
            "Figures that were beyond their limits for the patience of an alarm, "
            f"{trainer.health.alarms.patience} steps.",
        )  # fmt: skip
    else:
        report.add_text("Alarms", "None.")
    add_curves(report, metrics, (LOSS, *trainer.model.losses))
    add_probe_curves(report, metrics, origin)
    pictures = {"views": views_picture(*trainer.example())}
    report.add_figure(
        "Views and masks", pictures["views"],
        "What the networks see of some slices of the first step; black squares are masked.",
    )  # fmt: skip
    pictures["patches"] = patches_picture(encoders, trainer.shown_slices())
    report.add_figure(
        "Patch features", pictures["patches"],
        "First three principal components of the patches of all these slices as red, green and "
        f"blue: of this run, and of the {origin} weights that it began with.",
    )  # fmt: skip
    for name, figure in pictures.items():
        run.log_figure(name, figure, len(metrics))
    if result.summary:
        report.add_table("Probes", result.summary, " ".join(result.notes))
    else:
        report.add_text("Probes", result.notes)
    report.add_facts("Training", facts["training"])
    report.write(run.out / "report.html")


def _encoders(trainer: Trainer, encoder: Encoder) -> dict[str, Encoder]:
    """The released encoder and its twin, as the run began."""
    torch.manual_seed(trainer.config.seed)
    twin = create_objective(trainer.config).to(trainer.choice.device).eval().teacher_encoder
    return {PRETRAINED: encoder.eval(), _origin(trainer.config): twin}


def _origin(config: PretrainConfig) -> str:
    """What the weights were at the beginning."""
    return "initial" if config.start else "random"


def _overlap(run: Run) -> str:
    return (run.out / OVERLAP_FILE).read_text(encoding="utf-8").strip()


def _verdict(
    metrics: list[dict[str, Any]],
    result: ProbeResult,
    history: list[dict[str, Any]],
    origin: str,
) -> str:
    figures = sorted({alarm["figure"] for alarm in history})
    health = f"alarms of {', '.join(figures)}" if figures else "no alarm"
    knn = {(row["task"], row["weights"]): row for row in result.summary if row["method"] == "knn"}
    scores = "; ".join(
        f"{task} by nearest neighbors {row['mean']:.0%} against {knn[task, origin]['mean']:.0%} "
        f"with {origin} weights and {knn[task, PIXELS]['mean']:.0%} with the pixels themselves "
        f"({row['n']} patients, {_evidence(row)})"
        for (task, name), row in knn.items()
        if name == PRETRAINED
    )
    return f"{metrics[-1]['step'] + 1} steps, {health}. {scores or 'Nothing was probed'}."


def _evidence(row: Row) -> str:
    if row["p"] is None:
        return "too few for a test: descriptive only"
    return f"paired permutation p = {row['p']:.3g}, Holm {row['p_holm']:.3g}"


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["task"])
        writer.writeheader()
        writer.writerows(rows)

"""What a finished run leaves: weights with a card, results, and a report with pictures."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from core_mri.config import config_hash
from core_mri.runs import Run, writing
from pretrain.config import OBJECTIVES, PretrainConfig
from pretrain.data import Slices
from pretrain.objectives import Objective, create_objective
from pretrain.overlap import OVERLAP_FILE
from pretrain.probe import ProbeResult, Row, probe
from pretrain.views import Views

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRETRAINED, TWIN = "pretrained", "random"
_SHOWN_LOCALS = 4


def finish(
    run: Run,
    config: PretrainConfig,
    model: Objective,
    train: Slices,
    validation: Slices | None,
    views: Views,
    masks: Tensor,
) -> None:
    """Write ``weights/``, ``results.json``, ``results.csv`` and ``report.html`` of a run.

    Args:
        run: The finished run.
        config: Its configuration.
        model: Student and teacher; the teacher's encoder is released.
        train: The slices it was trained on.
        validation: Slices of validation patients for the probe, None without any.
        views: Views of some slices, for the picture.
        masks: Their masks, bool [B, 2, h, w].
    """
    from core_mri.weights import save_model

    device = next(model.parameters()).device
    torch.manual_seed(config.seed)
    twin = create_objective(config).to(device).eval().teacher_encoder  # as the run began
    encoders = {PRETRAINED: model.teacher_encoder, TWIN: twin}
    result = (
        probe(encoders, config, train, validation)
        if config.probe_slices
        else ProbeResult([], [], ["No probe: probe_slices is 0."])
    )
    metrics = run.metrics()
    overlap = (run.out / OVERLAP_FILE).read_text(encoding="utf-8").strip()
    facts = card(config, train, metrics, result, overlap)
    save_model(model.teacher_encoder, run.out / "weights", facts)
    with writing(run.out):
        results = {"schema": 1, "cells": result.cells, "summary": result.summary}
        (run.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        _write_csv(run.out / "results.csv", result.summary)
    _write_report(run, facts, metrics, result, views, masks)


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
            "test patients": overlap,
        },
        # Pseudonyms, so that an evaluation can refuse test patients the encoder was trained on.
        "subjects": sorted({row.subject_id for row in volumes}),
        "sources": [
            {"name": name, "licence": licence, "volumes": count}
            for (name, licence), count in sorted(sources.items())
        ],
        "training": {
            "objective": OBJECTIVES[config.objective.name],
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


def views_picture(views: Views, masks: Tensor) -> Figure:
    """A row for each slice: its global views, one of them masked, some local views."""
    from core_mri.pictures import contact_sheet

    images, titles = [], []
    locals_ = views.local_views[:, :_SHOWN_LOCALS, 0].cpu().numpy()
    patch = views.global_views.shape[-1] // masks.shape[-1]
    for row, (globals_, mask) in enumerate(zip(views.global_views.cpu(), masks.cpu(), strict=True)):
        shown = max(view for view in range(len(globals_)) if mask[view].any() or view == 0)
        hidden = mask[shown].repeat_interleave(patch, 0).repeat_interleave(patch, 1)
        images += [view[0].numpy() for view in globals_]
        images += [torch.where(hidden, 0.0, globals_[shown, 0]).numpy(), *locals_[row]]
        titles += [f"global {number + 1}" for number in range(len(globals_))]
        titles += [f"masked, {shown + 1}"]
        titles += [f"local {number + 1}" for number in range(locals_.shape[1])]
    columns = views.global_views.shape[1] + 1 + locals_.shape[1]
    return contact_sheet(images, titles, columns=columns)


def _write_report(
    run: Run,
    facts: dict[str, Any],
    metrics: list[dict[str, Any]],
    result: ProbeResult,
    views: Views,
    masks: Tensor,
) -> None:
    from core_mri.plots import curves
    from core_mri.reports import Report

    steps = np.array([line["step"] for line in metrics])

    def lines(*names: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            name: (steps, np.array([line[name] for line in metrics], dtype=np.float64))
            for name in names
            if name in metrics[0]
        }

    report = Report(f"Pretraining of {facts['training']['model']}", _verdict(metrics, result))
    report.add_text(
        "Data",
        [
            facts["summary"],
            f"Excluded: {facts['data']['excluded']}.",
            f"Test patients: {facts['data']['test patients']}.",
        ],
    )
    report.add_table("Sources", facts["sources"], "Training volumes by source and licence.")
    report.add_figure(
        "Losses",
        curves(lines("loss", "dino", "ibot", "mae_constant", "ijepa_constant"), "step", "loss"),
        "A loss alone tells little: see the health of the teacher.",
    )  # fmt: skip
    for heading, names, ylabel, caption in (
        ("Health of the teacher", ("dino_information", "ibot_information"),
         "mutual information, nats",
         "Information that the targets hold about the image; near 0 means collapse."),
        ("Health of the targets", ("target_spread",), "spread over slices, 0 to 1",
         "How much the targets differ between slices; near 0 means collapse."),
        ("Spread of the features", ("mean_cosine",), "mean cosine between slices",
         "1 would mean that all slices look alike to the teacher."),
    ):  # fmt: skip
        if found := lines(*names):
            report.add_figure(heading, curves(found, "step", ylabel), caption)
    report.add_figure(
        "Views and masks", views_picture(views, masks),
        "What the networks see of some slices of the first step; black squares are masked.",
    )  # fmt: skip
    if result.summary:
        report.add_table("Nearest neighbors", result.summary, " ".join(result.notes))
    else:
        report.add_text("Nearest neighbors", result.notes)
    report.add_facts("Training", facts["training"])
    report.write(run.out / "report.html")


def _verdict(metrics: list[dict[str, Any]], result: ProbeResult) -> str:
    last = metrics[-1]
    dead = [name for name in ("dino", "ibot", "target") if last.get(f"{name}_alarm")]
    health = f"the {' and '.join(dead)} head collapsed" if dead else "no head collapsed"
    means = {(row["task"], row["weights"]): row for row in result.summary}
    scores = "; ".join(
        f"{task} by nearest neighbors {row['mean']:.0%} against {means[task, TWIN]['mean']:.0%} "
        f"with random weights ({row['n']} patients, {_evidence(row)})"
        for (task, name), row in means.items()
        if name == PRETRAINED
    )
    return f"{last['step'] + 1} steps, {health}. {scores or 'Nothing was probed'}."


def _evidence(row: Row) -> str:
    if row["p"] is None:
        return "too few for a test: descriptive only"
    return f"paired permutation p = {row['p']:.3g}, Holm {row['p_holm']:.3g}"


def _write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["task"])
        writer.writeheader()
        writer.writerows(rows)

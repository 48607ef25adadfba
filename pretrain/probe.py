"""Does the encoder know what a slice shows? Nearest neighbors, beside the random twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core_mri.metrics.intervals import bootstrap_interval, holm, paired_permutation
from core_mri.models.encoder import Encoder
from core_mri.training.probes import knn_probe
from data_registry.slices import SliceSample
from pretrain.config import PretrainConfig
from pretrain.crops import crop_resize
from pretrain.data import Slices, slice_order
from pretrain.views import MIN_SIDE, pad_slices

TASKS = ("region", "sequence")
"""Labels of a slice that come free with the data."""
NEIGHBORS = 10
MIN_PATIENTS_FOR_P = 8
"""Below this a table is descriptive: no p-values."""
_BATCH = 64

Row = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class ProbeResult:
    """Scores of all tasks and encoders."""

    cells: list[Row]
    """One for each task, encoder and patient."""
    summary: list[Row]
    """Means over patients with intervals; p compares the pretrained encoder with its twin."""
    notes: list[str]
    """What was compared, and what could not be."""


def probe(
    encoders: dict[str, Encoder], config: PretrainConfig, train: Slices, validation: Slices | None
) -> ProbeResult:
    """Weighted k-nearest-neighbor accuracy on region and sequence, a mean over patients.

    The neighbors are training slices. The slices judged come from validation patients, else from
    every second training patient (whose images, not labels, the encoder has seen).
    Slices are drawn evenly over volumes; whole slices are resized to the size of a global view.

    Args:
        encoders: Name to encoder; the first is judged against the second.
        config: ``probe_slices`` slices at most are taken on each side.
        train: Training slices.
        validation: Slices of validation patients, None without any.
    """
    bank = _draw(train, config)
    if validation is not None:
        queries, origin = _draw(validation, config), "validation patients"
    else:
        patients = sorted({(sample.region, sample.subject_id) for sample in bank})
        known = {patient for _, patient in patients[::2]}
        queries = [sample for sample in bank if sample.subject_id not in known]
        bank = [sample for sample in bank if sample.subject_id in known]
        origin = "training patients whose labels were held back"
    notes = [
        f"{len(bank)} training slices as neighbors, {len(queries)} slices of {origin}, k = 10."
    ]
    features = {
        name: (embed(encoder, bank, config), embed(encoder, queries, config))
        for name, encoder in encoders.items()
        if bank and queries
    }
    cells: list[Row] = []
    summary: list[Row] = []
    for task in TASKS:
        known_labels = sorted({_label(sample, task) for sample in bank} - {"unknown"})
        judged = [i for i, sample in enumerate(queries) if _label(sample, task) in known_labels]
        if len(known_labels) < 2 or not judged:
            notes.append(f"{task}: not scored, fewer than two known labels or nothing to judge.")
            continue
        labeled = [i for i, sample in enumerate(bank) if _label(sample, task) in known_labels]
        truth = torch.tensor([known_labels.index(_label(bank[i], task)) for i in labeled])
        scores: dict[str, dict[str, float]] = {}
        for name, (bank_x, query_x) in features.items():
            guess = knn_probe(bank_x[labeled], truth, query_x[judged], k=NEIGHBORS).argmax(1)
            right: dict[str, list[bool]] = {}
            for i, label in zip(judged, guess.tolist(), strict=True):
                hit = known_labels[label] == _label(queries[i], task)
                right.setdefault(queries[i].subject_id, []).append(hit)
            scores[name] = {patient: float(np.mean(hits)) for patient, hits in right.items()}
        cells += [
            _cell(task, name, patient, value, config)
            for name, patients_scores in scores.items()
            for patient, value in sorted(patients_scores.items())
        ]
        summary += _summarize(task, scores, config)
    tested = [(row, p) for row in summary if isinstance(p := row["p"], float)]
    for (row, _), adjusted in zip(tested, holm([p for _, p in tested]), strict=True):
        row["p_holm"] = float(adjusted)
    return ProbeResult(cells, summary, notes)


@torch.no_grad()
def embed(encoder: Encoder, samples: Sequence[SliceSample], config: PretrainConfig) -> Tensor:
    """Class tokens [N, D], on the CPU, of whole slices resized to the size of a global view."""
    device = next(encoder.parameters()).device
    rows = []
    for start in range(0, len(samples), _BATCH):
        images = [sample.image for sample in samples[start : start + _BATCH]]
        boxes = torch.tensor([[[0, 0, *image.shape]] for image in images], device=device)
        batch = crop_resize(pad_slices(images).to(device), boxes, config.views.global_size)
        rows.append(encoder(batch).cls.float().cpu())
    return torch.cat(rows)


def _draw(dataset: Slices, config: PretrainConfig) -> list[SliceSample]:
    """Up to `probe_slices` different slices, evenly over volumes; always the same ones."""
    wanted = min(config.probe_slices, len(dataset))
    chosen = slice_order(dataset, 0)(0, wanted)
    samples = [dataset[int(position)] for position in np.unique(chosen)]
    return [sample for sample in samples if min(sample.image.shape) >= MIN_SIDE]


def _label(sample: SliceSample, task: str) -> str:
    return sample.region if task == "region" else sample.sequence


def _cell(task: str, name: str, patient: str, value: float, config: PretrainConfig) -> Row:
    return {
        "task": task, "weights": name, "twin": name == "random", "method": "knn", "k": NEIGHBORS,
        "draw": 0, "seed": config.seed, "patient": patient, "structure": "", "metric": "accuracy",
        "value": value, "unit": "1",
    }  # fmt: skip


def _summarize(task: str, scores: dict[str, dict[str, float]], config: PretrainConfig) -> list[Row]:
    rows: list[Row] = []
    first, second = list(scores)[:2]
    patients = sorted(scores[first])
    for name, by_patient in scores.items():
        interval = bootstrap_interval([by_patient[p] for p in patients], seed=config.seed)
        p = None
        if name == first and len(patients) >= MIN_PATIENTS_FOR_P:
            pair = ([scores[n][patient] for patient in patients] for n in (first, second))
            p = paired_permutation(*pair, seed=config.seed)
        rows.append(
            {
                "task": task, "weights": name, "method": "knn", "k": NEIGHBORS,
                "metric": "accuracy", "mean": interval.mean, "n": interval.n,
                "ci_low": interval.low if interval.n > 1 else None,
                "ci_high": interval.high if interval.n > 1 else None, "p": p, "p_holm": None,
            }
        )  # fmt: skip
    return rows

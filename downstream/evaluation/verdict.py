"""Who wins, by how much and how sure that is, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import get_args

from downstream.config import Adaptation, SuiteConfig, Task
from downstream.evaluation.summary import MIN_PATIENTS, Comparison, SummaryRow
from downstream.segmentation.paper import NAME as PAPER_MODE
from downstream.segmentation.paper import PAPER_ENDING

PRIMARY_METHODS = (*get_args(Adaptation), "linear probe", "set-matched", "box")
"""The verdict speaks of these, and of attention where it was asked for; knn, oracles and clicks
stand in the table."""
METRIC_NAMES = {
    "dice": "Dice",
    "dice_2d": "Dice per slice",
    "nsd": "NSD",
    "hd95": "HD95",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "ece_uncalibrated": "ECE, uncalibrated",
    "brier": "Brier score",
}
SIGNIFICANT = 0.05


def verdict(
    config: SuiteConfig,
    summary: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    synthetic: Sequence[bool],
) -> str:
    """On which tasks the first weights help, one paragraph; of a single task with its numbers."""
    chosen = _chosen(config, comparisons)
    told = sentences(config, summary, comparisons)
    if len(config.tasks) > 1:
        weights = next(iter(config.weights))
        unfinished = [task.name for task in config.tasks if task.name not in chosen]
        told = overall(weights, list(chosen.values()))
        if unfinished:
            told.append(f"No comparison could be finished on {', '.join(unfinished)}.")
    if config.protocol == "paper":
        told.insert(0, f"{PAPER_MODE.capitalize()}.")
    if any(task.test_split == "val" for task in config.tasks):
        told.append("Validation patients were scored: this is for choices, it is no evidence.")
    if synthetic and all(synthetic):
        told.append(
            "All scans are synthetic: this shows that the chain works, not what it is worth on "
            "patients."
        )
    elif any(synthetic):
        told.append("Some scans are synthetic.")
    return " ".join(told)


def sentences(
    config: SuiteConfig, summary: Sequence[SummaryRow], comparisons: Sequence[Comparison]
) -> list[str]:
    """A sentence per task on the first weights at the first k."""
    chosen = _chosen(config, comparisons)
    told = []
    for task in config.tasks:
        if task.name not in chosen:
            told.append(f"{task.name}: no comparison could be finished.")
            continue
        first = chosen[task.name]
        means = {
            row.weights: row.mean
            for row in summary
            if (row.task, row.method, row.k, row.metric)
            == (first.task, first.method, first.k, first.metric)
        }
        told.append(_sentence(first, means, task, config.recipe.shots_unit))
    return told


def counts_of(task: Task, config: SuiteConfig) -> tuple[int, ...]:
    """The k of a task's results: numbers of labels, or of clusters."""
    if task.kind == "classification":
        return config.per_class
    return config.clusters if task.kind == "clustering" else task.k or config.k


def _chosen(config: SuiteConfig, comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    """Task to the comparison that the verdict speaks of."""
    weights = next(iter(config.weights))
    chosen = {}
    for task in config.tasks:
        found = [
            c
            for c in comparisons
            if (c.task, c.weights, c.baseline) == (task.name, weights, False)
            and is_primary(c.method, task)
        ]
        order = counts_of(task, config)
        if found:
            chosen[task.name] = min(found, key=lambda c: order.index(c.k) if c.k in order else 0)
    return chosen


def _sentence(c: Comparison, means: Mapping[str, float], task: Task, unit: str) -> str:
    d = c.difference
    method = "" if task.kind == "segmentation" else f", {c.method}"
    labels = labels_of(c.k, task, unit)
    start = (
        f"{task.name}{method}, {labels}: {c.weights} reaches "
        f"{METRIC_NAMES[c.metric]} {means[c.weights]:.2f}, its random twin {means[c.twin]:.2f}; "
        f"difference {signed(d.mean)} (95 % interval {signed(d.low)} to {signed(d.high)}; "
        f"{d.n} test {'patients' if d.n > 1 else 'patient'}"
    )
    if c.descriptive:
        return f"{start}: descriptive only, fewer than {MIN_PATIENTS})."
    assert c.p_holm is not None
    claim = "" if c.p_holm < SIGNIFICANT else ": no difference shown"
    return f"{start}, p = {_p(c.p_holm)} after Holm{claim})."


def overall(weights: str, chosen: Sequence[Comparison]) -> list[str]:
    """Where pretraining helped, harmed, or neither could be shown; one sentence, or none."""
    tested = [c for c in chosen if c.p_holm is not None]
    shown = [c for c in tested if c.p_holm is not None and c.p_holm < SIGNIFICANT]
    parts = {
        "it is better on": [c for c in shown if c.difference.mean > 0],
        "it is worse on": [c for c in shown if c.difference.mean < 0],
        "no difference is shown on": [c for c in tested if c not in shown],
        f"fewer than {MIN_PATIENTS} test patients, so only described:": [
            c for c in chosen if c not in tested
        ],
    }
    told = [f"{text} {', '.join(c.task for c in own)}" for text, own in parts.items() if own]
    return (
        [f"{weights} against its random twin, at the first k: {'; '.join(told)}."] if told else []
    )


def is_primary(method: str, task: Task) -> bool:
    """Whether the verdict speaks of this method: one a task."""
    if "attention" in task.methods and task.kind == "classification":
        return method.startswith("attention")
    return method.removesuffix(PAPER_ENDING) in PRIMARY_METHODS


def labels_of(k: int, task: Task, unit: str) -> str:
    """How much was labelled, or how many clusters, in words."""
    if task.kind == "clustering":
        return f"{k} clusters"
    if task.kind == "classification":
        return f"{k} labelled {task.level}{'s' * (k > 1)} per class" if k else "all labels"
    return f"{k} labelled {unit if k > 1 else unit[:-1]}"


def signed(value: float) -> str:
    """Two digits with a sign, and no sign where they are all zero."""
    return "undefined" if math.isnan(value) else f"{value:+.2f}".replace("-0.00", "0.00")


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"

"""How much more data, a larger model or more steps bring, and what that foretells.

    R=runs/registry; printf '%064x\n' 570 > $R.key; chmod 600 $R.key
    core-mri data ingest --sources core_mri_data --registry $R --key-file $R.key
    python -m tests.benchmarks.scaling_study --registry runs/registry --out runs/scaling

Every combination of a part of the training patients, a model and a number of steps is pretrained
and judged as in `strategy_study`, by validation patients: nearest neighbors and few-shot Dice with
the encoder frozen. With e the mean of one minus each of these, S slices of the patients, P
parameters and N slices seen (steps x batch),

    e = E + A (S / S0)^-a + B (P / P0)^-b + C (N / N0)^-c,   all of them 0 or more,

is fitted by least squares (Hoffmann et al., arXiv 2203.15556, with a term more), S0, P0, N0 being
the largest of each. Intervals are those of 400 bootstraps over patients and seeds together. What
the law says of 10 M slices is an extrapolation over orders of magnitude, and is called so.

Whatever is finished is kept: the same command goes on. ``--steps 4 8 --suite-steps 4`` shows in
minutes that it runs; its figures mean nothing.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro

from core_mri.config import load_config
from core_mri.reports import Report
from core_mri.runs import write_atomically
from data_registry import cohorts
from data_registry.catalogue import Registry
from downstream.cohort import shuffled
from pretrain.config import CONFIGS, PretrainConfig
from pretrain.data import open_slices
from pretrain.flops import encoder_config, encoder_parameters
from tests.benchmarks.judged import Judged, Scores, judge, pretrain_all

BOOTSTRAPS = 400
GOAL_SLICES, GOAL_EPOCHS, GOAL_MODEL = 10_000_000, 12.8, 86e6
"""What is foretold: 10 M slices seen as often as in the plan of the README, ViT-B/16."""


@dataclass(frozen=True, kw_only=True)
class Study(Judged):
    """What is run."""

    parts: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Of the training patients."""
    models: tuple[str, ...] = ("vit_micro_patch8", "vit_tiny_patch8")
    """Encoders."""
    steps: tuple[int, ...] = (60, 180, 540)
    """Of each pretraining."""
    seeds: int = 1
    """Pretrainings of each combination."""


@dataclass(frozen=True)
class Point:
    """One combination and seed."""

    part: float
    slices: int
    parameters: int
    seen: int
    scores: Scores

    def error(self, chosen: Mapping[str, Sequence[str]]) -> float:
        """Mean over questions of one minus the mean over the chosen patients."""
        return statistics.fmean(
            1 - statistics.fmean(self.scores[question][p] for p in patients)
            for question, patients in chosen.items()
        )


def main(study: Study) -> None:
    """Run, or go on."""
    names, configs = [], []
    for part, model, steps, seed in product(
        study.parts, study.models, study.steps, range(study.seeds)
    ):
        names.append(f"{model}-{part:g}-{steps}-{seed}")
        configs.append(_config(study, names[-1], part, model, steps, seed))
    runs = pretrain_all(study, dict(zip(names, configs, strict=True)))
    scores = judge(study, {run.name: run for run in runs if not run.error})
    points = [
        Point(
            part=part,
            slices=len(open_slices(config)),
            parameters=encoder_parameters(encoder_config(config)),
            seen=config.steps * config.batch_size,
            scores=scores[name],
        )
        for (part, *_), name, config in zip(
            product(study.parts, study.models, study.steps, range(study.seeds)),
            names,
            configs,
            strict=True,
        )
        if name in scores
    ]
    _write(study, points, [run.error for run in runs if run.error])


def _config(
    study: Study, name: str, part: float, model: str, steps: int, seed: int
) -> PretrainConfig:
    base = load_config(PretrainConfig, CONFIGS / "tiny_cpu.yaml")
    return replace(
        base,
        registry=study.registry,
        out=study.out / "pretrain" / name,
        seed=seed,
        model=model,
        steps=steps,
        cohort=_cohort(study.registry, part),
        probe_slices=512,
        checkpoint_every=max(1, steps // 4),
        views=replace(base.views, global_size=study.size, local_size=study.size // 2),
        optimizer=replace(base.optimizer, warmup_steps=max(1, steps // 10)),
        health=replace(base.health, action="warn", probe_every=0),
    )


def _cohort(path: Path, part: float) -> str:
    """A frozen cohort of a part of the training patients, with all others; nested."""
    registry = Registry.open(path)
    name = f"scaling-{part:g}".replace(".", "-")
    if name not in cohorts.names(registry):
        volumes = registry.volumes("role = 'image' AND split = 'train' AND NOT synthetic")
        patients = sorted({row.subject_id for row in volumes})
        kept = shuffled(patients, patients, "scaling")[: max(1, round(part * len(patients)))]
        listed = ", ".join(f"'{patient}'" for patient in kept)
        condition = f"role = 'image' AND (split <> 'train' OR subject_id IN ({listed}))"
        cohorts.freeze(registry, name, condition)
    return name


def fit_law(
    units: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """``E``, then factor and exponent of each column of `units`, all 0 or more.

    Args:
        units: [n, 3], each column over its largest value.
        errors: [n].
    """
    from scipy.optimize import least_squares

    count = units.shape[1]

    def residual(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return law(values, units) - errors

    start = np.concatenate([[errors.min() / 2], np.tile([errors.min() / 4, 0.3], count)])
    upper = np.concatenate([[1.0], np.tile([1.0, 2.0], count)])
    found = least_squares(residual, start, bounds=(np.zeros(len(start)), upper))
    return np.asarray(found.x)


def law(values: npt.NDArray[np.float64], units: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The error that the law says, [n]."""
    factors, exponents = values[1::2], values[2::2]
    return values[0] + (factors * units**-exponents).sum(1)


def _write(study: Study, points: Sequence[Point], failed: Sequence[str]) -> None:
    units = np.array([[p.slices, p.parameters, p.seen] for p in points], dtype=float)
    largest = units.max(0)
    patients = {question: sorted(own) for question, own in points[0].scores.items()}
    errors = np.array([p.error(patients) for p in points])
    goal = np.array([[GOAL_SLICES, GOAL_MODEL, GOAL_SLICES * GOAL_EPOCHS]]) / largest
    found = fit_law(units / largest, errors)
    rng = np.random.default_rng(0)
    drawn, told = [], []
    for _ in range(BOOTSTRAPS):
        again = {q: list(rng.choice(own, len(own))) for q, own in patients.items()}
        rows = rng.integers(len(points), size=len(points))
        resampled = np.array([points[i].error(again) for i in rows])
        values = fit_law(units[rows] / largest, resampled)
        drawn.append(values)
        told.append(float(law(values, goal)[0]))
    names = ["E", "A", "a (data)", "B", "b (model)", "C", "c (slices seen)"]
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    table = [
        {"what": name, "value": float(v), "low": float(lo), "high": float(hi)}
        for name, v, lo, hi in zip(names, found, low, high, strict=True)
    ]
    foretold = {
        "value": float(law(found, goal)[0]),
        "low": float(np.percentile(told, 2.5)),
        "high": float(np.percentile(told, 97.5)),
    }
    rows_: list[dict[str, Any]] = [
        {"part of the patients": p.part, "slices": p.slices, "parameters": p.parameters,
         "slices seen": p.seen, "error": float(e), "law": float(f)}
        for p, e, f in zip(points, errors, law(found, units / largest), strict=True)
    ]  # fmt: skip
    settings = {k: v for k, v in dataclasses.asdict(study).items() if k not in ("registry", "out")}
    content = {"study": settings, "law": table, "foretold": foretold, "points": rows_,
               "failed": list(failed)}  # fmt: skip
    write_atomically(study.out / "scaling.json", (json.dumps(content, indent=1) + "\n").encode())
    residual = float(np.sqrt(np.mean((law(found, units / largest) - errors) ** 2)))
    verdict = (
        f"{len(points)} runs; the law leaves {residual:.3f} (rms) of errors of "
        f"{errors.min():.3f} to {errors.max():.3f} unexplained. Foretold, not measured: 10 M "
        f"slices and ViT-B/16 give {foretold['value']:.3f} ({foretold['low']:.3f} to "
        f"{foretold['high']:.3f})."
    )
    report = Report("Scaling of pretraining", verdict, "one minus mean score, validation patients")
    report.add_table("The law", table, "95 % intervals by bootstrap over patients and runs.")
    report.add_table("Runs", rows_, "Error: one minus the mean of all questions.")
    report.write(study.out / "report.html")
    print(verdict)
    for row in table:
        print(f"{row['what']:<18} {row['value']:.4f} ({row['low']:.4f} to {row['high']:.4f})")


if __name__ == "__main__":
    main(tyro.cli(Study))

"""Which strategies of pretraining help, at equal compute, judged on validation patients.

    R=runs/registry; printf '%064x\n' 570 > $R.key; chmod 600 $R.key
    core-mri data ingest --sources core_mri_data --registry $R --key-file $R.key
    python -m tests.benchmarks.strategy_study --registry runs/registry --out runs/strategies

Every strategy of ``pretrain/configs/strategies/study.yaml`` changes one thing of the first. All get
the same processor time (on a GPU: time), measured by ``pretrain bench``: a strategy with a quarter
of the cost a step makes four times as many. Each is run with several seeds; what comes out is
judged by nearest neighbors (region, sequence, plane) and by few-shot segmentation with the encoder
frozen, on validation patients: test patients are never read.

A difference to the first strategy is taken patient by patient, averaged over patients for each
seed, and given with a 95 % interval of Student's t over seeds. Runs that diverge stay in the table
with their error, alarms of health are counted and do not end a run.

Whatever is finished is kept: the same command goes on. ``--seconds 6 --suite-steps 4 --seeds 2``
shows in minutes that it runs; its figures mean nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro

from core_mri.config import load_config
from core_mri.reports import Report
from core_mri.runs import write_atomically
from data_registry.catalogue import Registry
from pretrain.bench import bench
from pretrain.config import CONFIGS, PretrainConfig
from pretrain.stages import stages_of
from pretrain.sweep import SweepOptions, Trial, trials_of
from tests.benchmarks.judged import Ended, Judged, Scores, judge, judge_twins, pretrain_all

SYNTHETIC = "synthetic"
"""The strategy that needs synthetic volumes in the registry."""
RANDOM = "random"
"""No pretraining: the random twins of the first strategy's runs."""
STEPS = 100
"""Of the base configuration, to which lengths of schedules and stages belong."""


@dataclass(frozen=True, kw_only=True)
class Study(Judged):
    """What is run."""

    start: str = ""
    """Weights to start from, anything that core_mri.load_model takes, as one more strategy."""
    seconds: float = 120.0
    """Of each pretraining, without probes."""
    seeds: int = 3
    """Pretrainings of each strategy."""
    only: tuple[str, ...] = ()
    """Strategies to run beside the first; all when empty."""


def main(study: Study) -> None:
    """Run, or go on."""
    trials = _trials(study)
    steps = _steps(study, trials)
    configs = [_stretched(trial.config, steps[_strategy(trial)]) for trial in trials]
    runs = pretrain_all(study, {t.name: c for t, c in zip(trials, configs, strict=True)})
    found = judge(study, {run.name: run for run in runs if not run.error})
    scores = {
        (_strategy(trial), trial.config.seed): found[trial.name]
        for trial in trials
        if trial.name in found
    }
    first = {t.name: run for t, run in zip(trials, runs, strict=True) if _is_first(t, trials)}
    twins = judge_twins(study, {name: run for name, run in first.items() if not run.error})
    scores |= {(RANDOM, t.config.seed): twins[t.name] for t in trials if t.name in twins}
    rows = differences(scores, first=_strategy(trials[0]))
    _write(study, list(zip(trials, configs, runs, strict=True)), rows, scores)


def _trials(study: Study) -> list[Trial]:
    base = load_config(PretrainConfig, CONFIGS / "tiny_cpu.yaml")
    base = replace(
        base,
        registry=study.registry,
        out=study.out / "pretrain",
        steps=STEPS,
        probe_slices=512,
        views=replace(base.views, global_size=study.size, local_size=study.size // 2),
        health=replace(base.health, action="warn", probe_every=0),
    )
    options = SweepOptions(strategies="study", seeds=tuple(range(study.seeds)), metric="rank")
    trials = trials_of(base, options)
    if study.start:
        trials += [
            Trial(
                trial.name.replace("base", "start"),
                {"strategy": "start"},
                replace(
                    trial.config,
                    start=study.start,
                    out=trial.config.out.with_name(trial.config.out.name.replace("base", "start")),
                ),
            )
            for trial in trials
            if _strategy(trial) == "base"
        ]
    first, found = _strategy(trials[0]), Registry.open(study.registry)
    if not found.volumes("role = 'image' AND split = 'train' AND synthetic"):
        print(f"{SYNTHETIC}: left out, the registry holds no synthetic volume to train on")
        trials = [trial for trial in trials if _strategy(trial) != SYNTHETIC]
    chosen = {first, *study.only}
    return [trial for trial in trials if not study.only or _strategy(trial) in chosen]


def _strategy(trial: Trial) -> str:
    return trial.settings["strategy"]


def _is_first(trial: Trial, trials: Sequence[Trial]) -> bool:
    return _strategy(trial) == _strategy(trials[0])


def _steps(study: Study, trials: Sequence[Trial]) -> dict[str, int]:
    """Steps of each strategy for the same time; measured once."""
    path = study.out / "compute.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for trial in trials:
        name = _strategy(trial)
        if name not in known:
            lengths = _stage_lengths(trial.config)
            seconds = [
                length * bench(stage.config, 8, clock=clock).seconds_per_step
                for stage, length in zip(stages_of(trial.config), lengths, strict=True)
            ]
            known[name] = sum(seconds) / STEPS
            study.out.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(known, indent=1) + "\n").encode())
    return {name: max(2, round(study.seconds / seconds)) for name, seconds in known.items()}


def _stage_lengths(config: PretrainConfig) -> list[int]:
    later = [stage.steps for stage in config.stages]
    return [config.steps - sum(later), *later]


def _stretched(config: PretrainConfig, steps: int) -> PretrainConfig:
    """The run with its schedules and stages stretched to `steps`."""
    stretch = steps / STEPS
    return replace(
        config,
        steps=steps,
        stages=tuple(
            replace(stage, steps=max(1, round(stage.steps * stretch))) for stage in config.stages
        ),
        optimizer=replace(
            config.optimizer, warmup_steps=round(config.optimizer.warmup_steps * stretch)
        ),
        checkpoint_every=max(1, steps // 4),
    )


def differences(scores: Mapping[tuple[str, int], Scores], *, first: str) -> list[dict[str, Any]]:
    """Each strategy minus the first, by question: mean over seeds, 95 % interval, verdict.

    Args:
        scores: (strategy, seed) to its scores.
        first: The strategy that others are compared with.
    """
    from scipy.stats import t

    rows = []
    strategies = list(dict.fromkeys(name for name, _ in scores if name != first))
    questions = sorted({question for own in scores.values() for question in own})
    for strategy in strategies:
        for question in questions:
            means, patients = [], 0
            for (name, seed), own in scores.items():
                base = scores.get((first, seed), {}).get(question, {})
                mine = own.get(question, {})
                common = base.keys() & mine.keys()
                if name == strategy and common:
                    means.append(statistics.fmean(mine[p] - base[p] for p in common))
                    patients = len(common)
            if not means:
                continue
            mean, half = statistics.fmean(means), math.nan
            if len(means) > 1:
                spread = statistics.stdev(means) / len(means) ** 0.5
                half = float(t.ppf(0.975, len(means) - 1)) * spread
            told = "helps" if mean - half > 0 else "harms" if mean + half < 0 else "undecided"
            rows.append(
                {"strategy": strategy, "question": question, "difference": mean,
                 "low": mean - half, "high": mean + half, "seeds": len(means),
                 "patients": patients, "verdict": told}
            )  # fmt: skip
    return rows


def _write(
    study: Study,
    runs: Sequence[tuple[Trial, PretrainConfig, Ended]],
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[tuple[str, int], Scores],
) -> None:
    settings = {k: v for k, v in dataclasses.asdict(study).items() if k not in ("registry", "out")}
    table: list[dict[str, Any]] = [
        {"strategy": _strategy(trial), "seed": config.seed, "steps": config.steps,
         "alarms": run.alarms, "error": run.error,
         **{
             question: statistics.fmean(own.values())
             for question, own in scores.get((_strategy(trial), config.seed), {}).items()
         }}
        for trial, config, run in runs
    ]  # fmt: skip
    content = {"study": settings, "differences": rows, "runs": table}
    write_atomically(study.out / "study.json", (json.dumps(content, indent=1) + "\n").encode())
    by_verdict: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        by_verdict[row["verdict"]].append(f"{row['strategy']} ({row['question']})")
    verdict = "; ".join(
        f"{name}: {', '.join(found)}" for name, found in by_verdict.items() if name != "undecided"
    )
    undecided = len(by_verdict["undecided"])
    report = Report(
        "Strategies of pretraining",
        f"{verdict or 'Nothing is decided'}; undecided: {undecided} of {len(rows)} comparisons. "
        "Validation patients were judged: choices, no evidence.",
        f"{study.seconds:g} s a run, {study.seeds} seeds",
    )
    report.add_table("Differences to the first strategy", rows, "Intervals over seeds.")
    report.add_table("Runs", table, "Means over validation patients.")
    report.write(study.out / "report.html")
    for row in rows:
        print(
            f"{row['strategy']:<18} {row['question']:<30} {row['difference']:+.3f} "
            f"({row['low']:+.3f} to {row['high']:+.3f}), n = {row['seeds']} seeds: {row['verdict']}"
        )


if __name__ == "__main__":
    main(tyro.cli(Study))

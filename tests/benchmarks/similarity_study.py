"""Do distances predict what pretraining brings, and what changes when a source is left out?

    R=runs/registry; printf '%064x\n' 570 > $R.key; chmod 600 $R.key
    core-mri data ingest --sources core_mri_data --registry $R --key-file $R.key
    python -m tests.benchmarks.similarity_study --registry runs/registry --out runs/similarity-study

Encoders are pretrained on all training scans of CORE_MRI_DATA, without each of the larger sources
and on each of them alone, all for the same number of steps of the same batches, with several seeds.
Each is evaluated beside its random twin on the tasks of the suite ``core_mri_data``; each task is
compared with what each encoder saw; gains are set against distances. An intervention is the gain
with a source minus the gain without it, for the task on its scans and for all others.

Whatever is finished is kept: the same command goes on. ``--steps 6 --suite-steps 2 --seeds 1
--size 64 --image-size 64`` shows in minutes that it runs; its figures mean nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import tyro

import core_mri
from core_mri.config import load_config
from core_mri.errors import DataError
from core_mri.runs import write_atomically
from data_registry import cohorts
from data_registry.catalogue import Registry
from data_registry.similarity.compare import Comparison, cohort_data, compare, weights_data
from data_registry.similarity.features import EncoderFeatures
from data_registry.similarity.history import record
from data_registry.similarity.transfer import Gain, read_gains
from data_registry.similarity.transfer_report import report_transfer
from downstream.config import SuiteConfig
from pretrain.config import CONFIGS, PretrainConfig
from tests.benchmarks.judged import (
    Ended,
    Judged,
    evaluate_each,
    pretrain_all,
    side_by_side,
    tasks_of,
)

SOURCES = ("sunnybrook", "msd_hippocampus", "open_ms_data")
"""Sources that are left out in turn; the first two have patients enough to be alone."""


@dataclass(frozen=True, kw_only=True)
class Study(Judged):
    """What is run; distances go into the registry."""

    model: str = "vit_micro_patch8"
    """Encoder."""
    steps: int = 400
    """Of each pretraining."""
    batch_size: int = 32
    """Slices of a step."""
    seeds: int = 2
    """Pretrainings of each choice of scans."""
    size: int = 96
    """Side of the views, px."""
    suite_steps: int = 100
    """Optimizer steps of a cell of the suite."""
    tasks: tuple[str, ...] = ("left-ventricle", "hippocampus", "sequence", "region-is-source")
    """Of the suite."""


def main(study: Study) -> None:
    """Run, or go on."""
    registry = Registry.open(study.registry)
    configs = {name: _config(study, name, where, seed) for name, where, seed in _runs(study)}
    runs = [run for run in pretrain_all(study, configs) if not run.error]
    suite = tasks_of(study)
    suite = dataclasses.replace(
        suite,
        recipe=dataclasses.replace(suite.recipe, validate_every=max(study.suite_steps // 4, 1)),
    )
    results = [folder / "results.json" for folder in evaluate_each(study, runs, suite)]
    _measure(study, registry, suite, runs)
    report = report_transfer(registry, results, _sizes(registry, suite))
    page = report.page()
    interventions = _interventions([gain for path in results for gain in read_gains(path)])
    if interventions:
        page.add_table(
            "Interventions", interventions,
            "Gain with a source minus gain without it, at equal steps, mean over seeds.",
        )  # fmt: skip
    page.write(study.out / "transfer.html")
    content = {"study": _plain(study), "interventions": interventions, **report.to_mapping()}
    write_atomically(study.out / "transfer.json", (json.dumps(content, indent=1) + "\n").encode())
    print(report.verdict)
    for row in interventions:
        print(row)


def _runs(study: Study) -> list[tuple[str, str, int]]:
    """Name, condition and seed of each pretraining."""
    choices = {"all": ""}
    for source in SOURCES:
        choices[f"without-{source}"] = f"source <> '{source}'"
    for source in SOURCES[:2]:
        choices[f"only-{source}"] = f"source = '{source}'"
    return [
        (f"{name}-{seed}", where, seed)
        for name, where in choices.items()
        for seed in range(study.seeds)
    ]


def _config(study: Study, name: str, where: str, seed: int) -> PretrainConfig:
    base = load_config(PretrainConfig, CONFIGS / "tiny_cpu.yaml")
    warmup = max(study.steps // 10, 1)
    return dataclasses.replace(
        base,
        registry=study.registry,
        out=study.out / "pretrain" / name,
        seed=seed,
        where=where,
        steps=study.steps,
        batch_size=study.batch_size,
        model=study.model,
        checkpoint_every=max(study.steps // 4, 1),
        probe_slices=256,
        statistics_slices=4000,
        views=dataclasses.replace(base.views, global_size=study.size, local_size=study.size // 2),
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=warmup),
        objective=dataclasses.replace(base.objective, teacher_temperature_warmup=warmup),
        health=dataclasses.replace(base.health, action="warn", probe_every=0),
    )


def _measure(study: Study, registry: Registry, suite: SuiteConfig, runs: Sequence[Ended]) -> None:
    """Compare the test images of each task with what each encoder saw, once."""
    known = set(registry.rows("SELECT DISTINCT task, pretraining_digest FROM similarities"))
    pairs = []
    for task in suite.tasks:
        if task.name not in cohorts.names(registry):
            condition = f"({task.where or 'true'}) AND split = 'test' AND role = 'image'"
            cohorts.freeze(registry, task.name, condition)
        for run in runs:
            folder = run.folder / "weights"
            if (task.name, weights_data(folder).digest) not in known:
                pairs.append((study.registry, task.name, folder))
    for found in side_by_side(_compared, pairs, study.jobs):
        if isinstance(found, str):
            print(found)
        else:
            record(registry, found)


def _compared(pair: tuple[Path, str, Path]) -> Comparison | str:
    """One task with what one encoder saw, or why that cannot be said."""
    path, task, folder = pair
    registry, data = Registry.open(path), weights_data(folder)
    maker = EncoderFeatures(core_mri.load_model(str(folder)), data.name)
    try:
        return compare(registry, cohort_data(registry, task), data, maker)
    except DataError as error:
        return f"{task}, {data.name}: {error}"


def _sizes(registry: Registry, suite: SuiteConfig) -> dict[str, float]:
    """Mean share of a labelled slice that is not background, of tasks with masks."""
    sizes = {}
    for task in suite.tasks:
        if task.labels:
            query = (
                "SELECT avg(s.foreground) FROM slices AS s JOIN volumes AS v USING (volume_id) "
                "WHERE v.role = 'label' AND s.foreground > 0 AND v.subject_id IN "
                f"(SELECT subject_id FROM volumes WHERE {task.where})"
            )
            ((share,),) = registry.rows(query)
            if share is not None:
                sizes[task.name] = float(share)
    return sizes


def _interventions(gains: Sequence[Gain]) -> list[dict[str, str | float | int]]:
    """What leaving a source out takes from each task."""
    rows: list[dict[str, str | float | int]] = []
    for source in SOURCES:
        for task, metric in sorted({(gain.task, gain.metric) for gain in gains}):
            own = [g for g in gains if (g.task, g.metric) == (task, metric)]
            whole = [g.gain for g in own if g.weights.startswith("all-")]
            part = [g.gain for g in own if g.weights.startswith(f"without-{source}-")]
            if whole and part:
                rows.append(
                    {"source": source, "task": task, "metric": metric,
                     "gain with it": mean(whole), "gain without it": mean(part),
                     "difference": mean(whole) - mean(part), "seeds": len(part)}
                )  # fmt: skip
    return rows


def _plain(study: Study) -> dict[str, object]:
    """Settings without paths of a machine."""
    facts = dataclasses.asdict(study)
    return {name: value for name, value in facts.items() if name not in ("registry", "out")}


if __name__ == "__main__":
    main(tyro.cli(Study))

"""``core-mri pretrain``: the only module of this package that prints."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import tyro

from core_mri.config import parse_command
from core_mri.errors import ConfigError
from core_mri.launch import Workers
from core_mri.models.registry import MODELS
from pretrain.cluster import Cluster
from pretrain.config import CONFIGS, OBJECTIVES, PretrainConfig
from pretrain.sweep import MODES, SweepOptions, sweep, trials_of

if TYPE_CHECKING:
    from pretrain.cost import StageCost

USAGE = """usage: core-mri pretrain run CONFIG [--dry-run | --resume] [flags]
       core-mri pretrain sweep CONFIG --vary KEY=V1,V2 ... [--seeds 0 1 2] [flags]
       core-mri pretrain bench CONFIG [--measured-steps 50] [--json] [flags]
       core-mri pretrain cost CONFIG|MODEL --price P [--gpu H200] [--gpus 8] [--json] [flags]

  run    train an encoder on the slices of a registry; CONFIG is a YAML file or a packaged name
         (core-mri pretrain run --help lists every flag)
  sweep  such a run for each combination of settings and seeds, compared in one report
  bench  time the first steps of such a run on one worker: images/s, MFU, where the time goes
  cost   predict speed, bottleneck, hours, money and memory of a run on GPUs; MODEL stands for
         base_8gpu with another encoder"""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Flags that are no part of the configuration."""

    dry_run: bool = False
    """Do one batch, say what the run would need, write a picture of the views."""
    resume: bool = False
    """Demand that there is a run in `out` and continue it."""
    workers: tyro.conf.OmitArgPrefixes[Workers] = field(default_factory=Workers)
    """Where the run takes place."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Flags of ``bench`` that are no part of the configuration."""

    measured_steps: int = 50
    """Steps that are timed, after five that warm up."""
    json: bool = False
    """Print a JSON object."""


@dataclass(frozen=True, kw_only=True)
class CostOptions(Cluster):
    """Flags of ``cost`` that are no part of the configuration."""

    json: bool = False
    """Print a JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run one verb of ``core-mri pretrain``.

    Args:
        arguments: The words after ``pretrain``.

    Returns:
        The exit code.
    """
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "bench":
        return _bench(words[1:])
    if words[0] == "cost":
        return _cost(words[1:])
    if words[0] == "sweep":
        return _sweep(words[1:])
    if words[0] != "run":
        print(f"core-mri pretrain: no verb {words[0]!r}.\n{USAGE}", file=sys.stderr)
        return 2
    config, options = parse_command(
        PretrainConfig, RunOptions, words[1:], program="core-mri pretrain run", folder=CONFIGS
    )
    return _dry_run(config) if options.dry_run else _run(config, options)


def _run(config: PretrainConfig, options: RunOptions) -> int:
    from pretrain.train import train

    workers = options.workers
    _start_screen(config, f"{workers.num_workers} worker(s), {workers.launcher}")
    weights = train(config, resume=options.resume, workers=workers)
    print(f"report   {weights.parent / 'report.html'}")
    print(f"weights  {weights}")
    print("next:")
    print(f"  core-mri finetune CONFIG --weights {weights}")
    print(f"  tensorboard --logdir {weights.parent / 'tensorboard'}")
    return 0


def _sweep(words: Sequence[str]) -> int:
    config, options = parse_command(
        PretrainConfig, SweepOptions, words, program="core-mri pretrain sweep", folder=CONFIGS
    )
    logging.getLogger("pretrain").setLevel(logging.INFO)
    _start_screen(config, f"sweep of {len(trials_of(config, options))} trials like this one")
    report, rows = sweep(config, options)
    width = max(len(row["trial"]) for row in rows)
    print(f"{'trial':<{width}}  state     steps   {'   '.join(f'{name:>6}' for name in MODES)}")
    for row in rows:
        values = (f"{row[name]:6.3f}" if row[name] is not None else "     -" for name in MODES)
        print(
            f"{row['trial']:<{width}}  {row['state']:<8}  {row['steps']:>5}   {'   '.join(values)}"
        )
    failed = [row for row in rows if row["state"] == "failed"]
    for row in failed:
        print(f"{row['trial']}: {row['error']}", file=sys.stderr)
    print(f"report   {report}")
    print(f"results  {report.parent / 'sweep.csv'}, sweep.json")
    print("next:")
    if failed:
        print("  run the same command again: what has failed is tried again, the rest is kept")
    print(f"  tensorboard --logdir {report.parent / 'trials'}")
    return 1 if failed else 0


def _dry_run(config: PretrainConfig) -> int:
    from pretrain.dry_run import dry_run

    _start_screen(config, "dry run: one batch, one worker, nothing is kept")
    found = dry_run(config)
    hours = found.seconds_per_step * config.steps / 3600
    print(f"memory            {found.memory_gib:.2f} GiB {found.memory_of}")
    print(f"seconds per step  {found.seconds_per_step:.2f}")
    print(f"estimated total   {hours:.2f} h for {config.steps} steps on one worker")
    print(f"operations        {found.flops / 1e9:.1f} GFLOP a step")
    print(f"loss              {found.loss:.4f}")
    print(f"views             {found.picture}")
    for sentence in found.advice:
        print(f"note              {sentence}")
    return 0


def _bench(words: Sequence[str]) -> int:
    config, options = parse_command(
        PretrainConfig, BenchOptions, words, program="core-mri pretrain bench", folder=CONFIGS
    )
    if options.measured_steps < 1:
        raise ConfigError(
            "CONFIG-05", f"--measured-steps must be positive, got {options.measured_steps}."
        )
    from pretrain.bench import WARMUP, bench

    _start_screen(
        config, f"bench: {WARMUP} + {options.measured_steps} steps, one worker, nothing is kept"
    )
    found = bench(config, options.measured_steps)
    if options.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    print(f"images per second  {found.images_per_second:.1f}")
    print(f"seconds per step   {found.seconds_per_step:.3f}")
    if found.mfu is not None:
        peak = f"{found.peak_flops / 1e12:.3g} TFLOP/s ({found.peak_source})"
        print(f"MFU                {found.mfu:.1%} of {peak}")
        print(f"  without dropped  {found.mfu_kept:.1%}")
    print(f"data wait          {found.data_wait:.1%}")
    if found.head_share is not None:
        print(f"heads              {found.head_share:.1%}")
    print(f"memory             {found.memory_gib:.2f} GiB {found.memory_of}")
    return 0


def _cost(words: Sequence[str]) -> int:
    if words and words[0] in MODELS:
        words = ["base_8gpu", "--model", *words]
    config, options = parse_command(
        PretrainConfig, CostOptions, words, program="core-mri pretrain cost", folder=CONFIGS
    )
    from pretrain.cost import estimate, to_json

    found = estimate(config, options)
    if options.json:
        print(json.dumps(to_json(found), indent=2))
        return 0
    print(f"A prediction, for {found.images:,} images on {found.gpus} GPU(s):")
    print(f"images per second  {found.images_per_second:,.4g}")
    print(f"duration           {found.hours:,.1f} h, {found.gpu_hours:,.1f} GPU-hours")
    print(f"price              {found.money:,.2f} at {options.price:g} for a GPU-hour")
    for stage in found.stages:
        _print_stage(stage, found.memory_gb)
    for sentence in found.assumptions:
        print(f"assumed            {sentence}")
    return 0


def _print_stage(stage: StageCost, memory_gb: float | None) -> None:
    print(f"{stage.steps:,} steps of {stage.batch_size:,} slices")
    print(f"  bottleneck       {stage.bottleneck}, {stage.images_per_second:,.4g} images/s")
    print(f"  step             {stage.seconds * 1e3:,.4g} ms")
    print(f"  compute          {stage.compute * 1e3:,.4g} ms")
    print(
        f"  all-reduce       {stage.all_reduce * 1e3:,.3g} ms, "
        f"{stage.visible_all_reduce * 1e3:,.3g} ms of it not hidden behind backward"
    )
    print(f"  data loading     {stage.loading * 1e3:,.3g} ms")
    print(f"  storage          {stage.storage * 1e3:,.3g} ms")
    print(f"  scaling          {stage.scaling:.0%} of so many single GPUs")
    limit = f"of {memory_gb:,.0f} GB" if memory_gb else "(memory of a GPU unknown: --memory-gb)"
    largest = f", largest batch {stage.largest_batch:,}" if stage.largest_batch else ""
    print(f"  memory           {stage.memory.total / 1e9:,.1f} GB {limit} on each GPU{largest}")
    for name, size in asdict(stage.memory).items():
        print(f"    {name:<14} {size / 1e9:,.2f} GB")


def _start_screen(config: PretrainConfig, how: str) -> None:
    from core_mri.devices import select_device, select_precision
    from core_mri.models import create_model
    from pretrain.data import left_out, open_slices

    slices = open_slices(config)
    subjects = len({row.subject_id for row in slices.volumes})
    encoder = create_model(config.model)
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    choice = select_precision(select_device(config.device), config.precision)
    views = config.views
    without = ""
    if config.exclude_noncommercial:
        costs = left_out(config)
        without = f", {sum(costs.values())} volumes left out: {', '.join(costs) or 'no source'}"
    lines = (
        f"core-mri pretrain: {OBJECTIVES[config.objective.name]}, {how}",
        f"  data     {len(slices)} slices, {len(slices.volumes)} volumes, {subjects} subjects "
        f"(training split of {config.registry})",
        f"  licence  {slices.mixture().licence}{without}",
        f"  model    {config.model}, {millions:.1f} M parameters",
        f"  views    {views.num_global} x {views.global_size} px, "
        f"{views.num_local} x {views.local_size} px",
        f"  device   {choice.device}, {choice.precision} ({choice.reason})",
        f"  steps    {config.steps} of {config.batch_size} slices",
        f"  output   {config.out}",
    )
    print("\n".join(lines), file=sys.stderr)

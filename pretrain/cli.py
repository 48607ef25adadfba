"""``core-mri pretrain``: the only module of this package that prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core_mri.config import parse_command
from pretrain.config import CONFIGS, OBJECTIVES, PretrainConfig

USAGE = """usage: core-mri pretrain run CONFIG [--dry-run | --resume] [flags]

  run    train an encoder on the slices of a registry; CONFIG is a YAML file or a packaged name
         (core-mri pretrain run --help lists every flag)"""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Flags that are no part of the configuration."""

    dry_run: bool = False
    """Do one batch, say what the run would need, write a picture of the views."""
    resume: bool = False
    """Demand that there is a run in `out` and continue it."""
    launcher: Literal["local", "torchrun", "ray"] = "local"
    """Where the workers run: this process, processes of this machine, or Ray."""
    num_workers: int = 1
    """Worker processes that share the batch."""
    ray: str | None = None
    """Address of a running Ray cluster (implies `--launcher ray`)."""


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
    if words[0] != "run":
        print(f"core-mri pretrain: no verb {words[0]!r}.\n{USAGE}", file=sys.stderr)
        return 2
    config, options = parse_command(
        PretrainConfig, RunOptions, words[1:], program="core-mri pretrain run", folder=CONFIGS
    )
    return _dry_run(config) if options.dry_run else _run(config, options)


def _run(config: PretrainConfig, options: RunOptions) -> int:
    from pretrain.train import train

    launcher = "ray" if options.ray else options.launcher
    _start_screen(config, f"{options.num_workers} worker(s), {launcher}")
    weights = train(
        config,
        resume=options.resume,
        launcher=launcher,
        num_workers=options.num_workers,
        ray_address=options.ray,
    )
    print(f"report   {weights.parent / 'report.html'}")
    print(f"weights  {weights}")
    print("next:")
    print(f"  core-mri finetune CONFIG --weights {weights}")
    print(f"  tensorboard --logdir {weights.parent / 'tensorboard'}")
    return 0


def _dry_run(config: PretrainConfig) -> int:
    from pretrain.dry_run import dry_run

    _start_screen(config, "dry run: one batch, one worker, nothing is kept")
    found = dry_run(config)
    hours = found.seconds_per_step * config.steps / 3600
    print(f"memory            {found.memory_gib:.2f} GiB {found.memory_of}")
    print(f"seconds per step  {found.seconds_per_step:.2f}")
    print(f"estimated total   {hours:.2f} h for {config.steps} steps on one worker")
    print(f"loss              {found.loss:.4f}")
    print(f"views             {found.picture}")
    return 0


def _start_screen(config: PretrainConfig, how: str) -> None:
    from core_mri.devices import select_device, select_precision
    from core_mri.models import create_model
    from pretrain.data import open_slices

    slices = open_slices(config)
    subjects = len({row.subject_id for row in slices.volumes})
    encoder = create_model(config.model)
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    choice = select_precision(select_device(config.device), config.precision)
    views = config.views
    lines = (
        f"core-mri pretrain: {OBJECTIVES[config.objective.name]}, {how}",
        f"  data     {len(slices)} slices, {len(slices.volumes)} volumes, {subjects} subjects "
        f"(training split of {config.registry})",
        f"  model    {config.model}, {millions:.1f} M parameters",
        f"  views    {views.num_global} x {views.global_size} px, "
        f"{views.num_local} x {views.local_size} px",
        f"  device   {choice.device}, {choice.precision} ({choice.reason})",
        f"  steps    {config.steps} of {config.batch_size} slices",
        f"  output   {config.out}",
    )
    print("\n".join(lines), file=sys.stderr)

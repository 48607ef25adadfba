"""The verbs `core-mri finetune` and `core-mri evaluate`."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from core_mri.config import find_config, parse_command
from core_mri.errors import ConfigError
from core_mri.launch import Workers
from downstream.config import FinetuneConfig, Running, SuiteConfig

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Options:
    """Flags that change no result."""

    dry_run: bool = False
    """Check data, weights and draws, time a few steps, write nothing."""
    resume: bool = False
    """Demand that the output folder holds an unfinished run."""

    def __post_init__(self) -> None:
        if self.dry_run and self.resume:
            raise ConfigError("CONFIG-05", "--dry-run and --resume exclude each other.")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Options):
    """Flags of a fine-tuning that change no result."""

    workers: tyro.conf.OmitArgPrefixes[Workers] = field(default_factory=Workers)
    """Where it runs."""


@dataclass(frozen=True, kw_only=True)
class SuiteOptions(Running, Options):
    """Flags of an evaluation that change no result."""

    def __post_init__(self) -> None:
        Running.__post_init__(self)
        Options.__post_init__(self)


def finetune_main(arguments: Sequence[str]) -> int:
    """Adapt an encoder to a task with a few labels: ``CONFIG [flags] [--dry-run | --resume]``.

    A configuration with the key ``network`` trains a network for reconstruction instead.
    """
    if _names_key("network", arguments, CONFIGS):
        from downstream.reconstruction.training.cli import finetune_main as train_main

        return train_main(arguments, CONFIGS)
    config, options = parse_command(
        FinetuneConfig, FinetuneOptions, arguments, program="core-mri finetune", folder=CONFIGS
    )
    return carry_out(_task("finetune", config, options), options)


def evaluate_main(arguments: Sequence[str]) -> int:
    """Weights x tasks to one report: ``SUITE.yaml [flags] [--dry-run | --resume]``.

    A suite with the key ``kspace`` compares reconstructions of raw data instead, one with
    ``contenders`` networks for reconstruction that it trains.
    """
    folder = CONFIGS / "suites"
    if _names_key("contenders", arguments, folder):
        from downstream.reconstruction.training.cli import evaluate_main as study_main

        return study_main(arguments, folder)
    if _names_key("kspace", arguments, folder):
        from downstream.reconstruction.cli import evaluate_main as evaluate_reconstruction_main

        return evaluate_reconstruction_main(arguments, folder)
    given = list(arguments)
    if not given or given[0].startswith("-"):
        if not {"-h", "--help"} & set(given):
            packaged = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
            raise ConfigError(
                "CONFIG-02",
                f"no suite was named: give a YAML file, or a packaged one ({packaged}).",
            )
        given.insert(0, "demo")  # tasks have flags only where a suite names some
    config, options = parse_command(
        SuiteConfig, SuiteOptions, given, program="core-mri evaluate", folder=folder
    )
    return carry_out(_task("evaluate", config, options), options)


def _names_key(key: str, arguments: Sequence[str], folder: Path) -> bool:
    """Whether the configuration has this key; errors in it are told by whoever reads it."""
    if not arguments or arguments[0].startswith("-"):
        return any(re.match(rf"--{key}\b", word) for word in arguments)
    path = find_config(arguments[0], folder)
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.search(rf"^{key}\s*:", text, re.M) is not None


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a verb does with a configuration, and what it says."""

    heading: str
    """A line that names it."""
    out: Path
    """The output folder."""
    rehearse: Callable[[], Sequence[str]]
    """Checks everything, writes nothing, tells what was found."""
    run: Callable[[], Path]
    """Does it; gives the folder that holds ``results.json``."""
    told: Callable[[Mapping[str, Any], Path], Sequence[str]]
    """Lines below the table, of the results and the folder."""
    hidden: Collection[str] = ()
    """Metrics that the table leaves out."""


def carry_out(task: Task, options: Options) -> int:
    """Rehearse or run a task: heading and log on stderr, results on stdout.

    Returns:
        Exit code: 1 when cells of the results failed.
    """
    logging.getLogger("downstream").setLevel(logging.INFO)
    print(f"{task.heading}\noutput: {task.out}", file=sys.stderr)
    if options.dry_run:
        print("\n".join(task.rehearse()))
        return 0
    out = task.run()
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    print(table([row for row in results["summary"] if row["metric"] not in task.hidden]))
    print("\n".join(task.told(results, out)))
    return 1 if results.get("failed") else 0


def _task(verb: str, config: FinetuneConfig | SuiteConfig, options: Options) -> Task:
    from downstream.evaluation.calibration_report import CALIBRATION
    from downstream.evaluation.suite import evaluate, finetune, rehearse

    tasks = [config.task] if isinstance(config, FinetuneConfig) else list(config.tasks)
    weights = config.weights if isinstance(config, FinetuneConfig) else ", ".join(config.weights)

    def run() -> Path:
        if isinstance(config, FinetuneConfig):
            assert isinstance(options, FinetuneOptions)
            return finetune(config, resume=options.resume, workers=options.workers)
        assert isinstance(options, SuiteOptions)
        return evaluate(config, resume=options.resume, running=options)

    return Task(
        heading=f"{verb}: {weights} on {', '.join(task.name for task in tasks)}; "
        f"{config.adaptation}, {config.steps} steps, seed {config.seed}, device {config.device}",
        out=config.out,
        rehearse=lambda: rehearse(config),
        run=run,
        told=lambda results, out: _told(config, results, out),
        hidden=CALIBRATION,
    )


def _told(config: FinetuneConfig | SuiteConfig, results: Mapping[str, Any], out: Path) -> list[str]:
    lines = [f"empty: {cell['cell']}: {cell['why']}" for cell in results["empty"]]
    num_failed = len(results["failed"])
    if num_failed:
        cells = "cell" if num_failed == 1 else "cells"
        lines.append(
            f"{num_failed} {cells} failed: see {out / 'report.html'}; run again to retry them."
        )
    return [
        *lines,
        f"\nreport: {out / 'report.html'}",
        f"results: {out / 'results.json'}, results.csv, summary.csv, summary.tex",
        "next:",
        *(f"  {line}" for line in _next(config, out)),
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary of ``results.json`` as aligned text."""
    names = "task|weights|method|k|metric|mean|95 % interval|patients|p (Holm)"
    header = names.split("|")
    lines = [header]
    for row in rows:
        interval = "-" if row["ci_low"] is None else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
        p = "-" if row["p_holm"] is None else f"{row['p_holm']:.4f}"
        metric = row["metric"] if row["unit"] == "1" else f"{row['metric']} ({row['unit']})"
        cells = [row["task"], row["weights"], row["method"], row["k"], metric]
        mean = "-" if row["mean"] is None else f"{row['mean']:.3f}"
        lines.append([*map(str, cells), mean, interval, str(row["n"]), p])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _next(config: FinetuneConfig | SuiteConfig, out: Path) -> list[str]:
    folder = shlex.quote(str(out))
    if isinstance(config, SuiteConfig):
        return [f"core-mri evaluate {folder}/config.yaml", f"tensorboard --logdir {folder}/cells"]
    lines = ["core-mri evaluate SUITE.yaml  # several encoders and tasks in one report"]
    if config.task.kind == "segmentation":
        more = f"core-mri finetune {folder}/config.yaml --k {2 * config.k} --out {folder}-more"
        lines = [more, *lines, f"tensorboard --logdir {folder}"]
    if config.task.kind == "prompting":
        segment = f"core-mri segment {folder} IMAGE --box i0,j0,k0,i1,j1,k1 --out mask.nii.gz"
        lines = [segment, *lines, f"tensorboard --logdir {folder}"]
    return lines

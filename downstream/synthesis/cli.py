"""The verb `core-mri synthesize`: train, sample, edit, evaluate."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from core_mri.config import parse_command
from core_mri.errors import ConfigError
from core_mri.launch import Workers
from downstream.synthesis.config import EditConfig, EvaluateConfig, SampleConfig, TrainConfig

CONFIGS = Path(__file__).parents[1] / "configs" / "synthesis"


@dataclass(frozen=True)
class _Options:
    """Flags that change no result."""

    resume: bool = False
    """Demand that the output folder holds an unfinished run."""


@dataclass(frozen=True, kw_only=True)
class _TrainOptions(_Options):
    workers: tyro.conf.OmitArgPrefixes[Workers] = field(default_factory=Workers)
    """Where it runs."""


def synthesize_main(arguments: Sequence[str]) -> int:
    """``train|sample|evaluate CONFIG [flags]``, ``edit [flags]``."""
    verbs: dict[str, Callable[[Sequence[str]], int]] = {
        "train": _train, "sample": _sample, "edit": _edit, "evaluate": _evaluate,
    }  # fmt: skip
    if not arguments or arguments[0] not in verbs:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        text = (
            "usage: core-mri synthesize train|sample|edit|evaluate ...\n\n"
            "  train     fit a generator to labelled training patients\n"
            "  sample    pairs of synthetic scans and label maps, as a source of the registry\n"
            "  edit      one label map with a lesion inserted, grown, shrunk or moved\n"
            "  evaluate  likeness to real scans, worth as training data, privacy, readers' page"
        )
        print(text, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    logging.getLogger("downstream").setLevel(logging.INFO)
    return verbs[arguments[0]](arguments[1:])


def _train(arguments: Sequence[str]) -> int:
    from downstream.synthesis.run import train

    config, options = parse_command(
        TrainConfig, _TrainOptions, arguments, program="core-mri synthesize train", folder=CONFIGS
    )
    out = train(config, resume=options.resume, workers=options.workers)
    print(
        f"weights: {out / 'weights'}\nnext:\n  core-mri synthesize sample SAMPLE.yaml --generator "
        f"{shlex.quote(str(out))}"
    )
    return 0


def _sample(arguments: Sequence[str]) -> int:
    from downstream.synthesis.sample import sample

    config, options = parse_command(
        SampleConfig, _Options, arguments, program="core-mri synthesize sample", folder=CONFIGS
    )

    def show(done: int, count: int) -> None:
        if done % 10 == 0 or done == count:
            print(f"{done} of {count} pairs", file=sys.stderr)

    out = sample(config, resume=options.resume, on_progress=show)
    where = f"in {config.registry} as" if config.ingest else "not ingested:"
    print(f"{config.count} synthetic pairs: {out}, {where} source {config.source}")
    if not config.ingest:
        sources = shlex.quote(str(out / "source.yaml"))
        print(f"next:\n  core-mri data ingest --sources {sources} --registry {config.registry}")
    return 0


def _edit(arguments: Sequence[str]) -> int:
    from downstream.synthesis.sample import edit

    config = tyro.cli(
        EditConfig,
        args=arguments,
        prog="core-mri synthesize edit",
        description=EditConfig.__doc__,
        config=(tyro.conf.AvoidSubcommands,),
    )
    facts = edit(config)
    print(json.dumps(facts["edits"][0], indent=2))
    print(f"pair: {config.out}", file=sys.stderr)
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    from downstream.synthesis.evaluate import evaluate

    config, _ = parse_command(
        EvaluateConfig, _Options, arguments, program="core-mri synthesize evaluate", folder=CONFIGS
    )
    if config.suite is not None and config.suite.registry != config.registry:
        raise ConfigError("CONFIG-05", "suite.registry and registry must be the same folder.")
    found = evaluate(config)
    print(found["verdict"])
    print(f"\nreport: {config.out / 'report.html'}\nresults: {config.out / 'results.json'}")
    return 1 if found["failed"] else 0

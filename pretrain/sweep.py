"""Sweeps: one configuration with some keys varied, each trial an ordinary run folder.

```
OUT/sweep.json  sweep.csv  report.html  trials/NAME/ (a run)  ray_tune/
```
The run folders are the truth, not what Ray Tune remembers: a sweep that is started again skips what
is finished, and goes on with the rest from its checkpoints.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from core_mri.config import find_config, load_config, read_yaml, to_mapping
from core_mri.errors import ConfigError
from core_mri.runs import check_same, locked, write_atomically, writing
from pretrain.config import CONFIGS, PretrainConfig
from pretrain.config_views import require

SWEEP_FILE = "sweep.json"
STRATEGIES = CONFIGS / "strategies"
"""Where the packaged strategies lie."""
MODES: dict[str, Literal["max", "min"]] = {"knn": "max", "rank": "max", "loss": "min"}
"""What is better, of each metric."""
_LONGEST_NAME = 120


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Which trials a sweep has, and how they are run."""

    vary: tuple[str, ...] = ()
    """Keys and their values, each combination a trial: ``optimizer.learning_rate=1e-3,2e-3``. A
    value may be a list, such as ``masking.ratio=[0.1,0.3],[0.1,0.5]``."""
    strategies: str = ""
    """YAML file, or a packaged one, that names sets of changes, each combined with all of `vary`:
    ``mae: {objective.name: mae, views.num_global: 1}``."""
    seeds: tuple[int, ...] = ()
    """Seeds, each of which every combination is run with; empty for that of CONFIG."""
    scheduler: Literal["none", "asha"] = "none"
    """``asha`` stops all but the best third of the trials after a ninth and after a third of the
    steps (asynchronous successive halving, arXiv 1810.05934); ``none`` runs each to its end."""
    metric: Literal["knn", "rank", "loss"] = "knn"
    """What is compared: ``knn``, the accuracy of nearest neighbors, mean over tasks; ``rank`` of
    the features; ``loss``, which tells nothing between different objectives."""
    num_workers: int = 1
    """Workers of each trial; they share its batch."""
    cores: int = 1
    """Processor cores of each worker."""
    concurrent: int = 0
    """Trials at once; 0: as many as the resources hold."""
    max_failures: int = 3
    """How often a trial goes on after its process was lost; its own errors are not repeated."""
    ray: str | None = None
    """Address of a running Ray cluster; without it one of this machine is started."""

    def __post_init__(self) -> None:
        for name, least in (
            *(("num_workers", 1), ("cores", 1)),
            *(("concurrent", 0), ("max_failures", 0)),
        ):
            value = getattr(self, name)
            require(value >= least, f"{name} must be at least {least}, got {value}.")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    settings: Mapping[str, str]
    """What sets it apart from others, without its seed."""
    config: PretrainConfig

    @property
    def label(self) -> str:
        """The settings in short words."""
        words = (f"{key.rpartition('.')[2]} {value}" for key, value in self.settings.items())
        return ", ".join(words) or "CONFIG"

    @property
    def is_finished(self) -> bool:
        """Whether its run has left weights and a report, the last thing a run writes."""
        return all((self.config.out / name).exists() for name in ("weights", "report.html"))


def sweep(config: PretrainConfig, options: SweepOptions) -> tuple[Path, list[dict[str, Any]]]:
    """Run all trials that are not finished, and compare them.

    Args:
        config: What the trials have in common; ``out`` is the folder of the sweep.
        options: What varies, and how it is run.

    Returns:
        ``report.html`` of the sweep, and a row for each trial as in ``sweep.csv``.

    Raises:
        ConfigError: CONFIG-01, -02 or -05 when a trial is no valid configuration, CONFIG-03 when
            the folder holds something else, CONFIG-04 when a trial was begun otherwise.
        RunError: RUN-02 when Ray cannot be reached, RUN-09 when the sweep is running already.
        Interrupted: After Ctrl-C or SIGTERM.
    """
    from pretrain.sweep_report import write_results
    from pretrain.sweep_trials import run_trials

    config = replace(
        config,
        registry=config.registry.absolute(),
        out=config.out.absolute(),
        test_sets=tuple(path.absolute() for path in config.test_sets),
    )
    require(
        options.metric != "knn" or config.health.probe_every > 0,
        "the metric knn needs probes: health.probe_every is 0.",
        fix="Set it, or compare with --metric rank.",
    )
    trials = trials_of(config, options)
    _open(config.out, trials)
    with locked(config.out) or contextlib.nullcontext():
        ends = Ends(config.out)
        ends.forget("failed")
        if options.scheduler == "none":
            ends.forget("stopped")
        write = partial(write_results, config.out, trials, options.metric, ends)
        try:
            run_trials(trials, options, ends, storage=config.out / "ray_tune", after=write)
        finally:
            rows = write()
    return config.out / "report.html", rows


def trials_of(config: PretrainConfig, options: SweepOptions) -> list[Trial]:
    """Every combination of strategies, varied keys and seeds.

    Args:
        config: What they have in common.
        options: What varies.

    Raises:
        ConfigError: CONFIG-01 for an unknown key or a wrong value, CONFIG-05 for what does not fit
            together.
    """
    axes = [_strategies(options.strategies)] if options.strategies else []
    axes += [[{key: value} for value in values] for key, values in map(_varied, options.vary)]
    seeds = options.seeds or (config.seed,)
    trials = []
    for combination, seed in itertools.product(itertools.product(*axes), seeds):
        changes = {key: value for part in combination for key, value in part.items()}
        strategy = {"strategy": changes.pop("strategy")} if "strategy" in changes else {}
        varied = {key: changes[key] for key, _ in map(_varied, options.vary)}
        settings = {key: _text(value) for key, value in (strategy | varied).items()}
        name = _slug({**settings, "seed": str(seed)})
        mapping = to_mapping(config)
        for key, value in {**changes, "seed": seed}.items():
            _set(mapping, key, value)
        mapping["out"] = str(config.out / "trials" / name)
        trials.append(Trial(name, settings, load_config(PretrainConfig, mapping)))
    repeated = [name for name, count in Counter(t.name for t in trials).items() if count > 1]
    require(not repeated, f"two trials would have the name {repeated[:1]}.")
    return trials


class Ends:
    """How trials ended that have left no weights, as ``sweep.json`` remembers it.

    Args:
        out: Folder of the sweep.
    """

    def __init__(self, out: Path) -> None:
        path = out / SWEEP_FILE
        rows = json.loads(path.read_text(encoding="utf-8"))["trials"] if path.exists() else []
        self._ends = {
            row["trial"]: (row["state"], row["error"])
            for row in rows
            if row["state"] in ("stopped", "failed")
        }

    def forget(self, state: str) -> None:
        """Let those trials go on."""
        self._ends = {name: end for name, end in self._ends.items() if end[0] != state}

    def note(self, name: str, state: Literal["stopped", "failed"], error: str = "") -> None:
        """A trial was stopped by the scheduler, or has failed."""
        self._ends[name] = (state, error)

    def of(self, trial: Trial) -> tuple[str, str]:
        """``finished``, ``stopped``, ``failed`` or ``open``, and the error."""
        return ("finished", "") if trial.is_finished else self._ends.get(trial.name, ("open", ""))


def _open(out: Path, trials: Sequence[Trial]) -> None:
    """Refuse a folder of something else, and runs of another configuration."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not (out / SWEEP_FILE).exists():
        raise ConfigError(
            "CONFIG-03",
            f"{out}: the output folder is not empty and holds no sweep.",
            fix="Choose another folder with --out, or empty this one.",
        )
    for trial in trials:
        check_same(trial.config.out, trial.config)
    if not (out / SWEEP_FILE).exists():
        with writing(out):
            write_atomically(out / SWEEP_FILE, b'{"trials": []}\n')


def _varied(word: str) -> tuple[str, list[Any]]:
    """``KEY=V1,V2`` as the key and its values."""
    import yaml

    key, separator, values = word.partition("=")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        found = []
    require(
        bool(separator and key and found),
        f"--vary {word!r} is not KEY=VALUE,VALUE.",
        fix="Such as --vary optimizer.learning_rate=1e-3,2e-3.",
    )
    require(
        key not in ("seed", "out"),
        f"{key} cannot be varied.",
        fix="Use --seeds 0 1 2 for seeds; every trial has its own folder.",
    )
    return key, found


def _strategies(name: str) -> list[dict[str, Any]]:
    path = find_config(name, STRATEGIES)
    found = read_yaml(path)
    for strategy, changes in found.items():
        require(
            isinstance(changes, Mapping),
            f"{path}: strategy {strategy} must be a mapping such as {{objective.name: mae}}.",
        )
    return [{"strategy": str(strategy), **dict(_flat(found[strategy]))} for strategy in found]


def _flat(mapping: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at ``section.key``; whether that exists is seen when it is loaded."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(mapping.get(section), dict):
            mapping[section] = {}
        mapping = mapping[section]
    mapping[last] = value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(settings: Mapping[str, str]) -> str:
    """A folder name that says what is varied."""
    words = "_".join(f"{key}={value}" for key, value in settings.items())
    return re.sub(r"[^\w.=+-]+", "-", words)[-_LONGEST_NAME:].strip("-")

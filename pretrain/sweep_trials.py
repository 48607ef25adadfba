"""The trials of a sweep on Ray Tune: which of them run at once, and which are stopped early.

A trial is `pretrain.train.train` in a process of its own, or on Ray Train when it has several
workers. What it reports to Tune is read from the ``metrics.jsonl`` of its run folder, so that a
trial that goes on, or is over already, tells its whole course again: a new scheduler then knows
what an earlier one knew.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core_mri.config import load_config, to_mapping
from core_mri.errors import CoreMRIError, Interrupted
from core_mri.launch import Workers, ray_cluster
from pretrain.config import PretrainConfig
from pretrain.sweep import MODES, Ends, SweepOptions, Trial
from pretrain.sweep_report import figures, steps_done

log = logging.getLogger(__name__)

REDUCTION = 3
"""Successive halving: one of so many trials goes on, after 1/9 and 1/3 of the steps."""
TUNE_VARIABLES = {
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints even when it is told not to
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an error is reported without one
}
POLL_S = 1.0
"""Between two looks at the metrics of a trial."""


def run_trials(
    trials: Sequence[Trial],
    options: SweepOptions,
    ends: Ends,
    *,
    storage: Path,
    after: Callable[[], object],
) -> None:
    """Run what is open, at once as far as the resources allow.

    Args:
        trials: All of the sweep.
        options: How they are run.
        ends: How trials ended before; those that fail or are stopped now are noted.
        storage: Folder for what Ray Tune itself writes.
        after: Called when a trial has ended.

    Raises:
        RunError: RUN-02 when Ray cannot be reached.
        Interrupted: After Ctrl-C or SIGTERM.
    """
    is_open = {trial.name: ends.of(trial)[0] == "open" for trial in trials}
    if not any(is_open.values()):
        return
    # Successive halving compares with trials that are over: they tell it their course again, first.
    taken = [trial for trial in trials if is_open[trial.name] or options.scheduler == "asha"]
    taken.sort(key=lambda trial: is_open[trial.name])
    os.environ |= TUNE_VARIABLES
    with ray_cluster(options.ray, options.cores * options.num_workers * max(options.concurrent, 1)):
        from ray import tune

        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses files it did not write
        own, at_once = _resources(options, taken[0].config)
        told = {key: getattr(options, key) for key in ("metric", "num_workers", "cores")}
        space = [
            {
                "name": trial.name,
                "config": to_mapping(trial.config),
                "open": is_open[trial.name],
                **told,
            }
            for trial in taken
        ]
        tuner = tune.Tuner(
            tune.with_resources(run_trial, own),
            param_space={"trial": tune.grid_search(space)},
            tune_config=tune.TuneConfig(
                scheduler=_asha(trials, options) if options.scheduler == "asha" else None,
                max_concurrent_trials=options.concurrent or at_once,
                trial_dirname_creator=lambda trial: trial.config["trial"]["name"],
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(storage),
                failure_config=tune.FailureConfig(max_failures=options.max_failures),
                callbacks=[_notes({trial.name: trial for trial in trials}, ends, after)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            raise Interrupted(
                "the sweep was stopped; the checkpoints of its trials are kept. "
                "Run the same command again to continue."
            ) from None


def run_trial(settings: Mapping[str, Any]) -> None:
    """What Ray Tune runs in the process of a trial.

    Args:
        settings: ``trial``, a mapping of plain values.
    """
    import torch
    from ray import tune

    trial = settings["trial"]
    torch.set_num_threads(trial["cores"])
    config = load_config(PretrainConfig, trial["config"])
    errors: list[str] = []
    training = threading.Thread(target=_train, args=(config, trial, errors), daemon=True)
    if trial["open"]:
        training.start()
    position, told, going = 0, -1, True
    while going:
        if trial["open"]:
            training.join(POLL_S)
        going = training.is_alive()
        lines, position = _lines_from(config.out / "metrics.jsonl", position)
        for line in lines:
            known = figures(line)
            # The last step is not judged: weights and report are still to be written.
            if trial["metric"] in known and told < steps_done(line) < config.steps:
                told = steps_done(line)
                tune.report({"steps": told, trial["metric"]: known[trial["metric"]]})
    if errors:
        tune.report({"error": errors[0]})


def _train(config: PretrainConfig, trial: Mapping[str, Any], errors: list[str]) -> None:
    """Errors are told, not raised: Tune would start the trial again."""
    from pretrain.train import train

    num_workers = trial["num_workers"]
    workers = Workers(launcher="ray", num_workers=num_workers) if num_workers > 1 else None
    try:
        train(config, workers=workers)
    except CoreMRIError as error:
        errors.append(str(error))
    except Exception as error:
        log.exception("the trial has failed")
        errors.append(f"{type(error).__name__}: {error}")


def _lines_from(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines after a position, and the next position; all again when lines were cut off."""
    if not path.exists():
        return [], 0
    with path.open("rb") as file:
        if path.stat().st_size < position:
            position = 0
        file.seek(position)
        whole, newline, _ = file.read().rpartition(b"\n")
    lines = [json.loads(line) for line in whole.splitlines()]
    return lines, position + len(whole) + len(newline)


def _resources(
    options: SweepOptions, config: PretrainConfig
) -> tuple[dict[str, float], int | None]:
    """What a trial holds while it runs, and how many run at once where Tune cannot know.

    Several workers are on Ray Train, which takes their resources itself. With as many trials as
    have room for their workers none waits for another one for ever.
    """
    import ray

    here = ray.cluster_resources()
    gpus = int(here.get("GPU", 0) > 0 and config.device != "cpu")
    if options.num_workers == 1:
        return {"cpu": options.cores, "gpu": gpus}, None
    per_worker = {"GPU": 1.0} if gpus else {"CPU": 1.0}
    rooms = [here[name] // (need * options.num_workers) for name, need in per_worker.items()]
    return {"cpu": 0.01}, max(1, int(min(rooms)))


def _asha(trials: Sequence[Trial], options: SweepOptions) -> Any:
    """Asynchronous successive halving (arXiv 1810.05934) over finished steps."""
    from ray.tune.schedulers import ASHAScheduler

    steps = max(trial.config.steps for trial in trials)
    return ASHAScheduler(
        time_attr="steps",
        metric=options.metric,
        mode=MODES[options.metric],
        max_t=steps,
        grace_period=max(1, steps // REDUCTION**2),
        reduction_factor=REDUCTION,
    )


def _notes(trials: Mapping[str, Trial], ends: Ends, after: Callable[[], object]) -> Any:
    """A callback of Tune that notes how trials end."""
    from ray.tune import Callback

    class Notes(Callback):  # type: ignore[misc]
        def on_trial_complete(self, trial: Any, **_facts: Any) -> None:
            own = trials[trial.config["trial"]["name"]]
            error = (trial.last_result or {}).get("error")
            if error:
                ends.note(own.name, "failed", error)
            elif ends.of(own)[0] == "open":
                ends.note(own.name, "stopped")
            self._tell(own)

        def on_trial_error(self, trial: Any, **_facts: Any) -> None:
            own = trials[trial.config["trial"]["name"]]
            ends.note(own.name, "failed", "its process was lost too often (--max-failures)")
            self._tell(own)

        def _tell(self, own: Trial) -> None:
            log.info("%s: %s", own.name, " ".join(ends.of(own)).strip())
            after()

    return Notes()

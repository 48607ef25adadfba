"""Kill workers, nodes and drivers of a pretraining run, and compare its losses bit by bit.

    python -m tests.pretrain.kill_runs [--cases worker rank0 ...] [--json FILE]

Each case runs beside an uninterrupted run on as many workers. Printed: seconds from the kill until
the first step again, steps that had to be done twice, and whether all losses (``loss_hex``) are
those of the uninterrupted run. ``workers`` goes on with another number of workers, where sums round
differently: the largest relative difference is printed instead.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CASES = ("torchrun", "worker", "rank0", "driver", "writing", "node", "workers")
EVERY = 5
"""Steps between checkpoints."""
STEPS = 40
KILL_AT = 18
WATCHFUL = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""As the README advises for `ray start`: without it Ray takes some 25 s to miss a node."""


class Result(NamedTuple):
    """What a case showed."""

    case: str
    seconds: float
    """From the kill to the first new step."""
    repeated: int
    """Steps done twice."""
    same: str
    """Whether the losses are those of the uninterrupted run."""


class RunFolder:
    """A run seen from outside."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines of its metrics."""
        path = self.out / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def pids(self) -> dict[int, int]:
        """Process of each rank."""
        facts = json.loads((self.out / "environment.json").read_text())
        return {worker["rank"]: worker["pid"] for worker in facts.get("workers", [])}

    def wait_for(self, condition: Callable[[], bool], patience_s: float = 400) -> None:
        """Look twenty times a second."""
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.out}: waited {patience_s:.0f} s in vain")
            time.sleep(0.05)

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written."""
        folders = (self.out / "checkpoints").glob("step_*")
        return any(not (folder / "manifest.json").exists() for folder in folders)


def make_inputs(folder: Path) -> Path:
    """A registry of phantoms and a configuration of fractions of a second a step."""
    from core_mri.config import save_config
    from data_registry import IngestConfig, Source, ingest
    from tests.data_registry.conftest import save_phantom
    from tests.pretrain.conftest import tiny_config

    for region in ("brain", "knee"):
        for subject in range(6):
            save_phantom(folder / f"scans/sub{subject}{region}/{region}_T1.nii.gz", region, subject)
    source = Source(name="phantoms", licence="CC0-1.0", root=str(folder / "scans"), synthetic=True)
    ingest(IngestConfig(registry=folder / "registry", sources=(source,), jobs=1))
    config = tiny_config(
        folder, steps=STEPS, batch_size=16, checkpoint_every=EVERY, drop_path=0.2,
        health={"every": 10, "probe_every": 0}, probe_slices=0, statistics_slices=0,
    )  # fmt: skip
    save_config(config, folder / "config.yaml")
    return folder / "config.yaml"


def start(config: Path, out: Path, *words: str) -> subprocess.Popen[bytes]:
    """The command of a user, in a session of its own."""
    command = [sys.executable, "-m", "core_mri", "pretrain", "run", str(config), "--out", str(out)]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    log = out.with_name(f"{out.name}.log").open("ab")
    return subprocess.Popen([*command, *words], stdout=log, stderr=log, env=variables)


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait; the end of what it said when it failed."""
    if process.wait(timeout=900):
        raise RuntimeError(out.with_name(f"{out.name}.log").read_text()[-3000:])


def run_case(case: str, config: Path, whole: list[str], folder: Path) -> Result:
    """One case; `whole` holds the losses of the uninterrupted run."""
    out = folder / case
    run = RunFolder(out)
    if case == "node":
        return _lose_node(config, whole, run)
    words = ("--launcher", "torchrun" if case == "torchrun" else "ray", "--num-workers", "2")
    process = start(config, out, *words)
    run.wait_for(lambda: len(run.lines()) >= KILL_AT)
    if case == "writing":
        run.wait_for(run.is_writing)
    before, pids = len(run.lines()), run.pids()
    killed = time.monotonic()
    if case in ("driver", "workers"):
        process.kill()
        process.wait()
        if case == "workers":
            words = ("--launcher", "torchrun", "--num-workers", "1")
        for pid in pids.values():
            run.wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists())
        process = start(config, out, *words, "--resume")
    else:
        os.kill(pids[0 if case in ("rank0", "writing") else 1], signal.SIGKILL)
    return _compare(case, run, process, whole, before, pids, killed)


def _compare(
    case: str,
    run: RunFolder,
    process: subprocess.Popen[bytes],
    whole: list[str],
    before: int,
    pids: dict[int, int],
    killed: float,
) -> Result:
    run.wait_for(lambda: run.pids() != pids)
    counts = [len(run.lines())]

    def goes_on() -> bool:
        """Lines are cut back to the checkpoint, then grow."""
        counts.append(len(run.lines()))
        return counts[-1] > min(counts)

    run.wait_for(goes_on)
    seconds = time.monotonic() - killed
    finish(process, run.out)
    resumed = min(counts) // EVERY * EVERY
    hexes = [line["loss_hex"] for line in run.lines()]
    same = "bit by bit" if hexes == whole else _worst(hexes, whole)
    return Result(case, round(seconds, 1), max(0, before - resumed), same)


def _worst(hexes: list[str], whole: list[str]) -> str:
    pairs = [
        (float.fromhex(one), float.fromhex(two)) for one, two in zip(hexes, whole, strict=True)
    ]
    return f"to {max(abs(one / two - 1) for one, two in pairs):.1e}"


def _lose_node(config: Path, whole: list[str], run: RunFolder) -> Result:
    """Two nodes of one core each; the one without the driver is killed, a third one is there."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "_system_config": WATCHFUL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(num_cpus=1)
    words = ("--ray", cluster.address, "--num-workers", "2", "--min-workers", "1")
    process = start(config, run.out, *words)
    try:
        run.wait_for(lambda: len(run.lines()) >= KILL_AT)
        before, pids = len(run.lines()), run.pids()
        cluster.add_node(num_cpus=1)
        killed = time.monotonic()
        cluster.remove_node(other, allow_graceful=False)
        return _compare("node", run, process, whole, before, pids, killed)
    finally:
        process.kill()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_inputs(folder)
        words = ("--launcher", "torchrun", "--num-workers", "2")
        finish(start(config, folder / "whole", *words), folder / "whole")
        whole = [line["loss_hex"] for line in RunFolder(folder / "whole").lines()]
        print(f"{'killed':10} first step again   repeated   losses", flush=True)
        for case in given.cases:
            result = run_case(case, config, whole, folder)
            results.append(result._asdict())
            print(
                f"{result.case:10} {result.seconds:13.1f} s {result.repeated:10}   {result.same}",
                flush=True,
            )
        print(yaml.safe_dump({"steps": STEPS, "checkpoint_every": EVERY}).replace("\n", "  "))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

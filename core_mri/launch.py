"""Where a training function runs: in this process, in processes of torchrun, or on Ray Train.

The function is named ``"module:function"``, is imported in every worker and called with the same
JSON-able payload; it knows nothing of launchers. With more than one worker a process group is ready
when it starts (nccl with CUDA, else gloo).

A lost worker (killed, its node taken away) makes the launcher start all workers again, and the
function goes on from its own newest checkpoint. An error of ours is no loss: it ends the run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core_mri.devices import available_cores
from core_mri.errors import ConfigError, CoreMRIError, Interrupted, RunError
from core_mri.runs import writing

log = logging.getLogger(__name__)

Launcher = Literal["local", "torchrun", "ray"]
CONNECT_TIMEOUT_S = 5.0
PREEMPTION_EVERY = 10
"""Steps between two questions to the cluster whether it will take a node away."""
ERROR_FILE = "error.json"
"""In the storage of a launch: the error of ours that ended it."""
LONE_MACHINE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
}
"""Watchers of Ray Train that a cluster of this machine alone can do without: each takes seconds of
two cores to start."""
_on_ray = False


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where a training runs, on how many workers, and how often lost ones are replaced."""

    launcher: Launcher = "local"
    """Where the workers run: this process, processes of this machine, or Ray."""
    num_workers: int = 1
    """Worker processes that share the batch."""
    min_workers: int = 0
    """Ray: with fewer than `num_workers`, down to this number, the run goes on, and takes back what
    becomes free; 0 waits for all."""
    max_failures: int = 3
    """How often all workers are started again after one was lost. Nodes that a cluster takes away
    with notice do not count."""
    ray: str | None = None
    """Address of a running Ray cluster (implies launcher ray); without it a cluster of this machine
    is started for the run."""

    def __post_init__(self) -> None:
        if self.ray:
            object.__setattr__(self, "launcher", "ray")
        if self.num_workers < 1 or (self.launcher == "local" and self.num_workers > 1):
            raise ConfigError(
                "CONFIG-05",
                f"launcher {self.launcher} cannot run {self.num_workers} workers.",
                fix="Use one worker, or --launcher torchrun or ray.",
            )
        if not 0 <= self.min_workers <= self.num_workers or (
            self.min_workers and self.launcher != "ray"
        ):
            raise ConfigError(
                "CONFIG-05",
                f"min_workers {self.min_workers} does not fit launcher {self.launcher} with "
                f"{self.num_workers} workers.",
                fix="It lies between 1 and num_workers, and needs --launcher ray.",
            )
        if self.max_failures < 0:
            raise ConfigError(
                "CONFIG-05", f"max_failures is {self.max_failures}, must be 0 or more."
            )


def launch(
    entry: str, payload: Mapping[str, Any], workers: Workers | None = None, *, storage: Path
) -> None:
    """Run ``entry(payload)`` in every worker and wait.

    Args:
        entry: ``"module:function"``, importable in every worker.
        payload: What the function gets; JSON-able, paths absolute.
        workers: Where, how many; this process without it.
        storage: Folder that all workers see, for what torchrun and Ray Train themselves write.

    Raises:
        RunError: RUN-02 when workers die too often or the cluster cannot be reached.
        CoreMRIError: Whatever the function raised in a worker, as it was.
        Interrupted: After Ctrl-C or SIGTERM.
    """
    workers = workers or Workers()
    if workers.launcher == "local":
        _resolve(entry)(payload)
        return
    with writing(storage):
        storage.mkdir(parents=True, exist_ok=True)
        (storage / ERROR_FILE).unlink(missing_ok=True)
    if workers.launcher == "torchrun":
        _launch_torchrun(entry, payload, workers, storage)
    else:
        _launch_ray(entry, payload, workers, storage)


def preemption_due(finished: int) -> bool:
    """`preemption_ahead`, asked every `PREEMPTION_EVERY` steps only."""
    return finished % PREEMPTION_EVERY == 0 and preemption_ahead()


def preemption_ahead() -> bool:
    """Whether the cluster is about to take a node of this run away.

    All workers must ask after the same steps; on Ray they wait for each other.
    """
    if not _on_ray:
        return False
    import ray.train

    return ray.train.get_preemption_info() is not None


def show_metrics(run: str, numbers: Mapping[str, float]) -> None:
    """Show numbers on the dashboard of Ray, beside those of its nodes; nothing elsewhere.

    They are gauges ``core_mri_NAME`` with the tag ``run``; Prometheus finds them as
    ``ray_core_mri_NAME`` at the metrics port of the node.

    Args:
        run: Name of the run.
        numbers: NAME to value.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    for name, value in numbers.items():
        _gauge(name).set(value, tags={"run": run})


@functools.cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(f"core_mri_{name}", f"{name} of the newest step of a run", tag_keys=("run",))


def _launch_torchrun(
    entry: str, payload: Mapping[str, Any], workers: Workers, storage: Path
) -> None:
    """Processes of this machine; what they and torchrun print goes to ``torchrun.log``."""
    printed = storage / "torchrun.log"
    with tempfile.TemporaryDirectory(prefix="core-mri-") as folder:
        job_file = Path(folder, "job.json")
        job_file.write_text(json.dumps(_job(entry, payload, storage)), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={workers.num_workers}", f"--max-restarts={workers.max_failures}"),
            *("-m", "core_mri.launch", str(job_file)),
        ]
        own = str(_threads_per_worker(workers.num_workers))
        variables = os.environ | {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", own),
            # One store for all restarts hands out the addresses of dead workers
            # (https://github.com/pytorch/pytorch/issues/135712).
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        with printed.open("ab") as stream:
            process = subprocess.Popen(command, env=variables, stdout=stream, stderr=stream)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise _interrupted() from None
        _raise_error_in(storage)
        if code:
            raise RunError(
                "RUN-02", f"a torchrun worker ended with exit code {code}; see {printed}."
            )


def _launch_ray(entry: str, payload: Mapping[str, Any], workers: Workers, storage: Path) -> None:
    with ray_cluster(workers.ray, workers.num_workers):
        import torch
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={
                **_job(entry, payload, storage),
                "threads": _threads_per_worker(workers.num_workers),
            },
            scaling_config=ScalingConfig(
                num_workers=(workers.min_workers, workers.num_workers)
                if workers.min_workers
                else workers.num_workers,
                use_gpu=torch.cuda.is_available(),
            ),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(storage.resolve()),
                failure_config=FailureConfig(max_failures=workers.max_failures),
            ),
        )
        try:
            trainer.fit()
        except (KeyboardInterrupt, SystemExit):  # Ray Train leaves after Ctrl-C, without an error
            raise _interrupted() from None
        except Exception as error:
            _raise_error_in(storage)
            raise RunError("RUN-02", f"a Ray worker failed: {_told(error)}") from error
        _raise_error_in(storage)


@contextlib.contextmanager
def ray_cluster(address: str | None, num_workers: int) -> Iterator[None]:
    """A connection to `address`, or a cluster of this machine for the time of the run.

    A process that runs on Ray already, such as a trial of a sweep, keeps its connection.
    """
    # A cluster started here listens on the loopback interface only; without this Ray writes a token
    # into the user's home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if address is None else "token")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is not None:
        _check_reachable(address)
    import ray

    if ray.is_initialized():
        yield
        return
    local: dict[str, Any] = {
        # One core more than workers: Ray Train's controller takes a share of one.
        "num_cpus": max(available_cores(), num_workers + 1),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
    }
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.WARNING,
            **(local if address is None else {}),
        )
    except Exception as error:  # Ray raises no narrower one when its raylet does not start
        raise _unreachable(address or "this machine", error) from error
    with contextlib.suppress(ValueError):  # signals belong to the main thread
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler aborts the process
    try:
        with _environment(LONE_MACHINE if address is None else {}):
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set those that are not set, for a time."""
    own = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def map_on_ray(
    entry: str,
    payloads: Sequence[Mapping[str, Any]],
    *,
    address: str,
    num_workers: int = 0,
    num_gpus: float = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Mapping[str, Any] | CoreMRIError]]:
    """Call ``entry(payload)`` for every payload on a Ray cluster, as workers become free.

    Args:
        entry: ``"module:function"``, importable in every worker; gives something JSON-able. A
            worker process is used for many payloads, so that it may keep what it has loaded.
        payloads: JSON-able, paths absolute.
        address: Of a running cluster, or ``local``, which starts one on this machine.
        num_workers: Payloads at a time; 0 is one a core of the cluster.
        num_gpus: GPUs of each.
        stopped: Asked once a second; when true what runs is cancelled and the rest left out.

    Yields:
        Number of the payload, and its result or what went wrong: the error of the function if it is
        ours, else RUN-02; a payload whose worker died was tried twice, one whose machine ran out of
        memory until it had some. Other payloads go on.

    Raises:
        RunError: RUN-02 when the cluster cannot be reached.
    """
    with ray_cluster(None if address == "local" else address, max(1, num_workers)):
        import ray

        limit = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=1)(_call)
        waiting = iter(enumerate(payloads))
        running: dict[Any, int] = {}
        while True:
            for index, payload in itertools.islice(waiting, limit - len(running)):
                running[remote.remote(entry, dict(payload))] = index
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
            if stopped():
                for task in running:
                    ray.cancel(task, force=True)
                return
            for task in done:
                yield running.pop(task), _result(task)


def _call(entry: str, payload: Mapping[str, Any]) -> Any:
    return _resolve(entry)(payload)


def _result(task: Any) -> Mapping[str, Any] | CoreMRIError:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        found: Mapping[str, Any] = ray.get(task)
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, CoreMRIError):
            return cause
        return RunError("RUN-02", f"a Ray worker failed: {cause}")
    return found


def _check_reachable(address: str) -> None:
    """Fail in seconds where Ray retries for minutes; only ``[ray://]host:port`` can be tried.

    Raises:
        RunError: RUN-02 when nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> RunError:
    return RunError(
        "RUN-02",
        f"Ray at {address} cannot be reached: {error}.",
        fix="Check the address with `ray status --address ...`, or leave --ray out.",
    )


def _job(entry: str, payload: Mapping[str, Any], storage: Path) -> dict[str, Any]:
    error_file = str((storage / ERROR_FILE).resolve())
    return {"entry": entry, "payload": dict(payload), "error_file": error_file}


def _ray_worker(job: Mapping[str, Any]) -> None:
    global _on_ray
    import torch

    _on_ray = True
    torch.set_num_threads(int(job["threads"]))
    _run(job)


def _run(job: Mapping[str, Any]) -> None:
    """The body of a worker. An error of ours is written down, and keeps others from starting again.

    It is raised too: workers that wait for this one must be ended.
    """
    error_file = Path(job["error_file"])
    if error_file.exists():
        return
    try:
        _resolve(job["entry"])(job["payload"])
    except CoreMRIError as error:
        facts = {"type": type(error).__name__, "code": error.code}
        facts |= {"message": error.message, "fix": error.fix}
        with contextlib.suppress(FileExistsError), error_file.open("x") as file:
            json.dump(facts, file)
        raise


def _told(error: BaseException) -> str:
    """What the ranks said, of an error of Ray Train."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    return "; ".join(f"rank {rank}: {failure}" for rank, failure in failures.items()) or str(error)


def _raise_error_in(storage: Path) -> None:
    """Raise what a worker wrote down, if one did."""
    path = storage / ERROR_FILE
    if path.exists():
        raise _error_from(json.loads(path.read_text(encoding="utf-8")))


def _error_from(facts: Mapping[str, str]) -> CoreMRIError:
    """Rebuild the error that a torchrun worker wrote down."""
    classes = {cls.__name__: cls for cls in CoreMRIError.__subclasses__()}
    if facts["type"] == Interrupted.__name__:
        return Interrupted(facts["message"])
    return classes.get(facts["type"], CoreMRIError)(
        facts["code"], facts["message"], fix=facts["fix"]
    )


def _interrupted() -> Interrupted:
    return Interrupted(
        "stopped; the newest checkpoint is kept. "
        "Run the same command again with --resume to continue."
    )


def _threads_per_worker(num_workers: int) -> int:
    return max(1, available_cores() // num_workers)


def _resolve(entry: str) -> Callable[[Mapping[str, Any]], Any]:
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _torchrun_worker(job_file: str) -> int:
    """Body of one torchrun process."""
    import torch
    import torch.distributed as dist

    logging.basicConfig(level=logging.WARNING)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        _run(json.loads(Path(job_file).read_text(encoding="utf-8")))
    except CoreMRIError as error:
        return error.exit_code
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(_torchrun_worker(sys.argv[1]))

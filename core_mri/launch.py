"""Where a training function runs: in this process, in processes of torchrun, or on Ray Train.

The function is named ``"module:function"``, is imported in every worker and called with the same
JSON-able payload; it knows nothing of launchers. With more than one worker a process group is ready
when it starts (nccl with CUDA, else gloo).
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from core_mri.devices import available_cores
from core_mri.errors import ConfigError, CoreMRIError, Interrupted, RunError

log = logging.getLogger(__name__)

Launcher = Literal["local", "torchrun", "ray"]
CONNECT_TIMEOUT_S = 5.0
_ERROR_FILE = "CORE_MRI_ERROR_FILE"


def launch(
    entry: str,
    payload: Mapping[str, Any],
    *,
    launcher: Launcher = "local",
    num_workers: int = 1,
    ray_address: str | None = None,
    storage: Path,
) -> None:
    """Run ``entry(payload)`` in every worker and wait.

    Args:
        entry: ``"module:function"``, importable in every worker.
        payload: What the function gets; JSON-able, paths absolute.
        launcher: ``local`` calls it here, ``torchrun`` starts processes on this machine, ``ray``
            starts workers on a Ray cluster.
        num_workers: Worker processes; ``local`` allows one.
        ray_address: Address of a running cluster; None starts one on this machine for this run.
        storage: Folder that all workers see, for what torchrun and Ray Train themselves write.

    Raises:
        ConfigError: CONFIG-05 for several workers in one process.
        RunError: RUN-02 when a worker dies or the cluster cannot be reached.
        CoreMRIError: Whatever the function raised in a worker, as it was.
        Interrupted: After Ctrl-C or SIGTERM.
    """
    if num_workers < 1 or (launcher == "local" and num_workers > 1):
        raise ConfigError(
            "CONFIG-05",
            f"launcher {launcher} cannot run {num_workers} workers.",
            fix="Use one worker, or --launcher torchrun or ray.",
        )
    if launcher == "local":
        _resolve(entry)(payload)
    elif launcher == "torchrun":
        _launch_torchrun(entry, payload, num_workers, storage)
    else:
        _launch_ray(entry, payload, num_workers, ray_address, storage)


def _launch_torchrun(
    entry: str, payload: Mapping[str, Any], num_workers: int, storage: Path
) -> None:
    """Processes of this machine; what they and torchrun print goes to ``torchrun.log``."""
    storage.mkdir(parents=True, exist_ok=True)
    printed = storage / "torchrun.log"
    with tempfile.TemporaryDirectory(prefix="core-mri-") as folder:
        payload_file, error_file = Path(folder, "payload.json"), Path(folder, "error.json")
        payload_file.write_text(json.dumps(dict(payload)), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={num_workers}", "-m", "core_mri.launch", entry, str(payload_file)),
        ]
        threads = os.environ.get("OMP_NUM_THREADS", str(_threads_per_worker(num_workers)))
        variables = os.environ | {"OMP_NUM_THREADS": threads, _ERROR_FILE: str(error_file)}
        with printed.open("ab") as stream:
            process = subprocess.Popen(command, env=variables, stdout=stream, stderr=stream)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                raise _interrupted() from None
        if error_file.exists():
            raise _error_from(json.loads(error_file.read_text(encoding="utf-8")))
        if code:
            raise RunError(
                "RUN-02", f"a torchrun worker ended with exit code {code}; see {printed}."
            )


def _launch_ray(
    entry: str,
    payload: Mapping[str, Any],
    num_workers: int,
    ray_address: str | None,
    storage: Path,
) -> None:
    with ray_cluster(ray_address, num_workers):
        import torch
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"entry": entry, "payload": dict(payload), "workers": num_workers},
            scaling_config=ScalingConfig(
                num_workers=num_workers, use_gpu=torch.cuda.is_available()
            ),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(storage.resolve()),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except KeyboardInterrupt:
            raise _interrupted() from None
        except Exception as error:
            raise _cause_in_worker(error) from error


@contextlib.contextmanager
def ray_cluster(address: str | None, num_workers: int) -> Iterator[None]:
    """A connection to `address`, or a cluster of this machine for the time of the run."""
    # A cluster started here listens on the loopback interface only; without this Ray writes a token
    # into the user's home folder.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if address is None else "token")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is not None:
        _check_reachable(address)
    import ray

    local: dict[str, Any] = {
        # One core more than workers: Ray Train's controller takes a share of one.
        "num_cpus": max(available_cores(), num_workers + 1),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.WARNING,
            **(local if address is None else {}),
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise _unreachable(address or "this machine", error) from error
    try:
        yield
    finally:
        ray.shutdown()


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


def _ray_worker(job: Mapping[str, Any]) -> None:
    import torch

    torch.set_num_threads(_threads_per_worker(int(job["workers"])))
    _resolve(job["entry"])(job["payload"])


def _cause_in_worker(error: BaseException) -> CoreMRIError:
    """The error of ours inside what Ray Train raises, else RUN-02 with the rank's message."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, CoreMRIError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    text = "; ".join(f"rank {rank}: {failure}" for rank, failure in failures.items()) or str(error)
    return RunError("RUN-02", f"a Ray worker failed: {text}")


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


def _torchrun_worker(entry: str, payload_file: str) -> int:
    """Body of one torchrun process; its error, if ours, is written down for the parent."""
    import torch
    import torch.distributed as dist

    logging.basicConfig(level=logging.WARNING)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        _resolve(entry)(json.loads(Path(payload_file).read_text(encoding="utf-8")))
    except CoreMRIError as error:
        facts = {"type": type(error).__name__, "code": error.code}
        facts |= {"message": error.message, "fix": error.fix}
        with contextlib.suppress(FileExistsError), open(os.environ[_ERROR_FILE], "x") as file:  # noqa: PTH123
            json.dump(facts, file)
        return error.exit_code
    finally:
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(_torchrun_worker(sys.argv[1], sys.argv[2]))

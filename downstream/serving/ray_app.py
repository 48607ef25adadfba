"""`core-mri serve --ray`: the same service as deployments of Ray Serve.

    http       one replica: the ASGI app, the queue, whatever changes a job
    jobs       1 to --workers replicas, as many as jobs wait: a job each, in a process of its own
    prompts    scans kept ready for boxes and clicks; those of a scan meet its one embedding

Replicas of `jobs` are told what to do and answer with JSON; they see the queue never. The folder
into which an attempt writes is its lease: when it goes (cancelled, deleted, the service started
anew), whoever works for it stops. A lost replica or node queues its job again, and only the attempt
that was claimed last may end a job, so each ends once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_mri.errors import CoreMRIError, ServingError
from core_mri.launch import ray_cluster
from core_mri.runs import write_atomically, writing
from downstream.serving.app import make_app
from downstream.serving.assembly import assemble, described, has_networks, open_boards
from downstream.serving.limits import Limits
from downstream.serving.orders import JobWork
from downstream.serving.replicas import MARK, Answerer, JobRunner, check_shared
from downstream.serving.server import log_to_stderr
from downstream.serving.settings import Places, ServeConfig
from downstream.serving.sources import Served, is_solver
from downstream.serving.tokens import Tokens, load_tokens
from downstream.serving.worker import FAULT, Lost

log = logging.getLogger(__name__)

APP, HTTP, JOBS, PROMPTS = "core-mri", "http", "jobs", "prompts"
_KEPT = ("name",)
"""Of a request: it may name a patient and goes nowhere."""
_NODE_S = 240.0
"""Until every node has answered; a busy one takes a minute to start a worker."""


def load_ray_serve() -> None:
    """Load what the extra `serve-ray` brings.

    Raises:
        ModuleNotFoundError: Where it is not installed.
    """
    import ray.serve  # noqa: F401


def serve_on_ray(config: ServeConfig, *, started: Callable[[str], None]) -> None:
    """Run until a signal stops it; an older service of ours on the cluster makes room.

    Args:
        config: Settings.
        started: Told the address once it listens.

    Raises:
        RunError: RUN-02 when the cluster cannot be reached.
        ServingError: SERVE-01 and SERVE-02 as `serve`; SERVE-70 to SERVE-72.
        WeightsError: For weights that cannot be served.
        LeaderboardError: BOARD-01 for a folder that is no leaderboard.
        ConfigError: CONFIG-05 for two leaderboards of one name.
    """
    from ray import serve

    assert config.ray is not None
    os.umask(0o077)
    log_to_stderr()
    tokens = load_tokens(config.token_file) if config.token_file else Tokens({})
    open_boards(config.leaderboards)
    config = replace(
        config,
        sources=tuple(map(_absolute, config.sources)),
        leaderboards=tuple(folder.resolve() for folder in config.leaderboards),
    )
    stop = threading.Event()
    address = None if config.ray == "local" else config.ray
    with (
        contextlib.redirect_stdout(sys.stderr),
        ray_cluster(address, 2 * config.workers + 1),
    ):
        import ray

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        was_running = _is_running(config)
        sources = described(config)
        _check_processors(sources)
        if was_running:
            _make_room(config)
        root = Places.unused(config.data_dir)
        mark = _mark(root)
        _check_nodes(root, mark)
        quiet = {"enable_access_log": False}  # ours names routes, not paths
        port = config.port or _free_port(config.host)
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": config.host, "port": port},
                logging_config=quiet,
            )
            gpus = float(ray.cluster_resources().get("GPU", 0))
            app = _application(config, root, mark, sources, tokens, has_gpu=gpus > 0)
            handle = serve.run(app, name=APP, route_prefix="/", logging_config=quiet)
        except Exception as error:  # Ray Serve raises many kinds
            if not was_running:
                serve.shutdown()
            said = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ServingError(
                "SERVE-70",
                f"Ray Serve did not start the service: {said}",
                fix="See the logs of Ray (on its head /tmp/ray/session_latest/logs/serve).",
            ) from error
        host = f"[{config.host}]" if ":" in config.host else config.host
        started(f"http://{host}:{port}")
        try:
            while not stop.wait(1.0):
                pass
        finally:
            with contextlib.suppress(Exception):  # the cluster may be gone
                handle.stop.remote().result(timeout_s=config.limits.shutdown_s + 30)
            with contextlib.suppress(Exception):
                serve.delete(APP)
                if not was_running:
                    serve.shutdown()


class Front:
    """The replica of `http`: whatever is told to or asked of jobs passes here.

    Args:
        config, sources, tokens: As for one process.
        jobs, prompts: Handles of the other deployments; None where no weights answer prompts.
    """

    def __init__(
        self,
        config: ServeConfig,
        sources: tuple[Served, ...],
        tokens: Tokens,
        jobs: Any,
        prompts: Any,
    ) -> None:
        os.umask(0o077)
        log_to_stderr()
        places, self._lock = Places.open(config.data_dir)
        memory_gb = config.limits.job_gb

        def begin(work: JobWork) -> RemoteJob:
            return RemoteJob(jobs, work, memory_gb)

        asked = RemoteScans(prompts, config.limits)
        boards = open_boards(config.leaderboards)
        self.service = assemble(config, places, sources, begin, asked, boards)
        self._tokens = tokens
        self.service.workers.start()

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray Serve asks for once this is made."""
        return make_app(self.service, self._tokens)

    async def stop(self) -> None:
        """Take no more jobs; those that do not end in time are queued again."""
        await asyncio.to_thread(self.service.stop)
        if self._lock is not None:
            self._lock.close()


class RemoteJob:
    """A job at work in a replica, as `worker.Running`.

    Args:
        jobs: Handle of the deployment.
        work: What to do.
        memory_gb: Of the process.
    """

    def __init__(self, jobs: Any, work: JobWork, memory_gb: float) -> None:
        told = {name: value for name, value in work.request.items() if name not in _KEPT}
        # The key of the pseudonyms lies in the data folder and need not travel.
        work = replace(work, request=told, key=b"", scratch=Path())
        self._messages: queue.Queue[dict[str, Any] | Lost] = queue.Queue()
        self._stream = jobs.options(stream=True).run.remote(work, memory_gb)
        threading.Thread(target=self._pump, daemon=True).start()

    def listen(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, None when none came in time.

        Raises:
            Lost: When the replica or its node is gone.
        """
        try:
            message = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(message, Lost):
            raise message
        return message

    def kill(self) -> None:
        """Ask for its end; what ends it surely is that its folder goes."""
        with contextlib.suppress(Exception):
            self._stream.cancel()

    def _pump(self) -> None:
        from ray.exceptions import RayTaskError

        ended = False
        try:
            for content in self._stream:
                message = json.loads(content)
                ended = "done" in message or "failed" in message
                self._messages.put(message)
        except RayTaskError:  # our own fault, which another replica would repeat
            log.exception("replica")
            self._messages.put({"failed": FAULT})
        except Exception as error:  # of Ray, whatever became of the replica
            self._messages.put(Lost(type(error).__name__))
        else:
            if not ended:
                self._messages.put(Lost("no last word"))


class RemoteScans:
    """Boxes and clicks answered by replicas, as `prompting.Asked`.

    Args:
        prompts: Handle of the deployment.
        limits: Seconds of an answer.
    """

    def __init__(self, prompts: Any, limits: Limits) -> None:
        self._prompts, self._seconds = prompts, limits.prompt_s

    def ask(self, job: str, served: Served, prompts: dict[str, Any], out: Path) -> dict[str, Any]:
        """As `Sessions.ask`; a scan goes to the replica that has it.

        Raises:
            CoreMRIError: As `Sessions.ask`.
        """
        handle = self._prompts.options(multiplexed_model_id=f"{job} {served.name}")
        try:
            answer = handle.ask.remote(job, served, prompts, out).result(timeout_s=self._seconds)
        except TimeoutError:
            raise ServingError(
                "SERVE-05", f"no answer within {self._seconds:g} s.", fix="Ask for a smaller box."
            ) from None
        except Exception:  # of Ray, whatever became of the replica
            raise ServingError(
                "SERVE-06", "the scan is ready no longer.", fix="Ask again."
            ) from None
        if "refused" in answer:
            raise CoreMRIError(**answer["refused"])
        return dict(answer["answer"])

    def forget(self, job: str = "") -> None:
        """Nothing to do: replicas see that the results of a job are gone."""


def _application(
    config: ServeConfig,
    root: Path,
    mark: str,
    sources: tuple[Served, ...],
    tokens: Tokens,
    *,
    has_gpu: bool,
) -> Any:
    from ray import serve

    limits = config.limits
    gpus = 1 if has_gpu and config.device != "cpu" and has_networks(config) else 0
    scaled = {
        "min_replicas": 1, "max_replicas": config.workers, "target_ongoing_requests": 1,
        "upscale_delay_s": 1.0, "metrics_interval_s": 1.0, "look_back_period_s": 2.0,
    }  # fmt: skip
    actor = {"num_cpus": 1, "num_gpus": gpus}
    # A replica that is to go first ends its job.
    jobs = serve.deployment(
        name=JOBS, max_ongoing_requests=1, autoscaling_config=scaled, ray_actor_options=actor,
        graceful_shutdown_timeout_s=limits.job_s,
    )(JobRunner).bind(root, mark, networks=has_networks(config))  # fmt: skip
    prompts = None
    if _prompted(sources):

        class Kept(Answerer):
            keep = serve.multiplexed(max_num_models_per_replica=limits.sessions)(Answerer.keep)

        prompts = serve.deployment(
            name=PROMPTS, max_ongoing_requests=limits.sessions, autoscaling_config=scaled,
            ray_actor_options=actor, graceful_shutdown_timeout_s=limits.prompt_s,
        )(Kept).bind(root, mark, limits, config.device)  # fmt: skip
    config = replace(config, data_dir=root)
    front = serve.deployment(
        name=HTTP, num_replicas=1, ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=limits.connections + 1, max_queued_requests=limits.connections,
        graceful_shutdown_timeout_s=10,
    )(serve.ingress()(Front))  # fmt: skip
    return front.bind(config, sources, tokens, jobs, prompts)


def _is_running(config: ServeConfig) -> bool:
    """Whether Ray Serve runs on the cluster.

    Raises:
        ServingError: SERVE-70 where it listens at another address.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        found = serve.context._get_global_client().http_config
    except RayServeException:
        return False
    if (found.host, found.port) != (config.host, config.port):
        raise ServingError(
            "SERVE-70",
            f"Ray Serve of this cluster listens at {found.host}:{found.port}, not at "
            f"{config.host}:{config.port}.",
            fix="Give these as --host and --port, or end it with `serve shutdown`.",
        )
    return True


def _make_room(config: ServeConfig) -> None:
    """End a service of ours on the cluster."""
    from ray import serve

    if APP in serve.status().applications:
        with contextlib.suppress(Exception):  # it may be broken
            old = serve.get_app_handle(APP)
            old.stop.remote().result(timeout_s=config.limits.shutdown_s + 30)
        serve.delete(APP)


def _check_processors(sources: tuple[Served, ...]) -> None:
    import ray

    needed = 2 if _prompted(sources) else 1
    found = ray.cluster_resources().get("CPU", 0)
    if found < needed:
        raise ServingError(
            "SERVE-72",
            f"the cluster has {found:g} processors; the service needs {needed}.",
            fix="Add a node.",
        )


def _check_nodes(root: Path, mark: str) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=0)(check_shared)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    asked = [
        check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            root, mark
        )
        for node in nodes
    ]
    for answer in asked:
        try:
            ray.get(answer, timeout=_NODE_S)
        except Exception as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ServingError):
                raise cause from None
            raise ServingError(
                "SERVE-71",
                f"a node cannot run core-mri: {str(error).strip().splitlines()[-1]}",
                fix="Install core-mri[serve-ray] of this version on all nodes.",
            ) from error


def _prompted(sources: tuple[Served, ...]) -> bool:
    return any(served.role == "prompt" for served in sources)


def _mark(root: Path) -> str:
    mark = secrets.token_hex(16)
    with writing(root):
        write_atomically(root / MARK, mark.encode())
    return mark


def _absolute(source: str) -> str:
    """A source whose path holds in any working folder."""
    family, colon, file = source.rpartition(":")
    is_path = not is_solver(source) and Path(file).exists()
    return f"{family}{colon}{Path(file).absolute()}" if is_path else source


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])

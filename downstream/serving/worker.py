"""Threads that take jobs from the queue, give each a process, and publish what it made, once."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from core_mri.errors import CoreMRIError
from downstream.serving.child import Child
from downstream.serving.limits import Limits
from downstream.serving.orders import JobWork
from downstream.serving.settings import Places
from downstream.serving.sources import Served
from downstream.serving.spool import Spool
from downstream.serving.store import ENDED, Job, Store

log = logging.getLogger(__name__)

FAULT = {
    "code": "SERVE-06",
    "message": "an error of the service.",
    "fix": "Tell whoever runs the service.",
}
_LOOK_S = 0.2
_IDLE_S = 0.5
_CLEAN_S = 30.0


class Lost(Exception):
    """Whoever worked on a job is gone, through no fault of its file."""


class Running(Protocol):
    """A job at work, here or elsewhere."""

    def listen(self, timeout_s: float) -> dict[str, Any] | None:
        """Its next message, None when none came in time.

        Raises:
            ServingError: SERVE-06 when its process died.
            Lost: When the machine or worker it was on is gone.
        """

    def kill(self) -> None:
        """End it, now."""


Start = Callable[[JobWork], Running]


def start_here(limits: Limits) -> Start:
    """Jobs run in processes of this one."""

    def start(work: JobWork) -> Child:
        memory = limits.job_gb
        return Child("do_job", work, work.scratch, memory_gb=memory, file_gb=2 * memory)

    return start


class Workers:
    """Runs jobs until it is stopped.

    Args:
        store: The queue.
        spool: Uploads; those of ended jobs are discarded.
        places: Folders.
        sources: What is served.
        key: Of the pseudonyms.
        limits: Of memory and time.
        number: Jobs at once.
        device: Where networks run.
        begin: Where jobs run.
        ended: Told each job that ended, its state and its seconds.
        boards: Folders of the leaderboards by name.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        places: Places,
        sources: tuple[Served, ...],
        key: bytes,
        limits: Limits,
        *,
        number: int,
        device: str,
        begin: Start,
        ended: Callable[[str, float], None],
        boards: Mapping[str, Path],
    ) -> None:
        self._store, self._spool, self._places = store, spool, places
        self._sources, self._key, self._limits, self._device = sources, key, limits, device
        self._begin, self._ended, self._boards = begin, ended, boards
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._stop_by = float("inf")
        self._threads = [
            threading.Thread(target=self._loop, name=f"worker-{n}", daemon=True)
            for n in range(number)
        ]
        self._threads.append(threading.Thread(target=self._clean, name="cleaner", daemon=True))

    def start(self) -> None:
        """Queue what a killed service left, throw away what nobody may have any more, begin."""
        self._store.requeue()
        live = self._store.live()
        for job in self._spool.jobs():
            if live.get(job, "done") in ENDED:
                self._spool.discard(job)
        for folder in self._places.results.iterdir():
            if live.get(folder.name) != "done":
                shutil.rmtree(folder, ignore_errors=True)
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._wake.set()

    @property
    def alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Take no more jobs; those that do not end in time are queued again."""
        self._stop_by = time.monotonic() + self._limits.shutdown_s
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                job = self._store.claim()
            except sqlite3.OperationalError:  # such as a full disk, which may pass
                log.exception("queue")
                job = None
            if job is None:
                self._wake.wait(_IDLE_S)
                self._wake.clear()
                continue
            start = time.monotonic()
            try:
                self._run(job)
            except Exception:
                # A fault of the service: the job says so, and the next one is taken.
                log.exception("job %s", job.id)
                self._fail(job, FAULT)
            now = self._store.get(job.id)
            state = now.state if now is not None else "deleted"
            if state in ("done", "failed", "cancelled"):
                self._spool.discard(job.id)
            seconds = time.monotonic() - start
            self._ended(state, seconds)
            log.info("job", extra={"facts": {"job": job.id, "state": state, "attempt": job.attempt,
                     "seconds": round(seconds, 2),
                     "code": now.error.get("code", "") if now else ""}})  # fmt: skip

    def _run(self, job: Job) -> None:
        name = f"{job.id}-{job.attempt}"
        out, scratch = self._places.work / name, self._places.scratch / name
        for folder in (out, scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
        work = JobWork(
            job.id, job.size, dict(job.request), self._spool.folder, scratch, out, self._sources,
            self._key, self._device, self._boards,
        )  # fmt: skip
        running = self._begin(work)
        try:
            self._follow(job, running, out)
        except Lost as error:
            log.warning("lost", extra={"facts": {"job": job.id, "attempt": job.attempt,
                        "reason": str(error)}})  # fmt: skip
            self._store.requeue(job)
        except CoreMRIError as error:
            if self._stopping.is_set():  # whoever stops us may have ended the process too
                self._store.give_back(job)
            else:
                facts = {"code": error.code, "message": error.message, "fix": error.fix}
                self._fail(job, facts)
        finally:
            running.kill()
            for folder in (out, scratch):
                shutil.rmtree(folder, ignore_errors=True)

    def _follow(self, job: Job, running: Running, out: Path) -> None:
        """Pass on what the process says until it is done, cancelled, too slow, or we stop."""
        deadline = time.monotonic() + self._limits.job_s
        while True:
            message = running.listen(_LOOK_S)
            if message is None:
                now = self._store.get(job.id)
                if now is None or now.state != "running":
                    return
            elif "progress" in message:
                self._store.advance(
                    job, float(message["progress"]), str(message.get("phase", ""))[:80]
                )
            elif "failed" in message:
                return self._fail(job, {k: str(v) for k, v in message["failed"].items()})
            elif "done" in message:
                return self._publish(job, out, dict(message["done"]))
            if time.monotonic() > deadline:
                limit = f"{self._limits.job_s:g} s"
                return self._fail(
                    job,
                    {"code": "SERVE-05", "message": f"the job took more than {limit}.",
                     "fix": "Send fewer slices, choose cg-sense or zero-filled, or ask whoever "
                     "runs the service for more time."},
                )  # fmt: skip
            if time.monotonic() > self._stop_by:
                return self._store.give_back(job)

    def _publish(self, job: Job, out: Path, report: dict[str, object]) -> None:
        """The results get their place, then the job its end: a kill in between repeats the job."""
        target = self._places.results / job.id
        shutil.rmtree(target, ignore_errors=True)
        out.rename(target)
        if not self._store.finish(job, report):  # cancelled or deleted meanwhile
            shutil.rmtree(target, ignore_errors=True)

    def _fail(self, job: Job, error: dict[str, str]) -> None:
        self._store.fail(job, error)

    def _clean(self) -> None:
        """Erase what has expired, at most a tenth of its time too late."""
        while not self._stopping.wait(min(_CLEAN_S, 360 * self._limits.keep_h)):
            for job in self._store.expired(time.time() - 3600 * self._limits.keep_h):
                erase(job, self._store, self._spool, self._places)


def erase(job: str, store: Store, spool: Spool, places: Places) -> None:
    """Forget a job with all it has: key and upload, results, row."""
    store.cancel(job)
    spool.discard(job)
    shutil.rmtree(places.results / job, ignore_errors=True)
    store.delete(job)

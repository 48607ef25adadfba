"""The service without HTTP: what may be done to jobs, by whom, in which state."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core_mri.errors import ServingError
from downstream.leaderboard.board import Board
from downstream.serving.limits import Limits
from downstream.serving.observing import Metrics
from downstream.serving.prompting import Prompting
from downstream.serving.results import RESULTS
from downstream.serving.settings import Places
from downstream.serving.sources import Served, find
from downstream.serving.spool import Spool
from downstream.serving.store import Job, Store
from downstream.serving.worker import Workers, erase


class Refused(ServingError):
    """A refusal with the status that HTTP gives it.

    Args:
        status: Of HTTP.
        code, message, fix: As of `CoreMRIError`.
        retry_s: When to come again; 0 says nothing.
        offset: Of the upload, where it matters.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fix: str = "",
        retry_s: int = 0,
        offset: int | None = None,
    ) -> None:
        super().__init__(code, message, fix=fix)
        self.status, self.retry_s, self.offset = status, retry_s, offset


@dataclass
class Service:
    """Everything that routes need.

    Args:
        store, spool, workers, prompting, metrics: Its parts.
        places: Folders.
        sources: What is served.
        limits: What users may ask.
        boards: Leaderboards by name.
    """

    store: Store
    spool: Spool
    workers: Workers
    prompting: Prompting
    metrics: Metrics
    places: Places
    sources: tuple[Served, ...]
    limits: Limits
    boards: Mapping[str, Board] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stopping = False
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def create(
        self, user: str, request: Mapping[str, Any], size: int, idempotency: str | None
    ) -> tuple[Job, bool]:
        """A new job that waits for its upload; or the one of the same idempotency key.

        Raises:
            Refused: 404 for a source that is not served, 409 for the key of another request,
                422 for too large an upload, 429 for too many jobs or bytes.
        """
        if size > self.limits.upload_bytes:
            raise Refused(
                422, "SERVE-04",
                f"an upload of {size} bytes; {self.limits.upload_bytes} are allowed.",
                fix="Send fewer slices in one file.",
            )  # fmt: skip
        name = request.get("source") or ""
        if name and name not in [served.name for served in self.sources]:
            raise Refused(
                404, "SERVE-07",
                "a source that is not served.",
                fix=f"Choose one of {', '.join(s.name for s in self.sources)}.",
            )  # fmt: skip
        # A known key costs nothing and must work for ever.
        is_known = idempotency is not None and self.store.knows(user, idempotency)
        if not is_known or self.stopping:
            self.check_room(user, size)
        job, new = self.store.create(user, request, size, idempotency)
        if not new and (dict(job.request), job.size) != (dict(request), size):
            raise Refused(
                409, "SERVE-09", "this Idempotency-Key was used for another request.",
                fix="Use a new key.",
            )  # fmt: skip
        return job, new

    def check_room(self, user: str, size: int) -> None:
        """Whether a user may have another job, of so many bytes.

        Raises:
            Refused: 429 for too many jobs or bytes, 503 while the service stops.
        """
        if self.stopping:
            raise Refused(503, "SERVE-04", "the service is stopping.", retry_s=30)
        unfinished, kept = self.store.count(user)
        if unfinished >= self.limits.jobs or kept >= self.limits.kept_jobs:
            raise Refused(
                429, "SERVE-04",
                f"{unfinished} unfinished jobs of {kept}; {self.limits.jobs} of "
                f"{self.limits.kept_jobs} are allowed.",
                fix="Wait until some are done, or delete some.", retry_s=30,
            )  # fmt: skip
        if self.store.spooled() + size > self.limits.spool_gb * 1e9:
            raise Refused(
                429, "SERVE-04", "no room for another upload now.", fix="Come again later.",
                retry_s=60,
            )  # fmt: skip

    def get(self, user: str, identity: str) -> Job:
        """A job of this user.

        Raises:
            Refused: 404; other people's jobs look like none.
        """
        job = self.store.get(identity, user)
        if job is None:
            raise Refused(404, "SERVE-07", "no such job.")
        return job

    def append(self, user: str, identity: str, offset: int, content: bytes) -> Job:
        """Take a part of an upload; the last one queues the job.

        Raises:
            Refused: 404, 409 for a wrong offset or state, or more than was announced, 422 for
                nothing.
            DataError: DATA-07 when the disk is full.
        """
        with self._lock(identity):
            job = self.get(user, identity)
            if job.state != "uploading" or offset != job.received:
                raise Refused(
                    409, "SERVE-03",
                    f"a part from byte {offset}; the job is {job.state} and has {job.received} "
                    f"of {job.size} bytes.",
                    fix="Go on from the offset that the answer names.", offset=job.received,
                )  # fmt: skip
            end = offset + len(content)
            if end > job.size:
                raise Refused(
                    409, "SERVE-03", f"{end} bytes; {job.size} were announced.",
                    offset=job.received,
                )  # fmt: skip
            if not content:
                raise Refused(422, "SERVE-03", "an empty part.", offset=job.received)
            if offset == 0:
                self.spool.open(identity)
            self.spool.append(identity, offset, content)
            taken = self.store.receive(identity, offset, end)
        if not taken:  # cancelled or deleted while the part was written
            self.spool.discard(identity)
            raise Refused(409, "SERVE-07", "the job was cancelled.")
        self.metrics.received(len(content))
        if end == job.size:
            self.workers.wake()
            self._forget_lock(identity)
        return self.get(user, identity)

    def cancel(self, user: str, identity: str) -> Job:
        """End a job; its upload is thrown away, its row stays.

        Raises:
            Refused: 404, 409 when it has ended.
        """
        job = self.get(user, identity)
        if not self.store.cancel(identity):
            raise Refused(409, "SERVE-07", f"the job is {job.state} already.")
        if job.state != "running":
            self.spool.discard(identity)
        self._forget_lock(identity)
        return self.get(user, identity)

    def delete(self, user: str, identity: str) -> None:
        """Forget a job with all it has.

        Raises:
            Refused: 404.
        """
        self.get(user, identity)
        self.prompting.forget(identity)
        self._forget_lock(identity)
        erase(identity, self.store, self.spool, self.places)

    def result(self, user: str, identity: str, name: str) -> Path:
        """A file that a job left.

        Raises:
            Refused: 404 for any other name.
        """
        self.get(user, identity)
        path = self.places.results / identity / name
        if name not in RESULTS or not path.is_file():
            raise Refused(404, "SERVE-07", "no such result of this job.")
        return path

    def results(self, identity: str) -> list[tuple[str, int]]:
        """Names and bytes of the files that a job left, in the order of `RESULTS`."""
        folder = self.places.results / identity
        return [(n, (folder / n).stat().st_size) for n in RESULTS if (folder / n).is_file()]

    def prompt(self, user: str, identity: str, prompts: dict[str, Any], source: str) -> Job:
        """Answer boxes and points on the scan of a done job.

        Raises:
            Refused: 404, 409 when it is not done, also without weights that answer prompts.
            CoreMRIError: As `Prompting.answer`.
        """
        job = self.get(user, identity)
        if job.state != "done":
            raise Refused(409, "SERVE-07", f"the job is {job.state}, not done.")
        if not {"image.nii.gz", "reconstruction.nii.gz"} & {n for n, _ in self.results(identity)}:
            raise Refused(
                409, "SERVE-07", "the job holds no single image.",
                fix="Store one series at a time.",
            )  # fmt: skip
        served = find(self.sources, source, "prompt")
        if served is None:
            raise Refused(
                404, "SERVE-07", "no such weights that answer boxes and clicks.",
                fix="Start the service with weights that have a mask decoder.",
            )  # fmt: skip
        answer = self.prompting.answer(identity, served, prompts)
        self.store.touch(identity, {**job.report, **answer, "prompted": served.name})
        return self.get(user, identity)

    def stop(self) -> None:
        """Running jobs get their time; nothing unsealed is left."""
        self.stopping = True
        self.workers.stop()
        self.prompting.forget()
        shutil.rmtree(self.places.scratch, ignore_errors=True)

    def _lock(self, identity: str) -> threading.Lock:
        """Of the parts of one upload."""
        with self._guard:
            return self._locks.setdefault(identity, threading.Lock())

    def _forget_lock(self, identity: str) -> None:
        with self._guard:
            self._locks.pop(identity, None)

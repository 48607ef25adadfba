"""Jobs in SQLite: their states, who owns them, which one is next. It survives a kill at any time.

    uploading -> queued -> running -> done | failed
    uploading | queued | running -> cancelled

A job that was running when the service died is queued again when it starts; only the attempt that
was claimed last may end a job, so each ends once.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["uploading", "queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
MAX_ATTEMPTS = 10
"""Starts of a job that die with the service, before the file is taken for the cause."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, idempotency TEXT, request TEXT NOT NULL,
    size INTEGER NOT NULL, received INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0, progress REAL NOT NULL DEFAULT 0,
    phase TEXT NOT NULL DEFAULT '', report TEXT NOT NULL DEFAULT '{}',
    error TEXT NOT NULL DEFAULT '{}', created REAL NOT NULL, updated REAL NOT NULL,
    UNIQUE (owner, idempotency));
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, created);
CREATE INDEX IF NOT EXISTS by_owner ON jobs (owner, created);
"""


@dataclass(frozen=True)
class Job:
    """A row."""

    id: str
    owner: str
    request: Mapping[str, Any] = field(repr=False)
    """What was asked; its name may name a patient, so it is never logged."""
    size: int
    received: int
    state: State
    attempt: int
    progress: float
    phase: str
    report: Mapping[str, Any] = field(repr=False)
    error: Mapping[str, str]
    created: float
    updated: float


class Store:
    """The database; one connection that threads take turns with.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        # WAL with NORMAL loses nothing when the process dies, at most the last changes when the
        # power fails; clients learn from the offset what arrived.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def create_queued(
        self, identity: str, owner: str, request: Mapping[str, Any], size: int, idempotency: str
    ) -> None:
        """A new job whose upload has arrived already; an older one loses its key to it."""
        now = time.time()
        with self._lock:
            self._db.execute(
                "UPDATE jobs SET idempotency = NULL WHERE owner = ? AND idempotency = ?",
                (owner, idempotency),
            )
            self._db.execute(
                "INSERT INTO jobs (id, owner, idempotency, request, size, received, state, created,"
                " updated) VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?)",
                (identity, owner, idempotency, json.dumps(request), size, size, now, now),
            )

    def of_key(self, owner: str, idempotency: str) -> Job | None:
        """The job that was made with this key."""
        with self._lock:
            return self._row("owner = ? AND idempotency = ?", owner, idempotency)

    def create(
        self, owner: str, request: Mapping[str, Any], size: int, idempotency: str | None
    ) -> tuple[Job, bool]:
        """A new job, or the one that was made with the same key before; and whether it is new."""
        now = time.time()
        with self._lock:
            if idempotency is not None:
                found = self._row("owner = ? AND idempotency = ?", owner, idempotency)
                if found is not None:
                    return found, False
            identity = uuid.uuid4().hex
            self._db.execute(
                "INSERT INTO jobs (id, owner, idempotency, request, size, state, created, updated)"
                " VALUES (?, ?, ?, ?, ?, 'uploading', ?, ?)",
                (identity, owner, idempotency, json.dumps(request), size, now, now),
            )
            made = self._row("id = ?", identity)
        assert made is not None
        return made, True

    def knows(self, owner: str, idempotency: str) -> bool:
        """Whether a job was made with this key."""
        return self.of_key(owner, idempotency) is not None

    def get(self, identity: str, owner: str | None = None) -> Job | None:
        """A job; with `owner` only if it is theirs."""
        with self._lock:
            found = self._row("id = ?", identity)
        return found if found and owner in (None, found.owner) else None

    def newest(self, owner: str, limit: int = 100) -> list[Job]:
        """The newest jobs of an owner, newest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT * FROM jobs WHERE owner = ? ORDER BY created DESC LIMIT ?", (owner, limit)
            ).fetchall()
        return [_job(row) for row in rows]

    def count(self, owner: str) -> tuple[int, int]:
        """Unfinished jobs of an owner, and all."""
        with self._lock:
            row = self._db.execute(
                "SELECT count(*) FILTER (WHERE state NOT IN ('done', 'failed', 'cancelled')),"
                " count(*) FROM jobs WHERE owner = ?",
                (owner,),
            ).fetchone()
        return row[0], row[1]

    def states(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._lock:
            rows = self._db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
        return dict(rows)

    def spooled(self) -> int:
        """Bytes announced by jobs that have not ended."""
        with self._lock:
            row = self._db.execute(
                "SELECT coalesce(sum(size), 0) FROM jobs"
                " WHERE state NOT IN ('done', 'failed', 'cancelled')"
            ).fetchone()
        return int(row[0])

    def receive(self, identity: str, offset: int, end: int) -> bool:
        """Bytes `offset` to `end` are on disk; the last ones queue the job. False if too late."""
        return self._change(
            "received = ?, state = CASE WHEN ? = size THEN 'queued' ELSE state END",
            (end, end),
            "id = ? AND state = 'uploading' AND received = ?",
            (identity, offset),
        )

    def claim(self) -> Job | None:
        """The oldest job that waits, now running."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            found = self._row("state = 'queued' ORDER BY created LIMIT 1")
            if found is not None:
                self._db.execute(
                    "UPDATE jobs SET state = 'running', attempt = attempt + 1, progress = 0,"
                    " phase = 'starting', updated = ? WHERE id = ?",
                    (time.time(), found.id),
                )
                found = self._row("id = ?", found.id)
            self._db.execute("COMMIT")
        return found

    def advance(self, job: Job, progress: float, phase: str) -> bool:
        """Note how far a running job is; False if it is this attempt's no longer."""
        return self._change("progress = ?, phase = ?", (progress, phase), *_running(job))

    def finish(self, job: Job, report: Mapping[str, Any]) -> bool:
        """A running job is done; False if it is this attempt's no longer."""
        values = (json.dumps(report),)
        changes = "state = 'done', progress = 1, phase = '', report = ?"
        return self._change(changes, values, *_running(job))

    def fail(self, job: Job, error: Mapping[str, str]) -> bool:
        """A running job failed; False if it is this attempt's no longer."""
        changes = "state = 'failed', phase = '', error = ?"
        return self._change(changes, (json.dumps(error),), *_running(job))

    def cancel(self, identity: str) -> bool:
        """End a job that has not ended; whoever runs it finds out. False if it had ended."""
        return self._change(
            "state = 'cancelled', phase = ''",
            (),
            "id = ? AND state IN ('uploading', 'queued', 'running')",
            (identity,),
        )

    def touch(self, identity: str, report: Mapping[str, Any]) -> bool:
        """A done job has a new report, such as after a prompt."""
        return self._change(
            "report = ?", (json.dumps(report),), "id = ? AND state = 'done'", (identity,)
        )

    def requeue(self, job: Job | None = None) -> None:
        """Queue a running job again, or all of them (at start, when nothing can run)."""
        which, values = _running(job) if job is not None else ("state = 'running'", ())
        error = {
            "code": "SERVE-06",
            "message": f"the service died {MAX_ATTEMPTS} times while it worked on this file.",
            "fix": "Tell whoever runs the service.",
        }
        self._change(
            "state = CASE WHEN attempt >= ? THEN 'failed' ELSE 'queued' END,"
            " error = CASE WHEN attempt >= ? THEN ? ELSE error END, phase = '', progress = 0",
            (MAX_ATTEMPTS, MAX_ATTEMPTS, json.dumps(error)),
            which,
            values,
        )

    def give_back(self, job: Job) -> None:
        """Queue a job again that the service stopped itself: it counts as no attempt."""
        changes = "state = 'queued', attempt = attempt - 1, phase = '', progress = 0"
        self._change(changes, (), *_running(job))

    def expired(self, before: float) -> list[str]:
        """Jobs that nothing happened to since `before`, but for those that wait or run."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id FROM jobs WHERE updated < ? AND state NOT IN ('queued', 'running')",
                (before,),
            ).fetchall()
        return [row[0] for row in rows]

    def delete(self, identity: str) -> None:
        """Forget a job."""
        with self._lock:
            self._db.execute("DELETE FROM jobs WHERE id = ?", (identity,))

    def live(self) -> dict[str, State]:
        """All jobs and their states."""
        with self._lock:
            return dict(self._db.execute("SELECT id, state FROM jobs").fetchall())

    def _change(self, changes: str, new: tuple[Any, ...], which: str, old: tuple[Any, ...]) -> bool:
        with self._lock:
            done = self._db.execute(
                f"UPDATE jobs SET {changes}, updated = ? WHERE {which}", (*new, time.time(), *old)
            )
        return done.rowcount > 0

    def _row(self, which: str, *values: object) -> Job | None:
        row = self._db.execute(f"SELECT * FROM jobs WHERE {which}", values).fetchone()
        return None if row is None else _job(row)


def _running(job: Job) -> tuple[str, tuple[Any, ...]]:
    return "id = ? AND state = 'running' AND attempt = ?", (job.id, job.attempt)


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    del values["idempotency"]
    for name in ("request", "report", "error"):
        values[name] = json.loads(values[name])
    return Job(**values)

"""Submissions in SQLite: whose, when, what became of them. It survives a kill at any time.

    running -> scored | refused | lost

A row that is still running when the next submission has its turn was left by a process that died.
Whoever writes holds `Board.turn`.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from core_mri.errors import LeaderboardError
from downstream.leaderboard.board import Board
from downstream.leaderboard.fingerprints import SKETCH, Sketch
from downstream.leaderboard.scoring import Scores
from downstream.leaderboard.task import Card, load_card

COPIES = ("BOARD-06", "BOARD-07")
"""Refusals that tell something of others' work, and so count as if they were scored."""
_DAY_S = 86400.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS submissions (
    id INTEGER PRIMARY KEY, ticket TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, name TEXT NOT NULL,
    card TEXT NOT NULL, state TEXT NOT NULL, code TEXT NOT NULL DEFAULT '', created REAL NOT NULL,
    content TEXT NOT NULL DEFAULT '', sketches BLOB, sizes TEXT NOT NULL DEFAULT '[]',
    scores TEXT NOT NULL DEFAULT '{}');
CREATE UNIQUE INDEX IF NOT EXISTS names ON submissions (lower(name)) WHERE state = 'scored';
CREATE INDEX IF NOT EXISTS owners ON submissions (owner, created);
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A scored submission."""

    name: str
    owner: str
    card: Card
    created: float
    """Seconds since the epoch."""
    scores: Scores


class Store:
    """The submissions of a board; opened for each use, as several processes do.

    Args:
        board: The leaderboard.
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    def check(self, owner: str, name: str, ticket: str, now: float) -> None:
        """See that an owner may submit under a name now.

        Raises:
            LeaderboardError: BOARD-05 for too many submissions, BOARD-08 for a name that is taken.
        """
        with self._open() as db:
            _check(self._board, db, owner, name, ticket, now)

    def begin(self, owner: str, name: str, card: Card, ticket: str, now: float) -> int | None:
        """Note a submission before it is read.

        Args:
            owner: Who submits.
            name: How it shall be called.
            card: Of the model.
            ticket: Of this submission: a repeated one, after a kill, is the same submission.
            now: Seconds since the epoch.

        Returns:
            Its row; None when it has been scored before.

        Raises:
            LeaderboardError: As `check`.
        """
        with self._open() as db:
            db.execute("UPDATE submissions SET state = 'lost' WHERE state = 'running'")
            before = db.execute(
                "SELECT state FROM submissions WHERE ticket = ?", (ticket,)
            ).fetchone()
            if before is not None and before[0] == "scored":
                return None
            # A job that was killed after its refusal, before it could say so, is refused again.
            db.execute("DELETE FROM submissions WHERE ticket = ?", (ticket,))
            _check(self._board, db, owner, name, ticket, now)
            row = db.execute(
                "INSERT INTO submissions (ticket, owner, name, card, state, created) "
                "VALUES (?, ?, ?, ?, 'running', ?)",
                (ticket, owner, name, json.dumps(vars(card)), now),
            )
        assert row.lastrowid is not None
        return row.lastrowid

    def refuse(self, row: int, code: str) -> None:
        """Note that a submission was refused."""
        with self._open() as db:
            db.execute(
                "UPDATE submissions SET state = 'refused', code = ? WHERE id = ?", (code, row)
            )

    def score(
        self, row: int, content: str, sketches: list[tuple[Sketch, float]], scores: Scores
    ) -> None:
        """Note what a submission scored, and its fingerprints."""
        sums = np.stack([sums for sums, _ in sketches]).astype("<f4").tobytes()
        sizes = json.dumps([size for _, size in sketches])
        with self._open() as db:
            db.execute(
                "UPDATE submissions SET state = 'scored', content = ?, sketches = ?, sizes = ?, "
                "scores = ? WHERE id = ?",
                (content, sums, sizes, json.dumps(scores), row),
            )

    def entries(self) -> list[Entry]:
        """The scored ones, oldest first."""
        with self._open() as db:
            rows = db.execute(
                "SELECT name, owner, card, created, scores FROM submissions "
                "WHERE state = 'scored' ORDER BY id"
            ).fetchall()
        return [
            Entry(name=name, owner=owner, card=load_card(json.loads(card)), created=created,
                  scores=json.loads(scores))
            for name, owner, card, created, scores in rows
        ]  # fmt: skip

    def of_ticket(self, ticket: str) -> str | None:
        """The name under which a ticket was scored."""
        with self._open() as db:
            row = db.execute(
                "SELECT name FROM submissions WHERE ticket = ? AND state = 'scored'", (ticket,)
            ).fetchone()
        return None if row is None else str(row[0])

    def fingerprints(self) -> Iterator[tuple[str, str, list[tuple[Sketch, float]]]]:
        """Name, content hash and sketches of the scored ones."""
        with self._open() as db:
            rows = db.execute(
                "SELECT name, content, sketches, sizes FROM submissions WHERE state = 'scored'"
            ).fetchall()
        for name, content, sums, sizes in rows:
            table = np.frombuffer(sums, "<f4").reshape(-1, SKETCH)
            yield name, content, list(zip(table, json.loads(sizes), strict=True))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction; it is on disk when this ends, or was never there."""
        db = sqlite3.connect(self._board.database, timeout=60)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(_SCHEMA)
            with db:
                yield db
        except sqlite3.DatabaseError as error:
            raise LeaderboardError(
                "BOARD-01", f"the submissions of the leaderboard cannot be used ({error})."
            ) from error
        finally:
            db.close()


def _check(
    board: Board, db: sqlite3.Connection, owner: str, name: str, ticket: str, now: float
) -> None:
    taken = db.execute(
        "SELECT 1 FROM submissions WHERE lower(name) = lower(?) AND state = 'scored'", (name,)
    ).fetchone()
    if taken:
        raise LeaderboardError("BOARD-08", "this name is taken.", fix="Choose another name.")
    recent = db.execute(
        "SELECT created, state IN ('scored', 'running') OR code IN (?, ?) FROM submissions "
        "WHERE owner = ? AND created > ? AND ticket <> ? ORDER BY created",
        (*COPIES, owner, now - _DAY_S, ticket),
    ).fetchall()
    judged = [created for created, is_judged in recent if is_judged]
    for times, most, what in (
        (judged, board.task.per_day, "submissions that were scored or were copies"),
        ([created for created, _ in recent], board.task.attempts_per_day, "attempts"),
    ):
        if len(times) >= most:
            hours = (times[len(times) - most] + _DAY_S - now) / 3600
            raise LeaderboardError(
                "BOARD-05",
                f"{len(times)} {what} in 24 hours; {most} are allowed.",
                fix=f"Come again in {max(1, math.ceil(hours))} hours.",
            )

"""How often what was shared was fetched, link by link, in ``downloads.sqlite`` of the registry.

Files are named by a hash under their link, since paths of an export hold pseudonyms, which would
outlive a withdrawal here. An answer is noted when it begins and when it ends, however it ends: of a
server that was killed only the bytes of the answers it was sending are lost.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from data_registry.governance.audit_log import now
from data_registry.shards import cannot_write

FILE = "downloads.sqlite"
FILES = (FILE, f"{FILE}-journal")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS downloads (
    nonce TEXT NOT NULL, file TEXT NOT NULL, requests INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, last TEXT NOT NULL,
    PRIMARY KEY (nonce, file));
"""


@dataclass(frozen=True)
class Fetched:
    """What was fetched through one link."""

    files: int
    """Files that were asked for."""
    requests: int
    """Answers with content that began."""
    completed: int
    """Answers that sent the last byte of their file: a download in parts counts once."""
    bytes: int
    last: str
    """When the last one began or ended."""


class Downloads:
    """The counts of a registry; one connection that threads take turns with.

    Args:
        registry: Its folder.

    Raises:
        DataError: DATA-07 when they cannot be written.
    """

    def __init__(self, registry: Path) -> None:
        self._lock = threading.Lock()
        path = registry / FILE
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise cannot_write(error, f"registry {registry}") from error
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def began(self, nonce: str, name: str) -> None:
        """An answer with content of a file begins."""
        self._add(nonce, name, 1, 0, 0)

    def ended(self, nonce: str, name: str, sent: int, *, completed: bool) -> None:
        """It ended after `sent` bytes; `completed` with the last byte of the file."""
        self._add(nonce, name, 0, int(completed), sent)

    def _add(self, nonce: str, name: str, requests: int, completed: int, sent: int) -> None:
        file = hashlib.sha256(f"{nonce}\0{name}".encode()).hexdigest()[:32]
        with self._lock:
            self._db.execute(
                "INSERT INTO downloads VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (nonce, file) DO "
                "UPDATE SET requests = requests + excluded.requests, completed = completed + "
                "excluded.completed, bytes = bytes + excluded.bytes, last = excluded.last",
                (nonce, file, requests, completed, sent, now()),
            )


def fetched(registry: Path) -> dict[str, Fetched]:
    """Link (its nonce) to what was fetched through it; empty where nothing was ever served."""
    path = registry / FILE
    if not path.exists():
        return {}
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        rows = db.execute(
            "SELECT nonce, count(*), sum(requests), sum(completed), sum(bytes), max(last) "
            "FROM downloads GROUP BY nonce"
        ).fetchall()
    finally:
        db.close()
    return {nonce: Fetched(*counts) for nonce, *counts in rows}

"""What the service grants: sizes, numbers, times; and how often one user may ask."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from core_mri.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service; whoever meets one is told which and when to come again."""

    upload_gb: float = 2.0
    """Largest upload."""
    chunk_mb: float = 8.0
    """Largest part of an upload in one request."""
    spool_gb: float = 20.0
    """All uploads that wait, together."""
    jobs: int = 50
    """Unfinished jobs of one user."""
    kept_jobs: int = 500
    """All jobs of one user that are kept, finished ones too."""
    requests_per_s: float = 100.0
    """Of one user, over time; twice as many in a burst."""
    connections: int = 200
    """At once, of all users; more get 503."""
    body_s: float = 60.0
    """Seconds that one request, head and body each, may take to arrive."""
    job_s: float = 1800.0
    """Seconds that a job may run."""
    job_gb: float = 8.0
    """Memory of a job."""
    prompt_s: float = 120.0
    """Seconds that an answer to a box or click may take."""
    sessions: int = 2
    """Scans that are kept ready for boxes and clicks."""
    keep_h: float = 24.0
    """Hours after which a job and its results are erased, counted from its last change."""
    shutdown_s: float = 30.0
    """Seconds that running jobs get to end when the service stops; then they start anew later."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError("CONFIG-01", f"--{name.replace('_', '-')} {value}: must be > 0.")

    @property
    def upload_bytes(self) -> int:
        """Largest upload."""
        return int(self.upload_gb * 1e9)

    @property
    def chunk_bytes(self) -> int:
        """Largest part."""
        return int(self.chunk_mb * 1e6)


class RateLimit:
    """A bucket of tokens for each user: `rate` a second flow in, at most twice that many wait.

    Args:
        rate: Requests a second.
    """

    _MAX_USERS = 10_000

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wait_s(self, user: str) -> float:
        """0 when the request may pass, else seconds until the next one may."""
        now = time.monotonic()
        with self._lock:
            if len(self._buckets) >= self._MAX_USERS:
                self._buckets.clear()
            level, before = self._buckets.get(user, (2 * self._rate, now))
            level = min(2 * self._rate, level + (now - before) * self._rate)
            allowed = level >= 1
            self._buckets[user] = (level - 1 if allowed else level, now)
        return 0.0 if allowed else (1 - level) / self._rate

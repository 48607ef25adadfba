"""What operators see: counters for Prometheus, a line of JSON an event; no patient data."""

from __future__ import annotations

import json
import logging
import resource
from datetime import datetime, timezone

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from downstream.serving.store import Store

_FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SLOW = (1, 2, 5, 10, 20, 40, 60, 120, 300, 600, 1800)


class Metrics:
    """Counters of one service.

    Args:
        store: Its queue.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "core_mri_requests", "Requests.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "core_mri_request_seconds", "Until the answer began.", ("route",), buckets=_FAST,
            registry=self.registry,
        )  # fmt: skip
        self._received = Counter("core_mri_received_bytes", "Of uploads.", registry=self.registry)
        self._jobs = Histogram(
            "core_mri_job_seconds", "Of jobs that ended.", ("state",), buckets=_SLOW,
            registry=self.registry,
        )  # fmt: skip
        self._streams = Counter(
            "core_mri_mrd_streams", "Of MRD, by code; empty for those that went well.", ("code",),
            registry=self.registry,
        )  # fmt: skip
        self._states = Gauge("core_mri_jobs", "Jobs.", ("state",), registry=self.registry)
        self._memory = Gauge(
            "core_mri_peak_memory_bytes", "Of the service, without jobs.", registry=self.registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer began."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def received(self, number: int) -> None:
        """Bytes of an upload arrived."""
        self._received.inc(number)

    def job_ended(self, state: str, seconds: float) -> None:
        """A job ended, or was queued again."""
        self._jobs.labels(state).observe(seconds)

    def stream_ended(self, code: str) -> None:
        """An MRD stream ended, with the code of an error or none."""
        self._streams.labels(code).inc()

    def text(self) -> bytes:
        """The page for Prometheus."""
        states = self._store.states()
        for state in ("uploading", "queued", "running", "done", "failed", "cancelled"):
            self._states.labels(state).set(states.get(state, 0))
        self._memory.set(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """An event a line; ``extra={"facts": {...}}`` adds fields, tracebacks keep no values."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(
                "T", "milliseconds"
            ),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            trace = record.exc_info[2]
            while trace is not None:
                line["at"] = (
                    f"{trace.tb_frame.f_code.co_filename.rsplit('/')[-1]}:{trace.tb_lineno}"
                )
                trace = trace.tb_next
        return json.dumps(line)

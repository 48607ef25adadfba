"""A served process and a client of it over HTTP, with nothing of the framework."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    "OMP_NUM_THREADS": "1",
}
"""Variables of a process that runs this checkout."""
ENDED = ("done", "failed", "cancelled")


class ServerProcess:
    """`core-mri serve` in a process of its own.

    Args:
        folder: For data and logs.
        words: Sources and flags.
        port: A free one by default.
    """

    def __init__(self, folder: Path, *words: str, port: int = 0) -> None:
        self.data = folder / "data"
        self.log = folder / "log.jsonl"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "core_mri", "serve", *words, "--port", str(port),
                 "--data-dir", str(self.data)],
                stdout=subprocess.PIPE, stderr=log, text=True,
                env=OURS,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


def processes_below(parent: int, depth: int) -> list[int]:
    """Processes that descend from one, `depth` generations down."""
    level = [parent]
    for _ in range(depth):
        level = [
            int(stat.parent.name)
            for stat in Path("/proc").glob("[0-9]*/stat")
            if int(_stat(stat).rpartition(")")[2].split()[1]) in level
        ]
    return level


def processes_called(name: str) -> list[int]:
    """Processes whose title begins so, as replicas of Ray Serve have one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(name.encode()):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return found


def _stat(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return "0 () Z 0"


class Reply:
    """Status, headers and body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of our error."""
        return str(self.json()["error"]["code"])


class Client:
    """Requests to a server.

    Args:
        url: Of the server.
        token: Bearer token.
    """

    def __init__(self, url: str, token: str = "") -> None:
        parts = urllib.parse.urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 0)
        self.token = token

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """One request; a body that is no bytes goes as JSON."""
        sent = dict(headers or {})
        if self.token:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            # A server that refuses a body may close before it has all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, sent)
            answer = connection.getresponse()
            headers = {k.lower(): v for k, v in answer.getheaders()}
            return Reply(answer.status, headers, answer.read())
        finally:
            connection.close()

    def create(self, size: int, **asked: object) -> Any:
        """A job that waits for its upload."""
        answer = self.ask("POST", "/v1/jobs", {"size": size, **asked})
        assert answer.status == 201, answer.body
        return answer.json()

    def patch(self, job: str, offset: int, part: bytes) -> Reply:
        """A part of the upload."""
        headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
        return self.ask("PATCH", f"/v1/jobs/{job}/content", part, headers)

    def upload(self, content: bytes, chunk: int = 1_000_000, **asked: object) -> str:
        """Send a whole file; the id of its job."""
        job = str(self.create(len(content), **asked)["id"])
        for offset in range(0, len(content), chunk):
            answer = self.patch(job, offset, content[offset : offset + chunk])
            assert answer.status == 200, answer.body
        return job

    def job(self, job: str) -> Any:
        """Its present state."""
        return self.ask("GET", f"/v1/jobs/{job}").json()

    def wait(self, job: str, timeout_s: float = 120) -> Any:
        """Until it has ended."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = self.job(job)
            if found["state"] in ENDED:
                return found
            time.sleep(0.1)
        raise AssertionError(f"still {self.job(job)}")

    def until(self, job: str, phase: str, timeout_s: float = 60) -> Any:
        """Its state, once what goes on begins with `phase`."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = self.job(job)
            if found["phase"].startswith(phase):
                return found
            assert found["state"] not in ENDED, found
            time.sleep(0.05)
        raise AssertionError(f"still {self.job(job)}")

    def run(self, content: bytes, **asked: object) -> Any:
        """Upload and wait."""
        return self.wait(self.upload(content, **asked))

    def result(self, job: str, name: str) -> bytes:
        """A file that it left."""
        answer = self.ask("GET", f"/v1/jobs/{job}/results/{name}")
        assert answer.status == 200, answer.body
        return answer.body

"""What works in replicas of Ray Serve (`ray_app`): jobs, and scans kept ready for boxes and clicks.

A replica never sees the queue. It is told what to do, does it in a process of its own as without
Ray, and answers with JSON; the folder into which it writes is its lease.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from core_mri.errors import CoreMRIError, ServingError
from data_registry.deidentify.identifiers import load_key
from downstream.serving.child import Child, preload
from downstream.serving.limits import Limits
from downstream.serving.orders import JobWork
from downstream.serving.prompting import Sessions
from downstream.serving.settings import Places, own_scratch
from downstream.serving.sources import Served

MARK = "cluster"
"""File of the data folder that tells nodes that they see the same one."""
_LOOK_S, _SWEEP_S = 0.2, 1.0


class JobRunner:
    """A replica of `jobs`: one at a time.

    Args:
        root: The data folder.
        mark: Content of its `MARK`.
        networks: Weights are served.
    """

    def __init__(self, root: Path, mark: str, *, networks: bool) -> None:
        os.umask(0o077)
        check_shared(root, mark)
        self._places = Places(root, own_scratch(root))
        preload(networks=networks)

    async def run(self, work: JobWork, memory_gb: float) -> AsyncIterator[bytes]:
        """Messages of the job as JSON, until it ends or its folder goes."""
        scratch = self._places.scratch / work.out.name
        scratch.mkdir(mode=0o700)
        key = load_key(self._places.key, create=False)
        work = replace(work, scratch=scratch, key=key)
        child = Child("do_job", work, scratch, memory_gb=memory_gb, file_gb=2 * memory_gb)
        try:
            while work.out.is_dir():
                message = await asyncio.to_thread(child.listen, _LOOK_S)
                if message is None:
                    continue
                yield json.dumps(message).encode()
                if "done" in message or "failed" in message:
                    return
        except CoreMRIError as error:  # the process died: its file's doing, not ours
            facts = {"code": error.code, "message": error.message, "fix": error.fix}
            yield json.dumps({"failed": facts}).encode()
        finally:
            child.kill()
            shutil.rmtree(scratch, ignore_errors=True)

    def __del__(self) -> None:
        shutil.rmtree(self._places.scratch, ignore_errors=True)


class Answerer:
    """A replica of `prompts`: scans of done jobs, kept ready in processes of their own.

    Args:
        root, mark: As `JobRunner`.
        limits, device: As `Sessions`.
    """

    def __init__(self, root: Path, mark: str, limits: Limits, device: str) -> None:
        os.umask(0o077)
        check_shared(root, mark)
        self._places = Places(root, own_scratch(root))
        preload(networks=True)
        self._sessions = Sessions(self._places.results, self._places.scratch, limits, device)
        threading.Thread(target=self._sweep, daemon=True).start()

    async def ask(
        self, job: str, served: Served, prompts: dict[str, Any], out: Path
    ) -> dict[str, Any]:
        """``answer`` as of `Sessions.ask`, or what was ``refused``."""
        await self.keep(f"{job} {served.name}")
        try:
            answer = await asyncio.to_thread(self._sessions.ask, job, served, prompts, out)
            return {"answer": answer}
        except CoreMRIError as error:
            facts = {"code": error.code, "message": error.message, "fix": error.fix}
            return {"refused": facts}

    async def keep(self, key: str) -> str:
        """Ray Serve learns from this which scans are here; `Sessions` holds them."""
        return key

    def __del__(self) -> None:
        self._sessions.forget()
        shutil.rmtree(self._places.scratch, ignore_errors=True)

    def _sweep(self) -> None:
        while True:
            time.sleep(_SWEEP_S)
            for job in self._sessions.jobs:
                if not (self._places.results / job).is_dir():
                    self._sessions.forget(job)


def check_shared(root: Path, mark: str) -> None:
    """Refuse to work on a node that sees another folder.

    Raises:
        ServingError: SERVE-71.
    """
    try:
        found = (root / MARK).read_text(encoding="utf-8")
    except OSError:
        found = ""
    if found != mark:
        raise ServingError(
            "SERVE-71",
            f"{root}: {socket.gethostname()} does not see the data folder of this service.",
            fix="Put --data-dir on a file system that all nodes share under the same path.",
        )

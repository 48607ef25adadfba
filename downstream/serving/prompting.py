"""Boxes and clicks on the scans of done jobs; scans kept ready for them, a process each."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core_mri.errors import CoreMRIError, ServingError
from downstream.serving.child import Child
from downstream.serving.dicom.index import index_name
from downstream.serving.limits import Limits
from downstream.serving.orders import PromptWork
from downstream.serving.settings import Places
from downstream.serving.sources import Served


@dataclass
class _Session:
    child: Child
    scratch: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    used: float = field(default_factory=time.monotonic)


class Asked(Protocol):
    """Whoever keeps scans ready."""

    def ask(self, job: str, served: Served, prompts: dict[str, Any], out: Path) -> dict[str, Any]:
        """The structures that prompts gave; their mask lies in `out`."""

    def forget(self, job: str = "") -> None:
        """Keep a job ready no longer, or none at all."""


class Prompting:
    """Answers prompts on the scans of finished jobs.

    Args:
        places: Folders.
        asked: Who keeps the scans ready.
    """

    def __init__(self, places: Places, asked: Asked) -> None:
        self._places, self._asked = places, asked

    def answer(self, job: str, served: Served, prompts: dict[str, Any]) -> dict[str, Any]:
        """The structures that the prompts gave; their mask replaces the one before.

        Raises:
            CoreMRIError: As `Sessions.ask`.
        """
        out = self._places.work / f"prompts-{uuid.uuid4().hex}"
        out.mkdir(mode=0o700)
        try:
            answer = self._asked.ask(job, served, prompts, out)
            for name in ("mask.nii.gz", index_name("mask.dcm"), "mask.dcm"):
                target = self._places.results / job / name
                target.unlink(missing_ok=True)
                if (out / name).exists():
                    (out / name).rename(target)
            return answer
        except OSError:  # such as a job that was deleted meanwhile
            self.forget(job)
            raise ServingError(
                "SERVE-06", "the scan is ready no longer.", fix="Ask again."
            ) from None
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def forget(self, job: str = "") -> None:
        """Keep a job ready no longer, or none at all."""
        self._asked.forget(job)


class Sessions:
    """Scans of finished jobs in processes of this machine; the longest unused makes room.

    Args:
        results: Folder of the results of all jobs.
        scratch: For what nobody keeps.
        limits: Number of scans kept ready, seconds of an answer.
        device: Where the weights run.
    """

    def __init__(self, results: Path, scratch: Path, limits: Limits, device: str) -> None:
        self._results, self._scratch = results, scratch
        self._limits, self._device = limits, device
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()

    def ask(self, job: str, served: Served, prompts: dict[str, Any], out: Path) -> dict[str, Any]:
        """The structures that prompts gave; their mask lies in `out`.

        Raises:
            CoreMRIError: CONFIG-05 for prompts outside of the scan, SERVE-05 when it took too long,
                SERVE-06 when the process died, and what reading the scan raises.
        """
        session = self._session(f"{job} {served.name}", job, served)
        with session.lock:
            try:
                session.child.say({"out": str(out), "prompts": prompts})
                reply = self._reply(session)
            except (ServingError, OSError) as error:
                self.forget(job)
                if isinstance(error, ServingError):
                    raise
                raise ServingError(
                    "SERVE-06", "the scan is ready no longer.", fix="Ask again."
                ) from None
        if "refused" in reply:
            raise CoreMRIError(**reply["refused"])
        return dict(reply["answer"])

    @property
    def jobs(self) -> list[str]:
        """Those that are kept ready."""
        with self._lock:
            return [key.split(" ")[0] for key in self._sessions]

    def forget(self, job: str = "") -> None:
        """End the processes of a job, or all."""
        with self._lock:
            gone = [key for key in self._sessions if not job or key.split(" ")[0] == job]
            for key in gone:
                self._end(key)

    def _session(self, key: str, job: str, served: Served) -> _Session:
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                while len(self._sessions) >= self._limits.sessions:
                    self._end(min(self._sessions, key=lambda k: self._sessions[k].used))
                scratch = self._scratch / f"prompts-{uuid.uuid4().hex}"
                scratch.mkdir(mode=0o700)
                work = PromptWork(self._results / job, served, scratch, self._device)
                memory = self._limits.job_gb
                child = Child("do_prompts", work, scratch, memory_gb=memory, file_gb=memory)
                session = self._sessions[key] = _Session(child, scratch)
            session.used = time.monotonic()
            return session

    def _reply(self, session: _Session) -> dict[str, Any]:
        deadline = time.monotonic() + self._limits.prompt_s
        while (left := deadline - time.monotonic()) > 0:
            message = session.child.listen(left)
            if message is not None and "failed" in message:
                raise ServingError(**message["failed"])
            if message is not None and "ready" not in message:
                return message
        raise ServingError("SERVE-05", f"no answer within {self._limits.prompt_s:g} s.",
                           fix="Ask for a smaller box.")  # fmt: skip

    def _end(self, key: str) -> None:
        session = self._sessions.pop(key)
        session.child.kill()
        shutil.rmtree(session.scratch, ignore_errors=True)

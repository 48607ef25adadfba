"""A process of its own for each job: it meets the stranger's file, we only read its messages.

The process is forked from a server process that has loaded torch but seen no file. Memory, time and
the size of files are limited by the kernel; it dies with the service; its messages are JSON, never
pickles, since what runs in it may have been taken over.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from core_mri.errors import CoreMRIError, ServingError
from downstream.serving.orders import Work
from downstream.serving.refusals import refusal

_CONTEXT = multiprocessing.get_context("forkserver")
_MODULE = "downstream.serving.work"
_OF_NETWORKS = (
    "core_mri.predictor",
    "core_mri.weights",
    "highdicom",
    "monai.inferers",
    "segment_anything",
    "timm",
)
_MAX_MESSAGE = 1 << 22
_PR_SET_PDEATHSIG = 1


def preload(*, networks: bool) -> None:
    """Let processes start from one that has loaded what all of them need.

    Args:
        networks: Weights are served, not only solvers.
    """
    from multiprocessing import forkserver

    _CONTEXT.set_forkserver_preload([_MODULE, *(_OF_NETWORKS if networks else ())])
    forkserver.ensure_running()


class Child:
    """A running process, seen from the service.

    Args:
        work: What to do.
        job: What it works on.
        scratch: Its folder; paths in it are taken out of what it says.
        memory_gb: Of data; more ends it.
        file_gb: Of one file that it writes.
    """

    def __init__(
        self, work: Work, job: object, scratch: Path, *, memory_gb: float, file_gb: float
    ) -> None:
        self._connection, other = _CONTEXT.Pipe()
        limits = (int(memory_gb * 1e9), int(file_gb * 1e9))
        self._process = _CONTEXT.Process(
            target=_main, args=(work, job, scratch, limits, other), daemon=False
        )
        self._process.start()
        other.close()
        self.memory_gb = memory_gb

    def listen(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, None when none came in time.

        Raises:
            ServingError: SERVE-06 when the process died without a last word.
        """
        try:
            if not self._connection.poll(timeout_s):
                return None
            message = json.loads(self._connection.recv_bytes(_MAX_MESSAGE))
            if not isinstance(message, dict):
                raise TypeError
            return message
        except (EOFError, OSError, ValueError, TypeError):
            self._process.join(5)
            raise ServingError(
                "SERVE-06",
                f"the program that worked on this file was ended ({self._cause()}).",
                fix="Check the file; if it is sound, tell whoever runs the service.",
            ) from None

    def say(self, message: dict[str, Any]) -> None:
        """Send the process a message."""
        self._connection.send_bytes(json.dumps(message).encode())

    def kill(self) -> None:
        """End it and whatever it started, now."""
        if self._process.pid is not None and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it leads no group yet, or has ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
        self._process.join()
        self._connection.close()

    def _cause(self) -> str:
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"status {code}"


def call(work: Work, job: object, *, timeout_s: float, memory_gb: float) -> dict[str, Any]:
    """Run `work` in a process of its own and return its last message.

    Raises:
        CoreMRIError: What it raised; SERVE-05 when it took too long, SERVE-06 when it died.
    """
    child = Child(work, job, Path("/nowhere"), memory_gb=memory_gb, file_gb=memory_gb)
    try:
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            message = child.listen(left)
            if message is not None and "failed" in message:
                raise CoreMRIError(**message["failed"])
            if message is not None and "done" in message:
                return dict(message["done"])
        raise ServingError("SERVE-05", f"no answer within {timeout_s:.0f} s.")
    finally:
        child.kill()


def _main(
    work: Work, job: object, scratch: Path, limits: tuple[int, int], connection: Connection
) -> None:
    """In the process."""
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # the service ends us
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_DATA, (limits[0], limits[0]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.umask(0o077)
    logging.disable(logging.CRITICAL)  # what is said of a file may name a patient

    def tell(message: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(message).encode())

    def hear() -> dict[str, Any]:
        return dict(json.loads(connection.recv_bytes()))

    try:
        tell({"done": getattr(importlib.import_module(_MODULE), work)(job, tell, hear)})
    except CoreMRIError as error:
        short = _lacks_memory(error)
        tell({"failed": _too_large(limits[0]) if short else refusal(error, scratch)})
    except (EOFError, BrokenPipeError):  # the service is gone
        return
    except Exception as error:
        tell({"failed": _unforeseen(error, limits[0])})


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or what readers took for a damaged file, is for want of memory."""
    # A library that finds no room for itself says the last.
    said = ("allocate memory", "failed to map segment")
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error) for words in said):
            return True
        error = error.__context__
    return False


def _too_large(memory: int) -> dict[str, str]:
    return {
        "code": "SERVE-05",
        "message": f"this file needs more memory than a job may take ({memory / 1e9:g} GB).",
        "fix": "Send fewer slices, or ask whoever runs the service for a higher --job-gb.",
    }


def _unforeseen(error: Exception, memory: int) -> dict[str, str]:
    """An error that names nothing of the file."""
    if _lacks_memory(error):
        return _too_large(memory)
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return {
        "code": "SERVE-06",
        "message": f"an error of the program ({type(error).__name__} at {place}).",
        "fix": "Tell whoever runs the service.",
    }

"""MRD over TCP: a process for each client, which alone reads what the client sends.

The service only waits for that process, with limits of number, time and memory, so that no client
can do more than end its own conversation. MRD knows no tokens; who may come is told by address.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core_mri.errors import CoreMRIError, ServingError
from downstream.serving.child import Child
from downstream.serving.mrd.protocol import error_message
from downstream.serving.neighbors import is_allowed, listening
from downstream.serving.orders import MrdWork
from downstream.serving.settings import ServeConfig
from downstream.serving.sources import Served

log = logging.getLogger(__name__)

_LOOK_S = 0.2
_GOODBYE_S = 5.0
"""For a client to take the reason why it is sent away."""


class MrdListener:
    """Answers streams until it is stopped.

    Args:
        config: Address, port, who may come, and what one stream may take.
        scratch: Folder for what is thrown away.

    Raises:
        ServingError: SERVE-02 when the port is taken.
    """

    def __init__(self, config: ServeConfig, scratch: Path) -> None:
        self._neighbors, self._limits = config.neighbors, config.limits
        self._scratch, self._device = scratch, config.device
        self._sources: tuple[Served, ...] = ()
        self._ended: Callable[[str], object] = str
        self._stopping = threading.Event()
        self._stop_by = float("inf")
        self._room = threading.BoundedSemaphore(self._neighbors.mrd_clients)
        self._socket = listening(config.host, self._neighbors.mrd_port, "--mrd-port")
        self._clients: set[threading.Thread] = set()
        self._door = threading.Thread(target=self._accept, name="mrd", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    def start(self, sources: tuple[Served, ...], ended: Callable[[str], object]) -> None:
        """Begin.

        Args:
            sources: Those that reconstruct, the first by default.
            ended: Told the code of each stream that ended, empty for one that went well.
        """
        self._sources, self._ended = sources, ended
        self._door.start()

    def stop(self) -> None:
        """Take no more clients; streams that do not end in time are cut off."""
        self._stop_by = time.monotonic() + self._limits.shutdown_s
        self._stopping.set()
        self._door.join()
        for thread in list(self._clients):
            thread.join()

    def _accept(self) -> None:
        self._socket.settimeout(_LOOK_S)
        with self._socket:
            while not self._stopping.is_set():
                try:
                    client, address = self._socket.accept()
                except TimeoutError:
                    continue
                except OSError:  # the client left at once, or there are no descriptors left
                    time.sleep(_LOOK_S)
                    continue
                thread = threading.Thread(
                    target=self._meet, args=(client, str(address[0])), daemon=True
                )
                self._clients = {t for t in self._clients if t.is_alive()} | {thread}
                thread.start()

    def _meet(self, client: socket.socket, address: str) -> None:
        start, facts = time.monotonic(), {}
        try:
            if not is_allowed(self._neighbors, address):
                facts = {"code": "SERVE-01"}
                return
            if not self._room.acquire(blocking=False):
                raise ServingError(
                    "SERVE-04",
                    f"{self._neighbors.mrd_clients} streams are open, which is all that is "
                    "allowed.",
                    fix="Come again later.",
                )
            try:
                facts = self._serve(client)
            finally:
                self._room.release()
        except CoreMRIError as error:
            facts = {"code": error.code}
            _send_away(client, error)
        except Exception:  # a fault of ours, which the others must not feel
            facts = {"code": "SERVE-06"}
            log.exception("mrd")
        finally:
            client.close()
            seconds = round(time.monotonic() - start, 2)
            self._ended(str(facts.get("code", "")))
            log.info("mrd", extra={"facts": {**facts, "seconds": seconds}})

    def _serve(self, client: socket.socket) -> dict[str, Any]:
        scratch = self._scratch / f"mrd-{uuid.uuid4().hex}"
        scratch.mkdir(mode=0o700)
        memory = self._limits.job_gb
        work = MrdWork(
            client, self._neighbors.mrd_idle_s, self._limits.upload_bytes, scratch, self._sources,
            self._device,
        )  # fmt: skip
        child = None
        try:
            child = Child("do_mrd", work, scratch, memory_gb=memory, file_gb=2 * memory)
            return self._follow(child)
        finally:
            if child is not None:
                child.kill()
            shutil.rmtree(scratch, ignore_errors=True)

    def _follow(self, child: Child) -> dict[str, Any]:
        """What the process did.

        Raises:
            CoreMRIError: What it raised, while no image is half way out.
        """
        sending = False
        deadline = time.monotonic() + self._limits.job_s
        while True:
            try:
                message = child.listen(_LOOK_S)
            except ServingError as error:
                return self._failed(error, sending=sending)
            if message is not None and "sending" in message:
                sending = bool(message["sending"])
            elif message is not None and "failed" in message:
                return self._failed(CoreMRIError(**message["failed"]), sending=sending)
            elif message is not None and "done" in message:
                return dict(message["done"])
            if time.monotonic() > min(deadline, self._stop_by):
                late = ServingError(
                    "SERVE-05", f"the stream took more than {self._limits.job_s:g} s.",
                    fix="Send fewer slices, or ask whoever runs the service for more time.",
                )  # fmt: skip
                return self._failed(late, sending=sending)

    @staticmethod
    def _failed(error: CoreMRIError, *, sending: bool) -> dict[str, Any]:
        if not sending:
            raise error
        return {"code": error.code}  # words of ours would be taken for pixels


def _send_away(client: socket.socket, error: CoreMRIError) -> None:
    """Tell why; then take what still comes for a while, since a reset would eat the reason."""
    end = time.monotonic() + _GOODBYE_S
    with contextlib.suppress(OSError):
        client.settimeout(_GOODBYE_S)
        client.sendall(error_message(error.code, error.message, error.fix))
        client.shutdown(socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            client.settimeout(left)
            if not client.recv(1 << 16):
                return

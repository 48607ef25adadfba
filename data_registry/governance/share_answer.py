"""A file as an HTTP answer: whole or in part, piece by piece, and only as long as it may be had."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from core_mri.errors import CoreMRIError
from data_registry.governance.ranges import Part

log = logging.getLogger(__name__)
_PIECE = 1 << 18
LOOK_AGAIN_S = 2.0
"""How long a link that was revoked or has expired goes on giving bytes at most."""


class Withheld(Exception):
    """A file was changed while it was sent: the connection closes short of its Content-Length."""


class OpenFile:
    """A file that was opened, and is seen to stay what it was then.

    Args:
        path: Without links in its last part.

    Raises:
        OSError: It cannot be opened, or is no plain file.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._status = os.fstat(self._descriptor)
        if not stat.S_ISREG(self._status.st_mode):
            self.close()
            raise OSError(f"{path} is no plain file")
        self.size = self._status.st_size

    @property
    def identity(self) -> tuple[int, ...]:
        """What changes when the file does."""
        status = self._status
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def read(self, start: int, most: int) -> bytes:
        """Bytes from `start` on.

        Raises:
            Withheld: The file was changed or cut since it was opened.
        """
        content = os.pread(self._descriptor, most, start)
        now = os.fstat(self._descriptor)
        same = (now.st_size, now.st_mtime_ns) == (self._status.st_size, self._status.st_mtime_ns)
        if not content or not same:
            raise Withheld
        return content

    def close(self) -> None:
        """Close it; once is enough."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class FileAnswer(Response):
    """Bytes of an open file, which is closed in the end.

    Args:
        file: The file.
        part: What of it; None for all.
        headers: Of the answer, without Content-Length and Content-Range.
        allowed: Looks whether it may still be had, else raises; called now and then.
        ended: Told the bytes sent, and whether the last byte of the file was among them.
    """

    def __init__(
        self,
        file: OpenFile,
        part: Part | None,
        headers: dict[str, str],
        *,
        allowed: Callable[[], object],
        ended: Callable[[int, bool], None],
    ) -> None:
        super().__init__(None, 200 if part is None else 206, media_type="application/octet-stream")
        self._file, self._allowed, self._ended = file, allowed, ended
        self._first = 0 if part is None else part.first
        self._last = file.size - 1 if part is None else part.last
        self.headers.update(headers)
        self.headers["content-length"] = str(self._last - self._first + 1)
        if part is not None:
            self.headers["content-range"] = f"bytes {part.first}-{part.last}/{file.size}"

    async def __call__(
        self,
        scope: MutableMapping[str, Any],  # noqa: ARG002
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Send it; whoever leaves ends it."""
        gone = asyncio.ensure_future(_until_gone(receive))
        place, looked = self._first, time.monotonic()
        try:
            await send({"type": "http.response.start", "status": self.status_code,
                        "headers": self.raw_headers})  # fmt: skip
            while place <= self._last and not gone.done():
                if time.monotonic() - looked > LOOK_AGAIN_S:
                    await run_in_threadpool(self._allowed)
                    looked = time.monotonic()
                most = min(_PIECE, self._last + 1 - place)
                piece = await run_in_threadpool(self._file.read, place, most)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                place += len(piece)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (Withheld, CoreMRIError):
            log.warning("an answer was ended: the link or the file changed")  # the server hangs up
        finally:
            gone.cancel()
            self._file.close()
            completed = place > self._last and self._last == self._file.size - 1
            await asyncio.shield(run_in_threadpool(self._ended, place - self._first, completed))


async def _until_gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

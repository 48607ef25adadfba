"""An upload whose size is known at its end alone, such as objects over DICOMweb or DIMSE."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from downstream.serving.service import Refused, Service
from downstream.serving.store import Job


class Incoming:
    """Parts that are sealed as they come; `finish` makes them a job, `discard` forgets them.

    What a killed service leaves is thrown away when it starts.

    Args:
        service: Whose spool and limits.
        user: Whose job it will be.

    Raises:
        Refused: 429 or 503 as `Service.check_room`.
    """

    def __init__(self, service: Service, user: str) -> None:
        service.check_room(user, 0)
        self._service, self._user = service, user
        self._identity = uuid.uuid4().hex
        self._waiting = bytearray()
        self._digest = hashlib.sha256()
        self.size = 0
        service.spool.open(self._identity)

    def append(self, content: bytes) -> None:
        """Take more.

        Raises:
            Refused: 413 for more than an upload may have, 429 when there is no room.
            DataError: DATA-07 when the disk is full.
        """
        limits = self._service.limits
        if self.size + len(self._waiting) + len(content) > limits.upload_bytes:
            raise Refused(
                413, "SERVE-04", f"more than {limits.upload_bytes} bytes in one upload.",
                fix="Send fewer objects at once.",
            )  # fmt: skip
        self._digest.update(content)
        self._waiting += content
        while len(self._waiting) >= limits.chunk_bytes:
            self._seal(limits.chunk_bytes)

    def finish(self, request: Mapping[str, Any]) -> Job:
        """All has come: the job is queued.

        The same bytes again, as clients send them that lost patience, give the job that has them
        already, unless that one failed.

        Raises:
            Refused: 422 for an empty upload, 429 when there is no room.
            DataError: DATA-07 when the disk is full.
        """
        if self._waiting:
            self._seal(len(self._waiting))
        if not self.size:
            raise Refused(422, "SERVE-03", "an empty upload.")
        store, key = self._service.store, f"content {self._digest.hexdigest()}"
        before = store.of_key(self._user, key)
        same = before is not None and dict(before.request) == dict(request)
        if before is not None and same and before.state not in ("failed", "cancelled"):
            self.discard()
            return before
        self._service.check_room(self._user, self.size)
        store.create_queued(self._identity, self._user, request, self.size, key)
        self._service.metrics.received(self.size)
        self._service.workers.wake()
        return self._service.get(self._user, self._identity)

    def discard(self) -> None:
        """Throw it away."""
        self._service.spool.discard(self._identity)

    def _seal(self, number: int) -> None:
        self._service.check_room(self._user, self.size + number)
        self._service.spool.append(self._identity, self.size, bytes(self._waiting[:number]))
        self.size += number
        del self._waiting[:number]

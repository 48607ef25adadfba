"""What every request passes: who asks, how often, how slowly, from which page; and what is noted.

Pure ASGI, so that streams are not held up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException

from core_mri.errors import CoreMRIError, ServingError
from downstream.serving.limits import Limits, RateLimit
from downstream.serving.observing import Metrics
from downstream.serving.tokens import Tokens, is_loopback

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = ("/", "/health", "/ready")
"""Paths without a token, beside those below /page/: they tell nothing of anybody."""
STORED_BELOW = "/dicomweb/studies"
"""Where whole uploads are posted."""
_SMALL = 1 << 16
"""Bytes of a body that is no part of an upload."""
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' blob: data:; connect-src 'self' blob: data:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def error_body(error: CoreMRIError) -> bytes:
    """An error as every route answers it."""
    facts = {"code": error.code, "message": error.message, "fix": error.fix}
    return json.dumps({"error": facts}).encode()


class Gate:
    """Around the app.

    Args:
        app: ASGI.
        tokens: Who may ask.
        limits: How much.
        metrics: Counters.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        tokens: Tokens,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._app, self._tokens, self._limits, self._metrics = app, tokens, limits, metrics
        self._rate = RateLimit(limits.requests_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                known = {name.lower() for name, _ in message.get("headers", [])}
                message["headers"] = [
                    *message.get("headers", []),
                    *((k.encode(), v.encode()) for k, v in _HEADERS.items()
                      if k.encode() not in known),
                ]  # fmt: skip
                seconds = time.monotonic() - start
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.request(scope["method"], route, status, seconds)
                log.info("request", extra={"facts": {
                    "method": scope["method"], "route": route, "status": status,
                    "ms": round(1000 * seconds, 1)}})  # fmt: skip
            await send(message)

        refused = self._refusal(scope)
        if refused is not None:
            await _answer(noted, *refused)
            return
        most = self._most(scope)
        body_done, received = False, 0

        async def bounded() -> MutableMapping[str, Any]:
            """The body, if it comes in time and in size; then whatever the connection says."""
            nonlocal body_done, received
            if body_done:
                return await receive()
            # Long bodies get as long again for each part of the size of a chunk.
            patience = self._limits.body_s * (1 + received // self._limits.chunk_bytes)
            left = start + patience - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except asyncio.TimeoutError:
                slow = ServingError(
                    "SERVE-04",
                    f"the body did not arrive within {self._limits.body_s:g} s.",
                    fix="Send smaller parts.",
                )
                raise HTTPException(408, slow, {"connection": "close"}) from None
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, _too_large(most), {"connection": "close"})
            body_done = message["type"] != "http.request" or not message.get("more_body")
            return message

        await self._app(scope, bounded, noted)

    def _most(self, scope: Scope) -> int:
        """Bytes that a body may have."""
        if scope["path"].endswith("/content"):
            return self._limits.chunk_bytes
        if scope["method"] == "POST" and scope["path"].startswith(STORED_BELOW):
            return self._limits.upload_bytes
        return _SMALL

    def _refusal(self, scope: Scope) -> tuple[int, ServingError, dict[str, str]] | None:
        headers = {name.decode("latin-1"): value.decode("latin-1")
                   for name, value in scope["headers"]}  # fmt: skip
        if not self._tokens.demanded:
            refused = _foreign_page(headers)
            if refused is not None:
                return 403, refused, {}
        path = scope["path"]
        user = self._tokens.user_of(headers.get("authorization"))
        address = scope["client"][0] if scope.get("client") else ""
        wait = self._rate.wait_s(f"user {user}" if user is not None else f"address {address}")
        if wait:
            error = ServingError(
                "SERVE-04",
                f"more than {self._limits.requests_per_s:g} requests a second.",
                fix="Wait as long as Retry-After says.",
            )
            return 429, error, {"retry-after": str(math.ceil(wait))}
        if user is None and path not in OPEN and not path.startswith("/page/"):
            error = ServingError(
                "SERVE-01",
                "a token is missing or wrong.",
                fix="Send the header Authorization: Bearer TOKEN.",
            )
            return 401, error, {"www-authenticate": "Bearer"}
        scope["state"] = {**scope.get("state", {}), "user": user}
        most = self._most(scope)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            return 413, _too_large(most), {"connection": "close"}
        return None


def _too_large(most: int) -> ServingError:
    return ServingError(
        "SERVE-04", f"a body of more than {most} bytes.", fix="Send the upload in smaller parts."
    )


def _foreign_page(headers: dict[str, str]) -> ServingError | None:
    """Without tokens, pages of other sites in the user's browser must not reach us.

    A name that was rebound to this machine shows in Host, a request of another page in Origin.
    """
    host = headers.get("host", "")
    if not is_loopback(_name(host)):
        return ServingError(
            "SERVE-01",
            "a host name that is not this machine's.",
            fix="Open http://127.0.0.1 or http://localhost.",
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return ServingError("SERVE-01", "a request that another page made.")
    return None


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host.partition(":")[0]


async def _answer(
    send: Send, status: int, error: ServingError, headers: dict[str, str] | None = None
) -> None:
    body = error_body(error)
    fields = {"content-type": "application/json", "content-length": str(len(body)),
              **(headers or {})}  # fmt: skip
    await send(
        {"type": "http.response.start", "status": status,
         "headers": [(k.encode(), v.encode()) for k, v in fields.items()]}
    )  # fmt: skip
    await send({"type": "http.response.body", "body": body})

"""A running share server: uvicorn around the app, until a signal stops it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from data_registry.catalogue import Registry
from data_registry.governance.downloads import Downloads
from data_registry.governance.share_app import make_app
from data_registry.governance.share_desk import Desk
from data_registry.governance.sharing import Sharing

_HEAD_S = 20.0
"""Seconds that the head of a request may take, and a kept connection may rest."""


class _Protocol(H11Protocol):
    """Ends connections whose request does not arrive."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.timer = asyncio.get_running_loop().call_later(_HEAD_S, self._end)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timer is not None:
            self.timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timer is not None:
            self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(_HEAD_S, self._end)

    def _end(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def serve(
    registry: Path, link_key: Path | None, *, host: str, port: int, connections: int,
    per_link: int, started: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve the links of a registry.

    Args:
        registry: Its folder.
        link_key: As `Sharing.open`.
        host: Address to listen at. Links are the only secret: put TLS before other than loopback.
        port: 0 takes a free one.
        connections: At once, of everybody; more get 503.
        per_link: Files that one link may fetch at once.
        started: Told the address once it listens.

    Raises:
        DataError: DATA-08 without a registry, DATA-07 when downloads cannot be counted.
        ConfigError: What `load_key` raises.
    """
    os.umask(0o077)
    opened = Registry.open(registry)
    sharing = Sharing.open(opened, link_key)
    downloads = Downloads(opened.path)
    # Addresses hold links, so none is logged; what is left says that something failed, and when.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    settings = uvicorn.Config(
        make_app(Desk(sharing, downloads, per_link)), host=host, port=port, http=_Protocol,
        ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        limit_concurrency=connections, timeout_graceful_shutdown=5, proxy_headers=False,
        h11_max_incomplete_event_size=1 << 15,
    )  # fmt: skip

    class Server(uvicorn.Server):
        """Tells where it listens."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                started(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    try:
        Server(settings).run()
    except KeyboardInterrupt:  # uvicorn raises the signal again once all is closed
        pass
    finally:
        downloads.close()

"""From settings to a running server, and back to nothing in good order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from core_mri.errors import ConfigError
from downstream.serving.app import make_app
from downstream.serving.assembly import assemble, described, has_networks, open_boards
from downstream.serving.child import preload
from downstream.serving.dicom.dimse import Dimse
from downstream.serving.mrd.listener import MrdListener
from downstream.serving.observing import JsonLines
from downstream.serving.prompting import Sessions
from downstream.serving.settings import Places, ServeConfig
from downstream.serving.sources import reconstructing
from downstream.serving.tokens import Tokens, load_tokens
from downstream.serving.worker import start_here


def serve(config: ServeConfig, *, started: Callable[[str], None]) -> None:
    """Run until a signal stops it.

    Args:
        config: Settings.
        started: Told the address once it listens.

    Raises:
        ServingError: SERVE-01 for a wrong token file, SERVE-02 for a data folder in use.
        WeightsError: For weights that cannot be served.
        LeaderboardError: BOARD-01 for a folder that is no leaderboard.
        ConfigError: CONFIG-05 for two leaderboards of one name.
        DataError: DATA-07 when the data folder cannot be written.
    """
    os.umask(0o077)
    log_to_stderr()
    tokens = load_tokens(config.token_file) if config.token_file else Tokens({})
    boards = open_boards(config.leaderboards)
    if config.neighbors.dimse and config.neighbors.dimse_user not in tokens.users:
        raise ConfigError(
            "CONFIG-05",
            f"--dimse-user {config.neighbors.dimse_user}: must be one of "
            f"{', '.join(sorted(tokens.users))}.",
        )
    places, lock = Places.open(config.data_dir)
    mrd = MrdListener(config, places.scratch) if config.neighbors.mrd else None
    preload(networks=has_networks(config))
    sources = described(config)
    streamed = reconstructing(sources) if mrd is not None else ()
    sessions = Sessions(places.results, places.scratch, config.limits, config.device)
    service = assemble(config, places, sources, start_here(config.limits), sessions, boards)
    body_s = config.limits.body_s

    class Protocol(H11Protocol):
        """Ends connections whose request does not arrive."""

        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.timer is not None:
                self.timer.cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_head()

        def _await_head(self) -> None:
            cycle = self.cycle
            if self.timer is not None:
                self.timer.cancel()

            def end() -> None:
                if self.cycle is cycle and (cycle is None or cycle.response_complete):
                    self.transport.close()

            self.timer = asyncio.get_running_loop().call_later(body_s, end)

    settings = uvicorn.Config(
        make_app(service, tokens), host=config.host, port=config.port, http=Protocol, ws="none",
        log_config=None, access_log=False, server_header=False, lifespan="off",
        limit_concurrency=config.limits.connections, timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=1 << 15, proxy_headers=False,
    )  # fmt: skip

    class Server(uvicorn.Server):
        """Tells streams that they end."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.stopping = True
            super().handle_exit(sig, frame)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                name = f"[{host}]" if ":" in host else host
                started(f"http://{name}:{port}")
                if mrd is not None:
                    started(f"mrd://{name}:{mrd.port}")
                if dimse is not None:
                    started(f"dicom://{config.neighbors.dimse_title}@{name}:{dimse.port}")

    dimse = Dimse(service, config.neighbors, config.host) if config.neighbors.dimse else None
    service.workers.start()
    if mrd is not None:
        mrd.start(streamed, service.metrics.stream_ended)
    try:
        Server(settings).run()
    except KeyboardInterrupt:  # uvicorn raises the signal again once all is closed
        pass
    finally:
        previous = [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]
        if dimse is not None:
            dimse.stop()
        if mrd is not None:
            mrd.stop()
        service.stop()
        service.store.close()
        if lock is not None:
            lock.close()
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), previous, strict=True):
            signal.signal(number, handler)


def log_to_stderr() -> None:
    """A line of JSON an event; libraries only warn."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    logging.getLogger("downstream.serving").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)

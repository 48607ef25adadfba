"""The review page: a server for this machine alone, which writes down what a person says."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from core_mri.errors import CoreMRIError
from data_registry.deidentify.ledger import Draw, Ledger
from data_registry.deidentify.review_items import Item
from data_registry.deidentify.review_pictures import header, picture

_PAGE = Path(__file__).parent / "assets" / "review.html"
_MAX_BODY = 4096


class ReviewServer(ThreadingHTTPServer):
    """Serves the items of one folder on 127.0.0.1, below a path that only the caller knows.

    Args:
        items: To look at.
        ledger: Receives the verdicts.
        draw: Of the items, which the ledger notes.
        port: 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, items: list[Item], ledger: Ledger, draw: Draw, *, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.items, self.ledger, self.draw = items, ledger, draw
        self.token = secrets.token_urlsafe(16)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"

    @property
    def reviewed(self) -> int:
        """How many items have a verdict."""
        return sum(self.ledger.verdict_on(item.name, item.seen) is not None for item in self.items)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer

    def do_GET(self) -> None:
        name = self._below_token()
        if name == "":
            self._send(_PAGE.read_bytes(), "text/html; charset=utf-8")
        elif name == "items":
            self._send_json([self._summary(item) for item in self.server.items])
        elif name is not None and name.startswith("item/"):
            item = self._item(name.removeprefix("item/"))
            if item is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                self._send_json({"picture": picture(item), "header": header(item)})
            except CoreMRIError as error:
                self._send_json({"picture": "", "header": [["not shown", error.message]]})
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        # Only a page that we served knows the token, and sends this type.
        if (
            self._below_token() != "verdict"
            or self.headers.get_content_type() != "application/json"
        ):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= _MAX_BODY:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            said = json.loads(self.rfile.read(length))
            item = self._item(str(said["item"]))
            if item is None:
                raise KeyError
            self.server.ledger.add(
                item.name, item.seen, str(said["verdict"]), str(said["initials"]), self.server.draw
            )
        except CoreMRIError as error:
            self._send_json({"error": error.message}, HTTPStatus.BAD_REQUEST)
            return
        except (ValueError, KeyError, TypeError):
            self._send_json({"error": "no verdict on an item"}, HTTPStatus.BAD_REQUEST)
            return
        self._send_json(self._summary(item))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: requests are no events that anybody needs."""

    def _below_token(self) -> str | None:
        start = f"/{self.server.token}/"
        return self.path.removeprefix(start) if self.path.startswith(start) else None

    def _item(self, number: str) -> Item | None:
        if not number.isdigit() or int(number) >= len(self.server.items):
            return None
        return self.server.items[int(number)]

    def _summary(self, item: Item) -> dict[str, str]:
        line = self.server.ledger.verdict_on(item.name, item.seen)
        said = (
            {"verdict": line.verdict, "initials": line.initials, "time": line.time} if line else {}
        )
        return {"name": item.name, "why": item.why, **said}

    def _send_json(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header(
            "Content-Security-Policy",
            "default-src 'self'; img-src data:; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'",
        )
        self.end_headers()
        self.wfile.write(body)

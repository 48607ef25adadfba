"""Shared data over HTTP: what a link covers, its agreements, and files in parts (RFC 9110).

A request carries its link in the query, as `links.sign` made it; there is no other way to say who
asks. Errors are ``{"error": {"code", "message", "fix"}}`` with the status of `_STATUS`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from core_mri.errors import CoreMRIError, DataError
from core_mri.version import __version__
from data_registry.governance.ranges import Part, may_be_partial, precondition, wanted
from data_registry.governance.share_answer import FileAnswer
from data_registry.governance.share_desk import Desk
from data_registry.governance.share_page import page

PATH = "/share"
"""Where a link points; give ``https://HOST/share`` as --base-url."""
_STATUS = {
    "DATA-22": 410, "DATA-23": 410, "DATA-24": 403, "DATA-25": 403, "DATA-28": 403,
    "DATA-46": 403, "DATA-47": 429, "DATA-48": 416, "DATA-49": 400, "DATA-07": 507,
}  # fmt: skip
_MAX_BODY = 1 << 14
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # the address holds the link
    "cache-control": "private, no-store",
}


Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


def make_app(desk: Desk) -> App:
    """The ASGI application over a desk."""
    app = FastAPI(title="core-mri data share", version=__version__, docs_url=None, redoc_url=None,
                  openapi_url=None, redirect_slashes=False)  # fmt: skip
    _handle_errors(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(PATH)
    def listing(request: Request) -> Response:
        link = _link(request)
        offers = desk.offers(link)
        missing = [offer for offer in offers if offer.standing != "accepted"]
        wants_page = "text/html" in request.headers.get("accept", "")
        if missing and wants_page:
            return _html(page(offers, None, _query(request)))
        files = desk.files(link)
        for file in files:
            file["url"] = f"{PATH}/files/{quote(str(file['name']))}?{_query(request)}"
        if wants_page:
            return _html(page(offers, files, _query(request)))
        return _json(200, {"files": files})

    @app.get(f"{PATH}/agreements")
    def offered(request: Request) -> Response:
        return _json(200, {"agreements": [vars(one) for one in desk.offers(_link(request))]})

    @app.post(f"{PATH}/agreements")
    async def accept(request: Request) -> Response:
        link, is_form = _link(request), _media_type(request) != "application/json"
        said = _fields(await _body(request), is_form=is_form)
        await run_in_threadpool(desk.accept, link, said["source"], said["sha256"])
        if is_form:
            return Response(None, 303, {"location": f"{PATH}?{_query(request)}"})
        offers = await run_in_threadpool(desk.offers, link)
        return _json(200, {"agreements": [vars(one) for one in offers]})

    @app.api_route(PATH + "/files/{name:path}", methods=["GET", "HEAD"])
    def file(request: Request, name: str) -> Response:
        return _file(desk, request, name)

    return _with_headers(app)


def _with_headers(app: App) -> App:
    """Around the app and not of it: the framework's middleware would queue what is streamed."""
    own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def headed(
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        await app(scope, receive, sent)

    return headed


def _file(desk: Desk, request: Request, name: str) -> Response:
    """A file, whole or in part, or what its conditions say instead."""
    link, asked = _link(request), request.headers
    file, sha256, nonce = desk.open(link, name)
    handed_on = False
    try:
        etag = f'"{sha256}"'
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        headers = {
            "etag": etag, "accept-ranges": "bytes", "repr-digest": f"sha-256=:{digest}:",
            "content-disposition": "attachment; filename*=utf-8''"
            + quote(name.rpartition("/")[2], safe=""),
        }  # fmt: skip
        verdict = precondition(asked.get("if-match"), asked.get("if-none-match"), etag)
        if verdict == "not modified":
            return Response(None, 304, headers)
        if verdict == "failed":
            return _json(412, _error(_condition_failed()), headers)
        if request.method == "HEAD":  # Range has no meaning for it (14.2)
            return Response(None, 200, headers | {"content-length": str(file.size)},
                            "application/octet-stream")  # fmt: skip
        what = (
            wanted(asked.get("range"), file.size)
            if may_be_partial(asked.get("if-range"), etag)
            else "whole"
        )
        if what == "outside":
            outside = DataError(
                "DATA-48",
                f"the range begins behind the end of the file, which has {file.size} bytes.",
                fix="The file is complete if you have as many.",
            )
            return _json(416, _error(outside), headers | {"content-range": f"bytes */{file.size}"})
        desk.begin(nonce, name)
        handed_on = True
    finally:
        if not handed_on:
            file.close()
    return FileAnswer(
        file, what if isinstance(what, Part) else None, headers,
        allowed=lambda: desk.check(link),
        ended=lambda sent, completed: desk.end(nonce, name, sent, completed=completed),
    )  # fmt: skip


def _condition_failed() -> DataError:
    return DataError(
        "DATA-48", "the file is not the one that If-Match names.", fix="Fetch it from its start."
    )


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(CoreMRIError)
    def ours(_request: Request, error: CoreMRIError) -> Response:
        status = _STATUS.get(error.code)
        if status is None:  # such as a damaged registry: its paths are nobody's business
            return _json(500, _error(DataError("DATA-08", "the registry cannot be read now.")))
        headers = {"retry-after": "5"} if status == 429 else {}
        return _json(status, _error(error), headers)

    @app.exception_handler(HTTPException)
    def http(_request: Request, error: HTTPException) -> Response:
        unknown = _unknown(f"{error.detail}.")
        return _json(error.status_code, _error(unknown), dict(error.headers or {}))

    @app.exception_handler(Exception)
    def unforeseen(_request: Request, _: Exception) -> Response:
        return _json(500, _error(DataError("DATA-49", "an error of the server.")))


def _link(request: Request) -> str:
    """The link as `parse` reads it: whatever stands before the query is not signed."""
    return f"?{_query(request)}"


def _query(request: Request) -> str:
    return str(request.scope["query_string"].decode("latin-1"))


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _body(request: Request) -> bytes:
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _MAX_BODY:
            raise _unknown(f"a body of more than {_MAX_BODY} bytes.")
    return content


def _fields(body: bytes, *, is_form: bool) -> dict[str, str]:
    """Source and hash of an agreement that is accepted."""
    try:
        text = body.decode("utf-8")
        found = (
            {name: values[0] for name, values in parse_qs(text).items()}
            if is_form
            else json.loads(text)
        )
        return {name: str(found[name]) for name in ("source", "sha256")}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _unknown('send {"source": NAME, "sha256": HASH} of an agreement.') from None


def _unknown(message: str) -> DataError:
    return DataError("DATA-49", message, fix=f"Ask GET {PATH}?LINK or {PATH}/agreements?LINK.")


def _error(error: CoreMRIError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "fix": error.fix}}


def _json(status: int, content: object, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, "application/json")


def _html(text: str) -> Response:
    return Response(text, 200, None, "text/html; charset=utf-8")

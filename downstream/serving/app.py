"""The HTTP interface: routes over `Service`, documented at /openapi.json."""

from __future__ import annotations

import asyncio
import gzip
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from core_mri.errors import ConfigError, CoreMRIError, ServingError
from core_mri.version import __version__
from downstream.serving.boards import add_boards
from downstream.serving.dicom.web import add_dicomweb
from downstream.serving.forms import (
    ErrorAnswer,
    Health,
    JobAnswer,
    JobList,
    NewJob,
    Prompts,
    ServiceAnswer,
    SourceAnswer,
    job_answer,
)
from downstream.serving.gate import Gate, error_body
from downstream.serving.results import RESULTS
from downstream.serving.service import Refused, Service
from downstream.serving.store import ENDED
from downstream.serving.tokens import Tokens

_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
}
_EVENT_S, _BEAT_S = 0.25, 15.0
_DESCRIPTION = """Upload raw data or a scan, get a reconstruction or a mask back. Research use only.

1. `POST /v1/jobs` with the size of the file.
2. `PATCH /v1/jobs/ID/content` with parts of it, each with the header `Upload-Offset`. After a lost
   connection go on from the `offset` of `GET /v1/jobs/ID`.
3. Follow `GET /v1/jobs/ID/events`, fetch the results of the done job.
"""

JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    common = (400, 401, 403, 405, 408, 413, 422, 429)
    return {status: {"model": ErrorAnswer} for status in sorted({*common, *statuses})}


def make_app(service: Service, tokens: Tokens) -> Callable[..., Awaitable[None]]:
    """The ASGI application.

    Args:
        service: What it acts on.
        tokens: Who may ask.
    """
    app = FastAPI(
        title="core-mri serve", version=__version__, description=_DESCRIPTION, docs_url=None,
        redoc_url=None, responses=_errors(), redirect_slashes=False,
    )  # fmt: skip
    _handle_errors(app)
    _state_limits(app, service)
    _add_jobs(app, service)
    _add_events(app, service)
    _add_operations(app, service, tokens)
    add_boards(app, service, _errors())
    add_dicomweb(app, service)
    _add_page(app)
    return Gate(app, tokens, service.limits, service.metrics)


def _handle_errors(app: FastAPI) -> None:
    def answer(status: int, error: CoreMRIError, headers: dict[str, str]) -> Response:
        return Response(error_body(error), status, headers, "application/json")

    @app.exception_handler(sqlite3.OperationalError)
    def no_room(_request: Request, _error: Exception) -> Response:
        full = ServingError("SERVE-04", "the service has no room.", fix="Come again later.")
        return answer(507, full, {"retry-after": "60"})

    @app.exception_handler(CoreMRIError)
    def ours(_request: Request, error: CoreMRIError) -> Response:
        if isinstance(error, Refused):
            headers = {}
            if error.retry_s:
                headers["retry-after"] = str(error.retry_s)
            if error.offset is not None:
                headers["upload-offset"] = str(error.offset)
            return answer(error.status, error, headers)
        if error.code == "DATA-07":
            return no_room(_request, error)
        wrong = isinstance(error, ConfigError) or error.code.startswith("CONFIG")
        return answer(422 if wrong else 500, error, {})

    @app.exception_handler(Exception)
    def unforeseen(_request: Request, _error: Exception) -> Response:
        failed = ServingError(
            "SERVE-06", "an error of the service.", fix="Tell whoever runs the service."
        )
        return answer(500, failed, {})

    @app.exception_handler(RequestValidationError)
    def invalid(_request: Request, error: RequestValidationError) -> Response:
        problems = [
            f"{'.'.join(str(part) for part in one['loc'][1:] if isinstance(part, int | str))[:100]}"
            f": {one['msg']}"
            for one in error.errors()[:5]
        ]
        return answer(422, ServingError("SERVE-09", "; ".join(problems) + "."), {})

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        refused = (
            error.detail
            if isinstance(error.detail, CoreMRIError)
            else ServingError("SERVE-09", f"{error.detail}.", fix="See /openapi.json.")
        )
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["allow"] = ", ".join(_methods(app, request.url.path))
        return answer(error.status_code, refused, headers)


def _methods(app: FastAPI, path: str) -> list[str]:
    """Those of all routes of a path; the framework names those of the first."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    found = [route.methods or set() for route in routes if route.path_regex.match(path)]
    return sorted(set().union(*found))


def _state_limits(app: FastAPI, service: Service) -> None:
    """Let the document name the largest upload of this service."""
    whole = app.openapi

    def document() -> dict[str, Any]:
        schema = whole()
        size = schema["components"]["schemas"]["NewJob"]["properties"]["size"]
        size["maximum"] = service.limits.upload_bytes
        return schema

    app.openapi = document  # type: ignore[method-assign]


def _add_jobs(app: FastAPI, service: Service) -> None:
    # What only reads a row is quicker done here than handed to a thread.
    def user_of(request: Request) -> str:
        return str(request.state.user)

    @app.post(
        "/v1/jobs", status_code=201, response_model=JobAnswer, tags=["jobs"],
        responses={200: {"model": JobAnswer, "description": "Made before with the same key."},
                   **_errors(404, 409, 503)},
    )  # fmt: skip
    def create(
        request: Request,
        response: Response,
        new: NewJob,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> JobAnswer:
        """Announce an upload. The same Idempotency-Key gives the same job again."""
        asked = new.model_dump(exclude={"size"})
        job, is_new = service.create(user_of(request), asked, new.size, idempotency_key)
        response.status_code = 201 if is_new else 200
        return job_answer(service, job)

    @app.get("/v1/jobs", tags=["jobs"])
    async def jobs(request: Request) -> JobList:
        """Your newest jobs, at most 100."""
        found = service.store.newest(user_of(request))
        return JobList(jobs=[job_answer(service, job) for job in found])

    @app.get("/v1/jobs/{job_id}", tags=["jobs"], responses=_errors(404))
    async def job(request: Request, job_id: JobId) -> JobAnswer:
        """A job, with its report and results once it is done."""
        return job_answer(service, service.get(user_of(request), job_id))

    @app.patch(
        "/v1/jobs/{job_id}/content", tags=["jobs"], responses=_errors(404, 409, 507),
        openapi_extra={"requestBody": {"required": True, "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
    )  # fmt: skip
    async def content(
        request: Request, job_id: JobId, upload_offset: Annotated[int, Header(ge=0, le=2**53)]
    ) -> JobAnswer:
        """A part of the file, from byte Upload-Offset on; the last one starts the job."""
        user = user_of(request)
        service.get(user, job_id)
        part = await request.body()
        found = await run_in_threadpool(service.append, user, job_id, upload_offset, part)
        return job_answer(service, found)

    @app.post("/v1/jobs/{job_id}/cancel", tags=["jobs"], responses=_errors(404, 409))
    def cancel(request: Request, job_id: JobId) -> JobAnswer:
        """End a job; its upload is thrown away."""
        return job_answer(service, service.cancel(user_of(request), job_id))

    @app.delete("/v1/jobs/{job_id}", status_code=204, tags=["jobs"], responses=_errors(404))
    def delete(request: Request, job_id: JobId) -> None:
        """Erase a job with all it has."""
        service.delete(user_of(request), job_id)

    @app.get(
        "/v1/jobs/{job_id}/results/{name}", tags=["jobs"], response_class=FileResponse,
        responses={200: {"content": {t: {} for t, _ in RESULTS.values()}}, **_errors(404, 416)},
    )  # fmt: skip
    def result(request: Request, job_id: JobId, name: str) -> FileResponse:
        """A file that the job left."""
        path = service.result(user_of(request), job_id, name)
        return FileResponse(
            path, media_type=RESULTS[name][0],
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )  # fmt: skip

    @app.post("/v1/jobs/{job_id}/prompts", tags=["prompts"], responses=_errors(404, 409, 500))
    def prompt(request: Request, job_id: JobId, prompts: Prompts) -> JobAnswer:
        """Segment what boxes and points show; the mask is among the results of the answer."""
        asked = prompts.model_dump(exclude={"source"})
        found = service.prompt(user_of(request), job_id, asked, prompts.source)
        return job_answer(service, found)


def _add_events(app: FastAPI, service: Service) -> None:
    @app.get(
        "/v1/jobs/{job_id}/events", tags=["jobs"], response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
                   **_errors(404)},
    )  # fmt: skip
    async def events(request: Request, job_id: JobId) -> StreamingResponse:
        """Server-sent events `job`: the job at each change, until it ends."""
        user = str(request.state.user)
        service.get(user, job_id)

        async def stream() -> AsyncIterator[bytes]:
            last, quiet = 0.0, 0.0
            while not service.stopping:
                job = service.store.get(job_id, user)
                if job is None:
                    return
                if job.updated != last:
                    last, quiet = job.updated, 0.0
                    data = job_answer(service, job).model_dump_json()
                    yield f"event: job\ndata: {data}\n\n".encode()
                    if job.state in ENDED:
                        return
                await asyncio.sleep(_EVENT_S)
                quiet += _EVENT_S
                if quiet >= _BEAT_S:
                    quiet = 0.0
                    yield b": still here\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")


def _add_operations(app: FastAPI, service: Service, tokens: Tokens) -> None:
    @app.get("/v1/service", tags=["service"])
    async def about() -> ServiceAnswer:
        """What is served and allowed."""
        return ServiceAnswer(
            sources=[
                SourceAnswer(name=s.name, role=s.role, labels=s.labels, sha256=s.sha256)
                for s in service.sources
            ],
            upload_bytes=service.limits.upload_bytes,
            chunk_bytes=service.limits.chunk_bytes,
            keep_h=service.limits.keep_h,
            tokens=tokens.demanded,
        )

    @app.get("/health", tags=["service"])
    async def health() -> Health:
        """The process answers."""
        return Health(status="ok")

    @app.get("/ready", tags=["service"], response_model=Health,
             responses={503: {"model": Health}})  # fmt: skip
    async def ready(response: Response) -> Health:
        """Jobs are taken and done."""
        if service.stopping or not service.workers.alive:
            response.status_code = 503
            return Health(status="stopping" if service.stopping else "broken")
        service.store.states()
        return Health(status="ok")

    @app.get(
        "/metrics", tags=["service"], response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )  # fmt: skip
    def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    folder = files("downstream.serving") / "page"
    contents = {name: (folder / name).read_bytes() for name in _PAGE}
    niivue = (files("core_mri") / "assets" / "niivue.umd.js.gz").read_bytes()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(contents["index.html"], media_type=_PAGE["index.html"])

    @app.get("/page/niivue.js", include_in_schema=False)
    async def viewer(request: Request) -> Response:
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(
                niivue, media_type=_PAGE["page.js"],
                headers={"content-encoding": "gzip", "cache-control": "max-age=86400"},
            )  # fmt: skip
        return Response(gzip.decompress(niivue), media_type=_PAGE["page.js"])

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404, "Not Found")
        return Response(contents[name], media_type=_PAGE[name])

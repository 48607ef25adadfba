"""DICOMweb: STOW-RS in, QIDO-RS and WADO-RS out (PS3.18 10.4 to 10.6), below /dicomweb.

Objects that are stored become a job as every upload: sealed, de-identified, with new UIDs,
segmented where weights are served for that. Found and fetched are the DICOM results of the user's
own jobs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from core_mri.errors import ServingError
from downstream.serving.dicom import holdings
from downstream.serving.dicom.holdings import CLASS, INSTANCE, Instance, Level, Query, Tags
from downstream.serving.dicom.media import JSON, Multipart, check_json, check_multipart
from downstream.serving.dicom.multipart import boundary_of
from downstream.serving.gate import STORED_BELOW
from downstream.serving.incoming import Incoming
from downstream.serving.service import Refused, Service
from downstream.serving.store import ENDED, Job

_LOOK_S = 0.1
_MOST = 1000
"""Answers of one query; the rest comes with ``offset``."""
_DICOM, _BYTES = "application/dicom", "application/octet-stream"
_PROCESSING_FAILURE, _CLASS_REFUSED, _NOT_UNDERSTOOD = 0x0110, 0x0122, 0xC000
_REASONS = {"DATA-02": _NOT_UNDERSTOOD, "DATA-03": _NOT_UNDERSTOOD, "DATA-18": _CLASS_REFUSED}
"""Failure reasons of PS3.18 table I.2-2."""

Uid = Annotated[str, Path(pattern=holdings.UID, max_length=64)]
Frames = Annotated[str, Path(pattern=r"^[0-9]{1,6}(,[0-9]{1,6})*$", max_length=4000)]


def add_dicomweb(app: FastAPI, service: Service) -> None:
    """Put the routes into the application."""
    _add_storing(app, service)
    _add_finding(app, service)
    _add_fetching(app, service)


def _user(request: Request) -> str:
    return str(request.state.user)


def _url(request: Request) -> str:
    return f"{request.url.scheme}://{request.headers.get('host', '')}/dicomweb"


def _add_storing(app: FastAPI, service: Service) -> None:
    @app.post(STORED_BELOW, tags=["dicomweb"])
    async def store(request: Request) -> Response:
        """STOW-RS: answers when the objects are de-identified and stored, under new UIDs."""
        return await stored(request, "")

    @app.post(f"{STORED_BELOW}/{{study}}", tags=["dicomweb"])
    async def store_in_study(request: Request, study: Uid) -> Response:
        """STOW-RS of objects of one study."""
        return await stored(request, study)

    async def stored(request: Request, study: str) -> Response:
        try:
            boundary, kind = boundary_of(request.headers.get("content-type", ""))
        except ServingError as error:
            raise Refused(415, error.code, error.message, fix=error.fix) from None
        if kind not in ("", _DICOM):
            raise Refused(
                415, "SERVE-33", f"parts of media type {kind[:60]!r}.",
                fix=f'Send multipart/related; type="{_DICOM}".',
            )  # fmt: skip
        asked = {"boundary": boundary, "study": study, "store": True, "source": "", "name": ""}
        job = await received(request, asked)
        job = await ended(job)
        if job.state != "done":
            raise _not_stored(job)
        found = await run_in_threadpool(holdings.instances_in, service, job.id, ("images.zip",))
        return _stored(found, job, _url(request))

    async def received(request: Request, asked: dict[str, Any]) -> Job:
        incoming = await run_in_threadpool(Incoming, service, _user(request))
        try:
            async for part in request.stream():
                await run_in_threadpool(incoming.append, part)
            return await run_in_threadpool(incoming.finish, asked)
        except BaseException:
            incoming.discard()
            raise

    async def ended(job: Job) -> Job:
        while job.state not in ENDED:
            if service.stopping:
                raise Refused(503, "SERVE-04", "the service is stopping.", retry_s=30)
            await asyncio.sleep(_LOOK_S)
            job = service.get(job.owner, job.id)
        return job


def _not_stored(job: Job) -> Refused:
    """Why nothing was stored."""
    error = job.error
    ours = error.get("code", "") in ("SERVE-05", "SERVE-06")
    return Refused(
        500 if ours else 409, error.get("code", "SERVE-07"),
        error.get("message", f"the job is {job.state}."), fix=error.get("fix", ""),
    )  # fmt: skip


def _stored(images: list[Instance], job: Job, url: str) -> Response:
    """The answer of PS3.18 annex I; 202 when something was held back."""
    study = images[0].uid(holdings.STUDY)
    answer: Tags = {
        "00081190": {"vr": "UR", "Value": [f"{url}/studies/{study}"]},
        "00081199": {"vr": "SQ", "Value": [_reference(i, url) for i in images]},
    }
    failures = [
        {"00081197": {"vr": "US", "Value": [_REASONS.get(code, _PROCESSING_FAILURE)]}}
        for code, number in job.report.get("held_back", {}).items()
        for _ in range(number)
    ]
    if failures:
        answer["0008119A"] = {"vr": "SQ", "Value": failures}
    return Response(json.dumps(answer), 202 if failures else 200, media_type=JSON)


def _reference(instance: Instance, url: str) -> Tags:
    place = (
        f"{url}/studies/{instance.uid(holdings.STUDY)}/series/{instance.uid(holdings.SERIES)}"
        f"/instances/{instance.uid(INSTANCE)}"
    )
    return {
        "00081150": {"vr": "UI", "Value": [instance.uid(CLASS)]},
        "00081155": {"vr": "UI", "Value": [instance.uid(INSTANCE)]},
        "00081190": {"vr": "UR", "Value": [place]},
    }


def _add_finding(app: FastAPI, service: Service) -> None:
    def answer(request: Request, level: Level, fixed: dict[str, str]) -> Response:
        check_json(request.headers.get("accept", ""))
        query, first, most = _query(request, level, fixed)
        found = holdings.answers(
            holdings.instances_of(service, _user(request)), query, _url(request)
        )
        headers = {}
        if len(found) > first + most:
            left = len(found) - first - most
            headers["warning"] = f'299 core-mri "there are {left} more; ask with offset"'
        return Response(
            json.dumps(found[first : first + most]), 200, headers=headers, media_type=JSON
        )

    @app.get("/dicomweb/studies", tags=["dicomweb"])
    def studies(request: Request) -> Response:
        """QIDO-RS: your studies."""
        return answer(request, "study", {})

    @app.get("/dicomweb/series", tags=["dicomweb"])
    def all_series(request: Request) -> Response:
        """QIDO-RS: your series."""
        return answer(request, "series", {})

    @app.get("/dicomweb/instances", tags=["dicomweb"])
    def all_instances(request: Request) -> Response:
        """QIDO-RS: your instances."""
        return answer(request, "instance", {})

    @app.get("/dicomweb/studies/{study}/series", tags=["dicomweb"])
    def series(request: Request, study: Uid) -> Response:
        """QIDO-RS: series of a study."""
        return answer(request, "series", {holdings.STUDY: study})

    @app.get("/dicomweb/studies/{study}/instances", tags=["dicomweb"])
    def study_instances(request: Request, study: Uid) -> Response:
        """QIDO-RS: instances of a study."""
        return answer(request, "instance", {holdings.STUDY: study})

    @app.get("/dicomweb/studies/{study}/series/{series}/instances", tags=["dicomweb"])
    def instances(request: Request, study: Uid, series: Uid) -> Response:
        """QIDO-RS: instances of a series."""
        return answer(request, "instance", {holdings.STUDY: study, holdings.SERIES: series})


def _query(request: Request, level: Level, fixed: dict[str, str]) -> tuple[Query, int, int]:
    """What is asked for, the number of the first answer, and how many.

    Raises:
        Refused: 400, SERVE-36 for what cannot be understood.
    """
    filters, include, numbers = dict(fixed), [], {"offset": 0, "limit": _MOST}
    try:
        for name, value in request.query_params.multi_items():
            if name in numbers:
                if not value.isdecimal() or len(value) > 9:
                    raise ServingError("SERVE-36", f"{name}={value[:40]!r}: no whole number.")
                numbers[name] = int(value)
            elif name == "includefield":
                include += ["all" if v == "all" else holdings.tag_of(v) for v in value.split(",")]
            elif name != "fuzzymatching":  # names are compared as they are, which is allowed
                tag = holdings.tag_of(name)
                if fixed.get(tag, value) != value:
                    raise ServingError("SERVE-36", f"{name} is in the path already.")
                filters[tag] = value
    except ServingError as error:
        raise Refused(400, error.code, error.message, fix=error.fix) from None
    return Query(level, filters, include), numbers["offset"], min(numbers["limit"], _MOST)


def _add_fetching(app: FastAPI, service: Service) -> None:
    def found(request: Request, *uids: str) -> list[Instance]:
        # What others have looks like nothing.
        mine = holdings.instances_of(service, _user(request))
        chosen = list(holdings.inside(mine, *uids))
        if not chosen:
            raise Refused(404, "SERVE-07", "no such study, series or instance.")
        return chosen

    def objects(request: Request, *uids: str) -> StreamingResponse:
        chosen = found(request, *uids)
        accept = request.headers.get("accept", "")
        check_multipart(accept, _DICOM, {one.syntax for one in chosen})
        parts = ((one.syntax, one.content()) for one in chosen)
        return _answered(Multipart(_DICOM), parts)

    def metadata(request: Request, *uids: str) -> Response:
        check_json(request.headers.get("accept", ""))
        tags = [one.tags for one in found(request, *uids)]
        return Response(json.dumps(tags), media_type=JSON)

    @app.get("/dicomweb/studies/{study}", tags=["dicomweb"])
    def study(request: Request, study: Uid) -> Response:
        """WADO-RS: all objects of a study, as they are stored."""
        return objects(request, study)

    @app.get("/dicomweb/studies/{study}/series/{series}", tags=["dicomweb"])
    def series(request: Request, study: Uid, series: Uid) -> Response:
        """WADO-RS: all objects of a series."""
        return objects(request, study, series)

    @app.get("/dicomweb/studies/{study}/series/{series}/instances/{instance}", tags=["dicomweb"])
    def instance(request: Request, study: Uid, series: Uid, instance: Uid) -> Response:
        """WADO-RS: one object."""
        return objects(request, study, series, instance)

    @app.get("/dicomweb/studies/{study}/metadata", tags=["dicomweb"])
    def study_metadata(request: Request, study: Uid) -> Response:
        """WADO-RS: elements without pixels."""
        return metadata(request, study)

    @app.get("/dicomweb/studies/{study}/series/{series}/metadata", tags=["dicomweb"])
    def series_metadata(request: Request, study: Uid, series: Uid) -> Response:
        """WADO-RS: elements without pixels."""
        return metadata(request, study, series)

    @app.get(
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/metadata",
        tags=["dicomweb"],
    )
    def instance_metadata(request: Request, study: Uid, series: Uid, instance: Uid) -> Response:
        """WADO-RS: elements without pixels."""
        return metadata(request, study, series, instance)

    @app.get(
        "/dicomweb/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
        tags=["dicomweb"],
    )
    def frames(
        request: Request, study: Uid, series: Uid, instance: Uid, frames: Frames
    ) -> StreamingResponse:
        """WADO-RS: frames by number from 1, as they are stored."""
        (one,) = found(request, study, series, instance)
        check_multipart(request.headers.get("accept", ""), _BYTES, {one.syntax})
        numbers = [int(number) for number in frames.split(",")]
        if not one.frames or not all(1 <= number <= len(one.frames) for number in numbers):
            raise Refused(
                404, "SERVE-07", f"no such frame of {len(one.frames)}.",
                fix="Fetch the instance itself.",
            )  # fmt: skip
        content = one.content()
        parts = (
            (one.syntax, b"".join(content[a : a + size] for a, size in one.frames[number - 1]))
            for number in numbers
        )
        return _answered(Multipart(_BYTES), parts)


def _answered(multipart: Multipart, parts: Iterator[tuple[str, bytes]]) -> StreamingResponse:
    return StreamingResponse(multipart.body(parts), media_type=multipart.content_type)

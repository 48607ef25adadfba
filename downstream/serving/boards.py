"""Leaderboards in the service: their routes, and what a submission has to bring before its upload.

A submission is a job like any other: announced here, uploaded in parts to `/v1/jobs/ID/content`,
scored in a process of its own. Owners are the users of the tokens.
"""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from core_mri.errors import LeaderboardError
from downstream.leaderboard.board import Board
from downstream.leaderboard.showing import facts, page
from downstream.leaderboard.store import Store
from downstream.leaderboard.task import check_name, load_card
from downstream.serving.forms import ErrorAnswer, JobAnswer, job_answer
from downstream.serving.service import Refused, Service
from downstream.serving.store import Job

_STATUS = {"BOARD-04": 422, "BOARD-05": 429, "BOARD-08": 409}
_HOURS = re.compile(r"in (\d+) hours")

Name = Annotated[str, Path(max_length=40, pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class ModelCard(BaseModel):
    """What readers have to know of the model; every field is demanded."""

    model_config = ConfigDict(extra="forbid", strict=True)

    method: str = Field(min_length=1, max_length=4000)
    training_data: str = Field(min_length=1, max_length=4000)
    saw_test_patients: bool
    parameters: int = Field(ge=0, lt=2**53)
    licence: str = Field(min_length=1, max_length=4000, description="SPDX expression.")
    limits: str = Field(min_length=1, max_length=4000)
    reference: str = Field(min_length=1, max_length=4000)


class NewSubmission(BaseModel):
    """A zip of the files of the task that is to come."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: int = Field(ge=1, le=2**53, description="Bytes of the zip.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    name: str = Field(min_length=1, max_length=64, description="On the board.")
    card: ModelCard


class BoardSummary(BaseModel):
    """A leaderboard in the list."""

    name: str
    title: str
    kind: str
    metric: str
    patients: int
    url: str


class BoardList(BaseModel):
    """The leaderboards of this service."""

    leaderboards: list[BoardSummary]


def announce(
    service: Service, user: str, board: str, new: NewSubmission, idempotency: str | None
) -> tuple[Job, bool]:
    """A job that waits for the upload of a submission; or the one of the same idempotency key.

    Raises:
        Refused: 404 without such a leaderboard, 422 for a model card, 429 for too many submissions
            (with when to come again), 409 for a name that is taken; and what `Service.create`
            raises.
    """
    found = find(service, board)
    known = idempotency is not None and service.store.knows(user, idempotency)
    try:
        check_name(new.name)
        card = load_card(new.card.model_dump())
        if not known:
            Store(found).check(user, new.name, "", time.time())
    except LeaderboardError as error:
        hours = _HOURS.search(error.fix)
        raise Refused(
            _STATUS.get(error.code, 500), error.code, error.message, fix=error.fix,
            retry_s=3600 * int(hours[1]) if hours else 0,
        ) from None  # fmt: skip
    asked = {
        "leaderboard": board, "owner": user, "submission": new.name, "name": new.name,
        "sha256": new.sha256, "card": dataclasses.asdict(card),
    }  # fmt: skip
    return service.create(user, asked, new.size, idempotency)


def find(service: Service, name: str) -> Board:
    """A leaderboard of the service.

    Raises:
        Refused: 404.
    """
    if name not in service.boards:
        raise Refused(
            404, "SERVE-50", "no such leaderboard.", fix="GET /v1/leaderboards lists them."
        )
    return service.boards[name]


def add_boards(app: FastAPI, service: Service, errors: dict[int | str, dict[str, Any]]) -> None:
    """Add the routes.

    Args:
        app: To.
        service: With its leaderboards.
        errors: Statuses that every route may answer, for the document.
    """
    not_found: dict[int | str, dict[str, Any]] = {**errors, 404: {"model": ErrorAnswer}}
    pages: dict[str, tuple[int, str]] = {}
    drawing = threading.Lock()  # figures share settings

    @app.get("/v1/leaderboards", tags=["leaderboards"], responses=errors)
    async def boards() -> BoardList:
        """All leaderboards."""
        return BoardList(leaderboards=[
            BoardSummary(
                name=name, title=board.task.title, kind=board.task.kind, metric=board.task.metric,
                patients=len(board.patients), url=f"/v1/leaderboards/{name}",
            )
            for name, board in sorted(service.boards.items())
        ])  # fmt: skip

    @app.get("/v1/leaderboards/{name}", tags=["leaderboards"], responses=not_found)
    def board(name: Name) -> dict[str, Any]:
        """The task, its files, the ranking."""
        return facts(find(service, name))

    @app.get(
        "/v1/leaderboards/{name}/page", tags=["leaderboards"], response_class=Response,
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}, **not_found},
    )  # fmt: skip
    def board_page(name: Name) -> Response:
        """The same as one self-contained page."""
        found = find(service, name)
        number = len(Store(found).entries())
        with drawing:
            if pages.get(name, (-1, ""))[0] != number:  # nothing but a new entry changes it
                pages[name] = number, page(found)
            return Response(pages[name][1], media_type="text/html; charset=utf-8")

    @app.post(
        "/v1/leaderboards/{name}/submissions", status_code=201, response_model=JobAnswer,
        tags=["leaderboards"],
        responses={200: {"model": JobAnswer, "description": "Made before with the same key."},
                   **not_found, 409: {"model": ErrorAnswer}, 503: {"model": ErrorAnswer}},
    )  # fmt: skip
    def submission(
        request: Request,
        response: Response,
        name: Name,
        new: NewSubmission,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> JobAnswer:
        """Announce a submission; upload its zip to the job, whose report tells the scores."""
        job, is_new = announce(service, str(request.state.user), name, new, idempotency_key)
        response.status_code = 201 if is_new else 200
        return job_answer(service, job)

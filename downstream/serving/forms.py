"""What clients send and get, as the OpenAPI document states it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from downstream.serving.results import RESULTS
from downstream.serving.service import Service
from downstream.serving.store import Job, State

_ID = r"^[0-9a-f]{32}$"
_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"
_Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


def _whole(value: object) -> object:
    """JSON knows one kind of number: 8.0 is a whole one too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = Annotated[int, BeforeValidator(_whole)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Mask(_Form):
    """Undersampling to simulate on fully sampled data; a mask in the file wins."""

    kind: Literal["random", "equispaced", "equispaced_fraction", "magic", "magic_fraction"]
    acceleration: float = Field(4.0, gt=1, le=16, allow_inf_nan=False)
    center_fraction: float = Field(0.08, gt=0, lt=1, allow_inf_nan=False)
    seed: _Whole = Field(0, ge=0, lt=2**31)


class NewJob(_Form):
    """An upload that is to come."""

    size: _Whole = Field(ge=1, le=2**53, description="Bytes of the file.")
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    name: str = Field(
        "",
        max_length=200,
        pattern=_NO_CONTROLS,
        description="For your own list; kept until the job is erased, never logged.",
    )
    source: str = Field(
        "",
        max_length=200,
        pattern=_NO_CONTROLS,
        description="Of /v1/sources; by default the first that takes the file.",
    )
    mask: Mask | None = None


class Prompts(_Form):
    """Boxes and points on a scan."""

    boxes: list[Annotated[list[_Number], Field(min_length=6, max_length=6)]] = Field(
        [],
        max_length=64,
        description="(i0, j0, k0, i1, j1, k1): 0-based voxel indices, half-open, one object each; "
        "with world two opposite corners in RAS+ mm.",
    )
    points: list[Annotated[list[_Number], Field(min_length=4, max_length=4)]] = Field(
        [],
        max_length=256,
        description="(i, j, k, 1 inside or 0 outside), all of one object.",
    )
    world: bool = False
    source: str = Field("", max_length=200, pattern=_NO_CONTROLS)


class Problem(BaseModel):
    """What is wrong, and what to do."""

    code: str
    message: str
    fix: str


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: Problem


class ResultFile(BaseModel):
    """A file to download."""

    name: str
    what: str
    type: str
    bytes: int
    url: str


class JobAnswer(BaseModel):
    """A job."""

    id: str
    name: str
    state: State
    progress: float = Field(description="0 to 1.")
    phase: str
    size: int
    offset: int = Field(description="Bytes that have arrived: where the upload goes on.")
    created: float = Field(description="Seconds since 1970.")
    updated: float
    expires: float
    error: Problem | None
    report: dict[str, Any] = Field(description="The quality report, once done.")
    results: list[ResultFile]


class SourceAnswer(BaseModel):
    """A solver or weights."""

    name: str
    role: Literal["reconstruct", "segment", "prompt"]
    labels: dict[int, str]
    sha256: str


class JobList(BaseModel):
    """Jobs of the user."""

    jobs: list[JobAnswer]


class ServiceAnswer(BaseModel):
    """What this service does."""

    sources: list[SourceAnswer]
    upload_bytes: int
    chunk_bytes: int
    keep_h: float
    tokens: bool


class Health(BaseModel):
    """Whether it lives, or can take jobs."""

    status: Literal["ok", "stopping", "broken"]


def job_answer(service: Service, job: Job) -> JobAnswer:
    """A row for its owner."""
    files = [
        ResultFile(
            name=name, what=RESULTS[name][1], type=RESULTS[name][0], bytes=size,
            url=f"/v1/jobs/{job.id}/results/{name}",
        )
        for name, size in (service.results(job.id) if job.state == "done" else [])
    ]  # fmt: skip
    return JobAnswer(
        id=job.id,
        name=str(job.request.get("name", "")),
        state=job.state,
        progress=job.progress,
        phase=job.phase,
        size=job.size,
        offset=job.received,
        created=job.created,
        updated=job.updated,
        expires=job.updated + 3600 * service.limits.keep_h,
        error=Problem(**job.error) if job.state == "failed" else None,
        report=dict(job.report),
        results=files,
    )

"""What the service hands to the process of a job."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from downstream.serving.sources import Served

Work = Literal["do_job", "do_prompts", "do_describe", "do_mrd"]
"""Functions of `downstream.serving.work`, by name: the service itself never loads torch."""


@dataclass(frozen=True)
class JobWork:
    """What a job is made of.

    Args:
        job: Its id.
        size: Of the upload.
        request: As it was made.
        spool: Where the parts of the upload lie.
        scratch: Empty folder for what nobody keeps.
        out: Empty folder for the results.
        sources: What is served.
        key: Of the pseudonyms.
        device: Where networks run.
        boards: Folders of the leaderboards by name.
    """

    job: str
    size: int
    request: dict[str, Any]
    spool: Path
    scratch: Path
    out: Path
    sources: tuple[Served, ...]
    key: bytes
    device: str
    boards: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptWork:
    """A scan that is kept ready for prompts.

    Args:
        results: Of its job.
        served: Weights with a mask decoder.
        scratch: A folder.
        device: Where they run.
    """

    results: Path
    served: Served
    scratch: Path
    device: str


@dataclass(frozen=True)
class MrdWork:
    """An MRD stream of one client.

    Args:
        client: The connection.
        idle_s: Seconds that the client may send or take nothing.
        limit: Bytes that the client may send.
        scratch: Empty folder for what nobody keeps.
        sources: Those that reconstruct, the first by default.
        device: Where networks run.
    """

    client: socket.socket
    idle_s: float
    limit: int
    scratch: Path
    sources: tuple[Served, ...]
    device: str

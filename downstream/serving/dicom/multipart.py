"""A multipart/related body (RFC 2387, PS3.18 8.6.1) to files: by position, whatever it says."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from core_mri.errors import ServingError

MAX_PARTS = 20_000
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?\- ]{0,69}[0-9A-Za-z'()+_,./:=?\-]")
_MAX_HEAD = 4096
_COPY = 1 << 20


def boundary_of(content_type: str) -> tuple[str, str]:
    """The boundary and the type of the parts that a Content-Type names.

    Raises:
        ServingError: SERVE-33 for another media type or no boundary.
    """
    from email.message import Message

    message = Message()
    message["content-type"] = content_type
    boundary, kind = (str(message.get_param(name, "")) for name in ("boundary", "type"))
    if message.get_content_type() != "multipart/related" or not _BOUNDARY.fullmatch(boundary):
        raise ServingError(
            "SERVE-33", f"media type {content_type[:80]!r}.",
            fix='Send multipart/related; type="application/dicom"; boundary=NAME.',
        )  # fmt: skip
    return boundary, kind.lower()


def split(path: Path, boundary: str, folder: Path) -> None:
    """Write the parts to numbered files.

    Args:
        path: The body.
        boundary: Of `boundary_of`.
        folder: An empty folder.

    Raises:
        ServingError: SERVE-33 for a part of another media type, SERVE-37 for a body that is
            damaged or has too many parts.
    """
    if path.stat().st_size == 0:
        raise _damaged("is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
        for number, (start, end) in enumerate(_parts(body, boundary.encode())):
            if number >= MAX_PARTS:
                raise _damaged(f"has more than {MAX_PARTS} parts")
            with (folder / f"{number:05d}").open("wb") as out:
                for place in range(start, end, _COPY):
                    out.write(body[place : min(place + _COPY, end)])


def _parts(body: mmap.mmap, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Beginning and end of the content of each part."""
    dash = b"--" + boundary
    place = 0 if body[: len(dash)] == dash else body.find(b"\r\n" + dash) + 2
    if body[place : place + len(dash)] != dash:
        raise _damaged("does not hold its boundary")
    place += len(dash)
    while body[place : place + 2] != b"--":
        head = body.find(b"\r\n\r\n", place, place + _MAX_HEAD)
        line = body.find(b"\r\n", place, place + _MAX_HEAD)
        if head < 0 or body[place:line].strip(b" \t"):
            raise _damaged("has a part without an end of its header")
        _check_type(body[line:head])
        end = body.find(b"\r\n" + dash, head + 2)
        if end < 0:
            raise _damaged("ends within a part")
        yield head + 4, end
        place = end + 2 + len(dash)


def _check_type(head: bytes) -> None:
    for line in head.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        media = value.partition(";")[0].strip().lower()
        if name.strip().lower() == "content-type" and media != "application/dicom":
            raise ServingError(
                "SERVE-33", f"a part of media type {media[:60]!r}.",
                fix="Send DICOM files, application/dicom.",
            )  # fmt: skip


def _damaged(what: str) -> ServingError:
    return ServingError(
        "SERVE-37", f"the multipart body {what}.", fix="Send the whole request again."
    )

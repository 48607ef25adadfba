"""Accept headers of DICOMweb, and multipart answers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from downstream.serving.dicom.syntaxes import name_of
from downstream.serving.service import Refused

JSON = "application/dicom+json"
_PART = re.compile(r'(?:[^,"]|"[^"]*")+')
_FIELD = re.compile(r'(?:[^;"]|"[^"]*")+')


@dataclass(frozen=True)
class Acceptable:
    """A media type that a client takes."""

    media: str
    type: str
    syntax: str


def parse_accept(header: str) -> list[Acceptable]:
    """All media types of an Accept header."""
    found = []
    for part in _PART.findall(header or "*/*")[:50]:
        media, *fields = [field.strip() for field in _FIELD.findall(part)] or [""]
        values = {}
        for one in fields:
            name, _, value = one.partition("=")
            values[name.strip().lower()] = value.strip().strip('"')
        kind = values.get("type", "").lower()
        found.append(Acceptable(media.lower(), kind, values.get("transfer-syntax", "")))
    return found


def check_json(header: str) -> None:
    """Refuse a client that takes no DICOM JSON.

    Raises:
        Refused: 406.
    """
    taken = ("*/*", "application/*", JSON, "application/json")
    if not any(one.media in taken for one in parse_accept(header)):
        raise Refused(406, "SERVE-33", f"answers are {JSON} only.", fix=f"Send Accept: {JSON}.")


def check_multipart(header: str, kind: str, stored: Iterable[str]) -> None:
    """Refuse a client that cannot take objects as they are stored.

    Args:
        header: Accept.
        kind: Media type of the parts.
        stored: Transfer syntaxes of what would be sent.

    Raises:
        Refused: 406, naming the media type or the stored transfer syntaxes.
    """
    fitting = [
        one
        for one in parse_accept(header)
        if one.media in ("*/*", "multipart/*", "multipart/related")
        and one.type in ("", "*/*", "application/*", kind)
    ]
    if not fitting:
        raise Refused(
            406, "SERVE-33", f"answers are multipart/related with parts {kind} only.",
            fix=f'Send Accept: multipart/related; type="{kind}".',
        )  # fmt: skip
    asked = {one.syntax for one in fitting}
    missing = sorted(set(stored) - asked)
    if not asked & {"", "*"} and missing:
        raise Refused(
            406, "SERVE-34",
            f"stored in transfer syntax {', '.join(map(name_of, missing))}, and sent as stored "
            "only.",
            fix="Ask for it, or for transfer-syntax=*.",
        )  # fmt: skip


class Multipart:
    """A multipart/related answer.

    Args:
        kind: Media type of the parts.
    """

    def __init__(self, kind: str) -> None:
        self._boundary = secrets.token_hex(16)
        self.content_type = f'multipart/related; type="{kind}"; boundary={self._boundary}'
        self._kind = kind

    def body(self, parts: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
        """Bytes of the whole from transfer syntax and content of each part."""
        for syntax, content in parts:
            kind = f"{self._kind}; transfer-syntax={syntax}"
            head = f"--{self._boundary}\r\nContent-Type: {kind}\r\n"
            yield f"{head}Content-Length: {len(content)}\r\n\r\n".encode()
            yield content
            yield b"\r\n"
        yield f"--{self._boundary}--\r\n".encode()

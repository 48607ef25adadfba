"""One stream from beginning to end: configuration, header, acquisitions, close; then images.

Whatever comes in another order is refused. The raw data lies in a scratch folder until the stream
ends; nothing is kept.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from core_mri.errors import ServingError
from core_mri.files.kspace import read_kspace
from downstream.reconstruction.config import ReconstructConfig
from downstream.reconstruction.stream import reconstruct_file
from downstream.serving.mrd.images import Datatype, images_of
from downstream.serving.mrd.protocol import Kind, Message, MessageReader, close_message
from downstream.serving.mrd.scan_file import ScanFile
from downstream.serving.sources import Served

ANY_NAMES = ("", "default", "openrecon")
"""Configurations that leave the choice to the service; scanners send the last one."""

Write = Callable[[bytes], object]


def converse(
    reader: MessageReader,
    write: Write,
    sources: Sequence[Served],
    scratch: Path,
    device: str,
    *,
    sending: Callable[[bool], None] = lambda _: None,
) -> dict[str, Any]:
    """Answer one stream.

    Args:
        reader: What the client sends.
        write: Sends bytes to the client.
        sources: What may be asked for, the first by default; all reconstruct.
        scratch: An empty folder.
        device: Where networks run.
        sending: Told when an image begins and when it is out.

    Returns:
        Numbers of what was done, for a log.

    Raises:
        ServingError: SERVE-30 for messages out of order, SERVE-31 for a stream without its end,
            SERVE-32 for a configuration that is not known, SERVE-04 for too many bytes.
        CoreMRIError: What reconstructing the scan raises.
    """
    choice = _Choice(sources)
    scan = _received(reader, choice, scratch)
    if scan is None:  # it only wanted to know whether somebody is there
        write(close_message())
        return {"acquisitions": 0, "images": 0}
    images = 0
    with read_kspace(scan.path) as kspace:
        volumes = kspace.num_volumes
    for number, counters in zip(range(volumes), sorted(scan.heads), strict=True):
        config = ReconstructConfig(
            source=choice.served.source, kspace=scan.path, out=scratch / f"{number}.h5",
            volume=number, device=device,
        )  # fmt: skip
        done = reconstruct_file(config)
        heads = scan.heads[counters]
        for image in images_of(done, heads, choice.served, choice.datatype, images + 1):
            sending(True)
            write(struct.pack("<H", Kind.IMAGE) + image)
            sending(False)
            images += 1
        config.out.unlink()
    write(close_message())
    return {
        "source": choice.served.name, "acquisitions": scan.count, "images": images,
        "bytes": reader.received,
    }  # fmt: skip


def _received(reader: MessageReader, choice: _Choice, scratch: Path) -> ScanFile | None:
    """The scan, when it has been closed; None without any."""
    header, scan = False, None
    try:
        while True:
            message = reader.next()
            if message is None and reader.received == 0:
                return None
            if message is None:
                raise ServingError(
                    "SERVE-31", "the stream ended without a close message.",
                    fix="Send message 4 after the last acquisition.",
                )  # fmt: skip
            if message.kind is Kind.CLOSE:
                return scan
            if message.kind is Kind.TEXT:  # for the log of somebody else
                continue
            _check_order(message, header=header)
            if message.kind is Kind.HEADER:
                header, scan = True, ScanFile(scratch / "raw.h5", message.content)
            elif message.acquisition is not None and scan is not None:
                scan.append(message.acquisition)
            elif message.kind in (Kind.CONFIG_NAME, Kind.CONFIG_TEXT):
                choice.configure(message)
    finally:
        if scan is not None:
            scan.close()


def _check_order(message: Message, *, header: bool) -> None:
    if message.kind is Kind.IMAGE:
        raise ServingError(
            "SERVE-30", "an image; raw data is reconstructed here.",
            fix="Send acquisitions, as a scanner's emitter `raw` does.",
        )  # fmt: skip
    before = message.kind in (Kind.CONFIG_NAME, Kind.CONFIG_TEXT, Kind.HEADER)
    if before == header:
        where = "after the header" if header else "before the header"
        raise ServingError(
            "SERVE-30", f"a message {message.kind.name.lower()} {where}.",
            fix="Send configuration, header, acquisitions and close, in this order.",
        )  # fmt: skip


class _Choice:
    """Who reconstructs, and as which numbers images go out."""

    def __init__(self, sources: Sequence[Served]) -> None:
        self._sources = sources
        self.served = sources[0]
        self.datatype: Datatype = "float32"

    def configure(self, message: Message) -> None:
        """By a name, or by JSON ``{"parameters": {"config": NAME, "datatype": TYPE}}``."""
        content = message.content
        if message.kind is Kind.CONFIG_NAME:
            content = content.partition(b"\0")[0]
        try:
            text = content.decode().strip(" \0\r\n\t")
        except UnicodeDecodeError:
            raise self._unknown("that is no text") from None
        if not text.startswith("{"):
            return self._choose(text)
        try:
            parameters = json.loads(text)["parameters"]
            name, datatype = (str(parameters.get(key, "")) for key in ("config", "datatype"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._unknown("of JSON without an object `parameters`") from None
        self._choose(name)
        if datatype:
            if datatype not in get_args(Datatype):
                raise self._unknown(f"of data type {datatype[:40]!r}")
            self.datatype = datatype  # type: ignore[assignment]

    def _choose(self, name: str) -> None:
        if name in ANY_NAMES:
            return
        found = next((served for served in self._sources if served.name == name), None)
        if found is None:
            raise self._unknown(repr(name[:60]))
        self.served = found

    def _unknown(self, what: str) -> ServingError:
        names = ", ".join(served.name for served in self._sources)
        return ServingError(
            "SERVE-32",
            f"a configuration {what}; known are {names} and default, data types "
            f"{' and '.join(get_args(Datatype))}.",
            fix='Send a name, or {"parameters": {"config": NAME, "datatype": TYPE}}.',
        )

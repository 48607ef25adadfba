"""Messages of an MRD stream, read with limits.

    number  message             content
         1  configuration name  1024 bytes, padded with zeros
         2  configuration text  uint32 length, text
         3  header              uint32 length, XML
         4  close               nothing
         5  text                uint32 length, text
      1008  acquisition         340 bytes of header, trajectory (float32), samples (complex64)
      1022  image               198 bytes of header, uint64 length, attributes (XML), pixels
      1026  waveform            40 bytes of header, samples (uint32)

Nothing is allocated for a length that is claimed: it is compared with what is allowed, then bytes
are taken as they arrive.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import ServingError

_NAME_BYTES = 1024
_TEXT_BYTES = 1 << 24
"""Largest configuration, header or text; the reader of headers takes no longer one either."""
_MESSAGE_BYTES = 1 << 28
"""Largest acquisition or waveform."""
_PART = 1 << 20
_WAVEFORM = struct.Struct("<H6xQIIIHHfH2x")
_SAMPLES, _CHANNELS = 5, 6


class Kind(IntEnum):
    """Numbers of messages."""

    CONFIG_NAME = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


@dataclass(frozen=True)
class Acquisition:
    """A readout: header as `ismrmrd.hdf5` lays it out, trajectory and samples as float32."""

    head: Any
    trajectory: npt.NDArray[np.float32]
    samples: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Message:
    """What arrived."""

    kind: Kind
    content: bytes = b""
    """Of configurations, headers and texts."""
    acquisition: Acquisition | None = None


class MessageReader:
    """Takes messages from a stream.

    Args:
        read: Gives at most so many bytes, none at the end of the stream.
        limit: Bytes that the whole stream may have.
    """

    def __init__(self, read: Callable[[int], bytes], limit: int) -> None:
        from ismrmrd.hdf5 import acquisition_header_dtype

        self._read, self._limit = read, limit
        self._head = acquisition_header_dtype
        self.received = 0

    def next(self) -> Message | None:
        """The next message; None where the stream ends between two.

        Raises:
            ServingError: SERVE-04 for more than is allowed, SERVE-30 for a message that is not
                taken, SERVE-31 for one that is cut off.
        """
        start = self._some(2)
        if not start:
            return None
        number = struct.unpack("<H", start + self._exactly(2 - len(start), 2))[0]
        try:
            kind = Kind(number)
        except ValueError:
            known = ", ".join(f"{k.value} {k.name.lower()}" for k in Kind if k is not Kind.IMAGE)
            raise ServingError(
                "SERVE-30", f"a message of number {number}; known are {known}.",
                fix="Send an MRD stream of version 1.",
            ) from None  # fmt: skip
        if kind is Kind.CONFIG_NAME:
            return Message(kind, self._exactly(_NAME_BYTES, _NAME_BYTES))
        if kind in (Kind.CONFIG_TEXT, Kind.HEADER, Kind.TEXT):
            length = struct.unpack("<I", self._exactly(4, 4))[0]
            return Message(kind, self._exactly(length, _TEXT_BYTES))
        if kind is Kind.ACQUISITION:
            return Message(kind, acquisition=self._acquisition())
        if kind is Kind.WAVEFORM:
            facts = _WAVEFORM.unpack(self._exactly(_WAVEFORM.size, _WAVEFORM.size))
            self._exactly(4 * facts[_SAMPLES] * facts[_CHANNELS], _MESSAGE_BYTES)
        return Message(kind)

    def _acquisition(self) -> Acquisition:
        size = self._head.itemsize
        head = np.frombuffer(self._exactly(size, size), self._head)[0]
        samples = int(head["number_of_samples"])
        trajectory = 4 * samples * int(head["trajectory_dimensions"])
        values = 8 * samples * int(head["active_channels"])
        content = self._exactly(trajectory + values, _MESSAGE_BYTES)
        numbers = np.frombuffer(content, "<f4")
        return Acquisition(head, numbers[: trajectory // 4], numbers[trajectory // 4 :])

    def _exactly(self, number: int, most: int) -> bytes:
        if number > most or self.received + number > self._limit:
            raise ServingError(
                "SERVE-04",
                f"a message that claims {number} bytes; {min(most, self._limit - self.received)} "
                "are allowed.",
                fix="Send fewer slices in one stream, or ask whoever runs the service for a higher "
                "--upload-gb.",
            )
        content = bytearray()
        while len(content) < number:
            part = self._some(number - len(content))
            if not part:
                raise ServingError(
                    "SERVE-31",
                    f"the stream ended within a message, {number - len(content)} of {number} "
                    "bytes before its end.",
                    fix="Send the whole stream again, with a close message at its end.",
                )
            content += part
        return bytes(content)

    def _some(self, number: int) -> bytes:
        part = self._read(min(number, _PART))
        self.received += len(part)
        return part


def text_message(text: str) -> bytes:
    """A text, such as a line of a log."""
    content = text.encode()
    return struct.pack("<HI", Kind.TEXT, len(content)) + content


def error_message(code: str, message: str, fix: str) -> bytes:
    """An error, with the level in front as MRD clients expect it, and the end of the stream."""
    return text_message(f"ERROR   {code}: {message} {fix}".rstrip()) + close_message()


def close_message() -> bytes:
    """The end of a stream."""
    return struct.pack("<H", Kind.CLOSE)

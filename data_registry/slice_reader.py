"""Slices read straight from shard files, by the byte positions of the catalogue, without libhdf5.

A plain slice is one `pread` into the caller's array. A compressed one is checked against its CRC-32
(a damaged stream could crash the decoder) and decoded by the function that the HDF5 filter itself
calls, from the library in the package hdf5plugin. Both let other threads run, which libhdf5 does
not. Layout of a chunk: github.com/kiyo-masui/bitshuffle, "bshuf_h5filter.c": voxel bytes (uint64)
and block bytes (uint32), both big-endian, then the blocks.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core_mri.errors import DataError
from data_registry.schema import Codec
from data_registry.shards import Array

_HEADER = struct.Struct(">QI")
_MAX_OPEN = 512


class SlicePlace(NamedTuple):
    """One slice of a shard file, as the catalogue knows it."""

    shard: str
    byte_start: int
    num_bytes: int
    checksum: int
    codec: Codec
    shape: tuple[int, ...]
    """``(rows, columns)``, for k-space ``(coils, rows, columns)``."""
    dtype: np.dtype[Any]
    """Of the payload."""


class SliceReader:
    """Reads slices of a folder of shards; may be shared by threads, forked and pickled.

    Args:
        folder: The registry's `shards/`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start()

    def read(self, place: SlicePlace, out: Array | None = None) -> Array:
        """The payload of one slice.

        Args:
            place: Where it lies.
            out: C-contiguous array of its shape and type, to be filled instead of a new one.

        Raises:
            DataError: DATA-08 when its shard is missing or cut off, or a compressed slice damaged.
        """
        array = np.empty(place.shape, place.dtype) if out is None else out
        if place.codec == "none":
            if self._pread(place, array.data) != array.nbytes:
                raise _damaged(place.shard, "is cut off")
            return array
        scratch = self._scratch(place.num_bytes)
        stored = memoryview(scratch)[: place.num_bytes]
        if self._pread(place, stored) != place.num_bytes:
            raise _damaged(place.shard, "is cut off")
        if zlib.crc32(stored) != place.checksum:
            raise _damaged(place.shard, f"is damaged at byte {place.byte_start}")
        size, block = _HEADER.unpack_from(stored)
        if size != array.nbytes:
            raise _damaged(place.shard, f"holds a slice of another size at byte {place.byte_start}")
        used = _decoder()(
            self._local.address + _HEADER.size,
            array.ctypes.data,
            array.size,
            array.itemsize,
            block // array.itemsize,
        )
        if used != place.num_bytes - _HEADER.size:
            raise _damaged(place.shard, f"holds no bitshuffle-LZ4 at byte {place.byte_start}")
        return array

    def checksum(self, place: SlicePlace) -> int | None:
        """CRC-32 of the stored bytes as they are now; None when the file ends before them.

        Raises:
            DataError: DATA-08 when the shard is missing.
        """
        stored = memoryview(self._scratch(place.num_bytes))[: place.num_bytes]
        return zlib.crc32(stored) if self._pread(place, stored) == place.num_bytes else None

    def _pread(self, place: SlicePlace, buffer: memoryview) -> int:
        try:
            return os.preadv(self._open(place.shard).number, [buffer], place.byte_start)
        except OSError as error:
            raise _damaged(place.shard, f"cannot be read: {error.strerror}") from error

    def _open(self, shard: str) -> _OpenFile:
        """The file; it closes with its last user, so no thread reads what another put away."""
        found = self._files.get(shard)
        if found is not None:
            return found
        try:
            file = _OpenFile(self._folder / shard)
        except FileNotFoundError:
            raise DataError(
                "DATA-08",
                f"shard {shard} is missing from the registry.",
                fix="Copy it back from a backup, or run `core-mri data repair`.",
            ) from None
        with self._lock:
            while len(self._files) >= _MAX_OPEN:
                self._files.popitem(last=False)
            self._files[shard] = file
        return file

    def _scratch(self, size: int) -> bytearray:
        """A buffer of this thread, with its address in ``_local.address``."""
        scratch: bytearray | None = getattr(self._local, "scratch", None)
        if scratch is None or len(scratch) < size:
            scratch = self._local.scratch = bytearray(max(size, 1 << 18))
            self._local.address = ctypes.addressof(ctypes.c_char.from_buffer(scratch))
        return scratch

    def _start(self) -> None:
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()
        self._local = threading.local()

    def __getstate__(self) -> dict[str, object]:
        return {"_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._folder = state["_folder"]
        self._start()


class _OpenFile:
    """A file descriptor that closes with its last user."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.cache
def _decoder() -> Callable[..., int]:
    """``bshuf_decompress_lz4(in, out, elements, bytes of one, elements of a block)``."""
    import hdf5plugin

    (library,) = Path(hdf5plugin.PLUGIN_PATH).glob("*h5bshuf.*")
    function = ctypes.CDLL(os.fspath(library)).bshuf_decompress_lz4
    function.restype = ctypes.c_int64
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_size_t] * 3)
    return function


def _damaged(shard: str, what: str) -> DataError:
    return DataError(
        "DATA-08",
        f"shard {shard} of the registry {what}.",
        fix="Copy it back from a backup, or run `core-mri data repair`.",
    )

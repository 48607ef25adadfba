"""Shards: HDF5 files that hold the voxels, one dataset a volume, one chunk a slice.

A shard is written aside, flushed to the disk and renamed: a file under its final name is complete.
Nothing in it names a patient; the catalogue says what its datasets are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core_mri.errors import DataError
from data_registry.schema import Codec

if TYPE_CHECKING:
    import h5py

Array = npt.NDArray[np.generic]

PARTIAL = ".partial-"
"""Prefix of everything under construction; what carries it is no part of the registry."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_MAX_OPEN_FILES = 64
_MAX_OPEN_DATASETS = 8192


@dataclass(frozen=True)
class StoredSlice:
    """Where one slice lies in its shard file, in bytes, and the CRC-32 of what stands there."""

    byte_start: int
    num_bytes: int
    checksum: int


@dataclass(frozen=True)
class FinishedShard:
    """A complete shard file."""

    size: int
    """Bytes."""
    sha256: str
    """Of the whole file."""
    places: dict[str, list[StoredSlice]]
    """For each dataset, where its slices lie."""


class ShardWriter:
    """Write one shard; a context manager that leaves either a complete file or none.

    Args:
        folder: The registry's `shards/`.
        name: Final file name, such as ``"4f3a....h5"``.
        codec: ``"bitshuffle-lz4"`` (half the size, ~1/4 of the reading speed) or ``"none"``
            (contiguous, for copies on fast local disks).

    Raises:
        DataError: DATA-07 when the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, codec: Codec = "bitshuffle-lz4") -> None:
        self.path = folder / name
        self._partial = folder / f"{PARTIAL}{name}"
        self.codec = codec
        self._sink: _Sink | None = None
        self._file: h5py.File | None = None

    def add(self, dataset: str, array: Array, affine: npt.NDArray[np.float64]) -> None:
        """Append one volume.

        Args:
            dataset: Its name in the shard.
            array: Voxels, shape ``(slices, rows, columns)``; integers and float32 keep their type.
            affine: ``(4, 4)``, kept beside the voxels: a shard can be read without catalogue.
        """
        file = self._open()
        layout = self._layout(array.shape)
        stored = file.create_dataset(dataset, data=np.ascontiguousarray(array), **layout)
        stored.attrs["affine"] = affine
        self._flush()

    def stream(
        self,
        dataset: str,
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic],
        slices: Iterable[Array],
    ) -> None:
        """Append a volume that is never in memory whole.

        Args:
            dataset: Its name in the shard.
            shape: Slices first.
            dtype: Type of the voxels.
            slices: One array of ``shape[1:]`` a slice, in order.
        """
        stored = self._open().create_dataset(dataset, shape, dtype, **self._layout(shape))
        for index, voxels in enumerate(slices):
            stored[index] = voxels
            self._raise_if_full()
        self._flush()

    def copy(self, source: h5py.File, dataset: str) -> None:
        """Append a dataset of another shard, chunk by chunk as it is stored, with its notes."""
        source.copy(source[dataset], self._open(), name=dataset)
        self._flush()

    def name(self, old: str, new: str, attributes: Mapping[str, object]) -> None:
        """Rename a dataset and note attributes beside it."""
        file = self._open()
        file.move(old, new)
        for key, value in attributes.items():
            file[new].attrs[key] = value
        self._flush()

    def discard(self, dataset: str) -> None:
        """Drop a dataset; what is written next takes its place in the file."""
        file = self._open()
        if dataset in file:
            del file[dataset]

    def _layout(self, shape: tuple[int, ...]) -> dict[str, Any]:
        import hdf5plugin

        if self.codec == "none":
            return {}
        return {"chunks": (1, *shape[1:]), **hdf5plugin.Bitshuffle(cname="lz4")}

    def _open(self) -> h5py.File:
        import h5py

        try:
            if self._sink is None:
                self.path.parent.mkdir(exist_ok=True)
                self._sink = _Sink(self._partial)
        except OSError as error:
            raise cannot_write(error, "a shard") from error
        if self._file is None:
            self._file = h5py.File(self._sink, "w", libver="latest")
        return self._file

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()
        self._raise_if_full()

    def finish(self) -> FinishedShard | None:
        """Close, flush to the disk and give the file its name.

        Returns:
            What was written; None when nothing was added.
        """
        if self._file is None or self._sink is None:
            return None
        spans = {name: _spans(stored) for name, stored in self._file.items()}
        self._file.close()
        self._file = None
        self._raise_if_full()
        try:
            descriptor = self._sink.fileno()
            os.fsync(descriptor)
            finished = FinishedShard(
                os.fstat(descriptor).st_size,
                file_hash(self._partial),
                {
                    name: [
                        StoredSlice(start, size, zlib.crc32(os.pread(descriptor, size, start)))
                        for start, size in stored
                    ]
                    for name, stored in spans.items()
                },
            )
            self._sink.close()
            self._partial.rename(self.path)
            fsync(self.path.parent)
        except OSError as error:
            raise cannot_write(error, "a shard") from error
        return finished

    def _raise_if_full(self) -> None:
        if self._sink is not None and self._sink.error is not None:
            raise cannot_write(self._sink.error, "a shard") from self._sink.error

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._sink is not None:
            self._sink.close()
        self._partial.unlink(missing_ok=True)


class ShardReader:
    """Read volumes and slices of a folder of shards.

    Files are opened on first use and stay open, separately in each process: a copy that was pickled
    or forked starts without open files, as HDF5 asks for.

    Args:
        folder: The registry's `shards/`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forget()

    def read(self, shard: str, dataset: str) -> Array:
        """All voxels of a dataset, ``(slices, rows, columns)``; k-space has coils before rows.

        Raises:
            DataError: DATA-08 when the shard or the dataset is missing or damaged.
        """
        with _readable(shard, dataset):
            array: Array = self._stored(shard, dataset).dataset[:]
            return array

    def read_slice(self, shard: str, dataset: str, index: int) -> Array:
        """One slice, ``(rows, columns)`` or ``(coils, rows, columns)``: one chunk, nothing else.

        Raises:
            DataError: DATA-08 as `read`.
            IndexError: When the volume has no such slice.
        """
        with _readable(shard, dataset):
            stored = self._stored(shard, dataset)
            num_slices, *rest = stored.shape
            if not 0 <= index < num_slices:
                raise IndexError(f"slice {index} of a volume of {num_slices}")
            if stored.byte_start is None:
                compressed: Array = stored.dataset[index]
                return compressed
            # Uncompressed slices need nothing of HDF5: twice as fast as through the library.
            array = np.empty(rest, stored.dtype)
            start = stored.byte_start + index * array.nbytes
            if os.preadv(stored.descriptor, [array.data], start) != array.nbytes:
                raise OSError("the file is too short")
            return array

    def attributes(self, shard: str, dataset: str) -> dict[str, Any]:
        """What is noted beside a dataset.

        Raises:
            DataError: DATA-08 as `read`.
        """
        with _readable(shard, dataset):
            return dict(self._stored(shard, dataset).dataset.attrs)

    def shape(self, shard: str, dataset: str) -> tuple[int, ...]:
        """Shape of a dataset, slices first.

        Raises:
            DataError: DATA-08 as `read`.
        """
        with _readable(shard, dataset):
            return self._stored(shard, dataset).shape

    def codec(self, shard: str, dataset: str) -> Codec:
        """How the slices of a dataset are stored.

        Raises:
            DataError: DATA-08 as `read`.
        """
        with _readable(shard, dataset):
            return (
                "none" if self._stored(shard, dataset).dataset.chunks is None else "bitshuffle-lz4"
            )

    def has(self, shard: str, dataset: str) -> bool:
        """Whether a shard holds a dataset.

        Raises:
            DataError: DATA-08 when the shard is missing or damaged.
        """
        with _readable(shard, dataset):
            return dataset in self._file(shard)

    def _stored(self, shard: str, dataset: str) -> _Stored:
        if self._process != os.getpid():
            self._forget()
        key = (shard, dataset)
        if key in self._datasets:
            return self._datasets[key]  # opening one costs ten times the reading of a slice
        if len(self._datasets) >= _MAX_OPEN_DATASETS:
            self._datasets.clear()
        file = self._file(shard)
        self._datasets[key] = _Stored(file[dataset], file.id.get_vfd_handle())
        return self._datasets[key]

    def _file(self, shard: str) -> h5py.File:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        import h5py
        import hdf5plugin  # noqa: F401  registers the decoder

        path = self._folder / shard
        if not path.is_file():
            raise DataError(
                "DATA-08",
                f"shard {shard} is missing from the registry.",
                fix="Copy it back from a backup, or ingest its source again.",
            )
        if len(self._files) >= _MAX_OPEN_FILES:
            oldest, file = self._files.popitem(last=False)
            for key in [key for key in self._datasets if key[0] == oldest]:
                del self._datasets[key]
            file.close()
        # Slices are read whole and in random order: a chunk cache would only be copied through.
        self._files[shard] = h5py.File(path, "r", rdcc_nbytes=0)
        return self._files[shard]

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[str, h5py.File] = OrderedDict()
        self._datasets: dict[tuple[str, str], _Stored] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"_folder": self._folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._folder = state["_folder"]
        self._forget()


class _Stored:
    """An open dataset, with what h5py would look up again at every access."""

    def __init__(self, dataset: h5py.Dataset, descriptor: int) -> None:
        self.dataset = dataset
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[np.generic] = dataset.dtype
        self.descriptor = descriptor
        self.byte_start: int | None = None if dataset.chunks else dataset.id.get_offset()


@contextlib.contextmanager
def _readable(shard: str, dataset: str) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError) as error:
        raise DataError(
            "DATA-08",
            f"shard {shard} of the registry cannot be read at {dataset}: {type(error).__name__}.",
            fix="Copy the shard again from a backup, or ingest its source again.",
        ) from error


class _Sink(io.RawIOBase):
    """The file under an HDF5 writer, which hides a full disk from the library.

    HDF5 2.0 crashes the process when it closes a file whose writes fail. So a failed write is kept
    in `error`, what follows is dropped, and the writer raises once the library is out of the way.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._position = 0
        self.error: OSError | None = None

    def fileno(self) -> int:
        return self._descriptor

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (os.fstat(self._descriptor).st_size if base is None else base)
        return self._position

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view:
            data = os.pread(self._descriptor, len(view), self._position)
            view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            length, written = len(view), 0
            while written < length and self.error is None:
                try:
                    written += os.pwrite(self._descriptor, view[written:], self._position + written)
                except OSError as error:
                    self.error = error
        self._position += length
        return length

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._descriptor, size)
            except OSError as error:
                self.error = error
        return size

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def cannot_write(error: OSError, what: str) -> Exception:
    """DATA-07 for a full or read-only disk; any other error is returned as it is."""
    if error.errno not in _NO_SPACE:
        return error
    return DataError(
        "DATA-07",
        f"{what} cannot be written: {os.strerror(error.errno)}.",
        fix="Free space or choose another folder, then run the same command again: "
        "what was committed stays and is not read twice.",
    )


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def _spans(stored: h5py.Dataset) -> list[tuple[int, int]]:
    """First byte and length of each slice."""
    num_slices = stored.shape[0]
    if stored.chunks is None:
        start, length = stored.id.get_offset(), stored.nbytes // num_slices
        return [(start + i * length, length) for i in range(num_slices)]
    spans: dict[int, tuple[int, int]] = {}

    def remember(chunk: Any) -> None:
        spans[chunk.chunk_offset[0]] = (chunk.byte_offset, chunk.size)

    stored.id.chunk_iter(remember)
    return [spans[i] for i in range(num_slices)]

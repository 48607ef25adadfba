"""HDF5 files of strangers: opened so that nothing outside the file is read and nothing explodes.

HDF5 can point at other files by external links, virtual datasets and external storage, and its
compressed chunks can state any size. All of it is looked for before the first value is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core_mri.errors import DataError
from core_mri.files.limits import MAX_RATIO, MAX_UNBELIEVED_BYTES

if TYPE_CHECKING:
    import h5py

_MAX_OBJECTS = 10_000
_MAX_DEPTH = 8


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading and check everything in it.

    Raises:
        DataError: DATA-01 cannot be opened, DATA-02 truncated or damaged, DATA-03 no HDF5, DATA-13
            for links and datasets that lead to other files, or that would unpack to far more than
            is stored.
    """
    import h5py

    try:
        with path.open("rb") as raw:
            start = raw.read(8)
    except OSError as error:
        raise DataError("DATA-01", f"{path}: cannot be opened ({error.strerror}).") from None
    if start != b"\x89HDF\r\n\x1a\n":
        code = "DATA-03" if start else "DATA-02"
        raise DataError(code, f"{path}: not an HDF5 file.")
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError):
        raise DataError("DATA-02", f"{path}: truncated or damaged HDF5 file.") from None
    try:
        _check_group(path, file, 0, [0])
    except DataError:
        file.close()
        raise
    except Exception as error:
        # Damaged structures make h5py raise nearly any exception.
        file.close()
        raise DataError("DATA-02", f"{path}: damaged HDF5 ({type(error).__name__}).") from None
    return file


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """What h5py raises on damaged values becomes DATA-02."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        # Decoders raise nearly any exception on damaged bytes.
        raise DataError("DATA-02", f"{path}: damaged ({type(error).__name__}).") from None


def _check_group(path: Path, group: h5py.Group, depth: int, count: list[int]) -> None:
    import h5py

    if depth > _MAX_DEPTH:
        raise DataError("DATA-13", f"{path}: groups nested deeper than {_MAX_DEPTH}.")
    for name in group:
        count[0] += 1
        if count[0] > _MAX_OBJECTS:
            raise DataError("DATA-13", f"{path}: more than {_MAX_OBJECTS} objects.")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
            raise DataError(
                "DATA-13",
                f"{path}: holds {kind} link; nothing was read through it.",
                fix="Copy the data it points at into the file (h5repack, h5copy).",
            )
        item = group[name]
        if isinstance(item, h5py.Dataset):
            _check_dataset(path, item)
        elif isinstance(item, h5py.Group):
            _check_group(path, item, depth + 1, count)


def _check_dataset(path: Path, dataset: h5py.Dataset) -> None:
    if dataset.is_virtual or dataset.external:
        raise DataError(
            "DATA-13",
            f"{path}: a dataset whose values lie in other files; nothing was read.",
            fix="Copy the data into the file.",
        )
    if dataset.shape is None or not dataset.shape:
        return
    size = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if size > MAX_UNBELIEVED_BYTES and size > MAX_RATIO * max(stored, 1):
        raise DataError(
            "DATA-13",
            f"{path}: a dataset of {size} bytes of which {stored} are stored.",
            fix="Store it without compression if it is what it says.",
        )
    if dataset.chunks is None and stored < size and dataset.dtype.kind != "O":
        raise DataError("DATA-02", f"{path}: {stored} of {size} bytes of a dataset are there.")

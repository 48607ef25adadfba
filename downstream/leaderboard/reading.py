"""A submission to arrays: a zip or a folder that a stranger made, believed in nothing.

Its files are copied under names of ours, links are never followed, HDF5 is searched for links and
values in other files before a value is read, and an array is read only once its size is known to be
the one that the task asks for. Nothing of it is unpickled or run.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from core_mri.errors import DataError, GeometryError, LeaderboardError
from core_mri.files.hdf5 import damage_of, open_hdf5
from core_mri.files.nifti import read_nifti
from core_mri.volume import Volume
from downstream.leaderboard.task import TaskConfig

if TYPE_CHECKING:
    from downstream.leaderboard.board import Array, Board, Case

DATASET = "reconstruction"
_PIECE = 1 << 20
_SLACK = {"reconstruction": 1 << 24, "segmentation": 1 << 20}
"""Bytes of a file beside its values: headers, other small datasets."""
_BYTES = {"reconstruction": 2 * 8, "segmentation": 8}
"""Of a value at most: float64 and as much again, or int64."""


class Submission:
    """Files of a submission, copied to a folder of ours.

    Args:
        board: What it is for.
        source: A zip, or a folder.
        scratch: Empty folder for the copies; whoever made it deletes it.

    Raises:
        LeaderboardError: BOARD-02 for missing, further or doubled files, links and damaged zips.
    """

    def __init__(self, board: Board, source: Path, scratch: Path) -> None:
        self._board, self._scratch = board, scratch
        self._index = {case.name: number for number, case in enumerate(board.cases)}
        status = source.lstat() if os.path.lexists(source) else None
        if status is None or stat.S_ISLNK(status.st_mode):
            raise _wrong("there is no such file or folder, or it is a link")
        if stat.S_ISDIR(status.st_mode):
            self._copy_folder(source)
        else:
            self._copy_zip(source)

    def read(self, case: Case) -> Array:
        """The array of a case, of the shape that the task asks for.

        Raises:
            LeaderboardError: BOARD-03 for another shape, grid or type, values that are not finite,
                no structures of the task, or a file that cannot be read.
            DataError: DATA-13 for a file that leads to others.
        """
        path = self._place(case.name)
        try:
            array, affine = read_case(self._board.task, path, dataset=DATASET, shape=case.shape)
        except (DataError, GeometryError) as error:
            message = error.message.replace(str(path), case.name)
            if error.code == "DATA-13":
                raise DataError(error.code, message, fix=error.fix) from None
            raise LeaderboardError("BOARD-03", message, fix=error.fix) from None
        if case.affine:
            wanted = _grid(case.shape, case.affine)
            if not _grid(array.shape, affine).same_grid(wanted):
                raise LeaderboardError(
                    "BOARD-03",
                    f"{case.name}: its voxels lie elsewhere than those of the scan.",
                    fix="Write the mask with the affine of the scan.",
                )
        return array

    def _place(self, name: str) -> Path:
        ending = ".h5" if self._board.task.kind == "reconstruction" else ".nii"
        return self._scratch / f"{self._index[name]:04d}{ending}"

    def _most(self, name: str) -> int:
        """Bytes that a file may have."""
        values = int(np.prod(self._board.cases[self._index[name]].shape))
        return _BYTES[self._board.task.kind] * values + _SLACK[self._board.task.kind]

    def _check_names(self, names: list[str]) -> None:
        twice = sorted(name for name, number in Counter(names).items() if number > 1)
        further = sorted(set(names) - set(self._index))
        missing = sorted(set(self._index) - set(names))
        for what, found in (("twice", twice), ("not asked for", further), ("missing", missing)):
            if found:
                shown = ", ".join(repr(name[:60]) for name in found[:3])
                raise _wrong(f"{len(found)} files {what}, such as {shown}")

    def _copy_folder(self, folder: Path) -> None:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_symlink() or not entry.is_file(follow_symlinks=False):
                raise _wrong(f"{entry.name[:60]!r} is a link or no plain file")
        self._check_names([entry.name for entry in entries])
        for entry in entries:
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                self._copy(entry.name, file)

    def _copy_zip(self, source: Path) -> None:
        try:
            with zipfile.ZipFile(source) as archive:
                members = archive.infolist()
                for member in members:
                    if stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1:
                        raise _wrong(f"{member.filename[:60]!r} is a link or encrypted")
                self._check_names([member.filename for member in members])
                for member in members:
                    with archive.open(member) as file:
                        self._copy(member.filename, file)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError):
            raise _wrong("it is no zip, or a damaged one") from None

    def _copy(self, name: str, file: IO[bytes]) -> None:
        left = self._most(name)
        with self._place(name).open("wb") as out:
            for piece in _pieces(file):
                left -= len(piece)
                if left < 0:
                    raise _wrong(f"{name!r} has more than {self._most(name)} bytes")
                out.write(piece)


def read_case(
    task: TaskConfig, path: Path, *, dataset: str, shape: tuple[int, ...] | None = None
) -> tuple[Array, tuple[float, ...]]:
    """An array of a task, and its affine (empty for reconstructions).

    Args:
        task: The task.
        path: A file.
        dataset: Of HDF5.
        shape: That it must have; of reconstructions also the middle square of its width. None
            takes any.

    Returns:
        Reconstructions ``[slices, H, W]`` float32, masks ``[i, j, k]`` uint8.

    Raises:
        DataError: What `open_hdf5` and `read_nifti` raise, and DATA-03, DATA-04, DATA-06 for values
            that the task cannot have.
    """
    if task.kind == "reconstruction":
        return _read_images(path, dataset, shape), ()
    volume = read_nifti(path, "label")
    array = volume.array
    if array.ndim != 3 or (shape is not None and array.shape != shape):
        raise DataError(
            "DATA-03", f"{path}: has shape {array.shape}, {shape or '3D'} is asked for."
        )
    if int(array.min()) < 0 or int(array.max()) > len(task.structures):
        raise DataError(
            "DATA-06",
            f"{path}: holds values {int(array.min())} to {int(array.max())}; 0 to "
            f"{len(task.structures)} are structures of the task.",
        )
    return array.astype(np.uint8), tuple(float(x) for x in volume.affine.ravel())


def _read_images(path: Path, dataset: str, shape: tuple[int, ...] | None) -> Array:
    import h5py

    with open_hdf5(path) as file, damage_of(path):
        item = file.get(dataset)
        if not isinstance(item, h5py.Dataset):
            raise DataError("DATA-03", f"{path}: has no dataset `{dataset}`.")
        allowed = {item.shape} if shape is None else {shape, _square(shape)}
        if item.dtype.kind != "f" or len(item.shape) != 3 or item.shape not in allowed:
            raise DataError(
                "DATA-03",
                f"{path}: `{dataset}` has shape {item.shape} and type {item.dtype}; "
                f"{' or '.join(map(str, sorted(allowed)))} of floats is asked for.",
            )
        array = np.asarray(item[...], np.float32)
    if not np.isfinite(array).all():
        raise DataError("DATA-04", f"{path}: holds values that are not finite.")
    return array


def _square(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What fastMRI scores of a reference: its middle, as high as it is wide at most."""
    side = min(shape[1:])
    return (shape[0], side, side)


def _grid(shape: tuple[int, ...], affine: tuple[float, ...]) -> Volume:
    """A volume of a geometry, without voxels of its own."""
    return Volume(np.broadcast_to(np.uint8(0), shape), np.reshape(affine, (4, 4)), "label")


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _wrong(what: str) -> LeaderboardError:
    return LeaderboardError(
        "BOARD-02",
        f"the submission cannot be taken: {what}.",
        fix="Send the files of the task and nothing else, such as by `zip -j submission.zip "
        "FOLDER/*`.",
    )

"""Where checkpoints live: a folder that all workers see, or an object store."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from core_mri.errors import CoreMRIError, DataError
from core_mri.object_store import open_store
from core_mri.runs import writing


class Storage(Protocol):
    """Files named by relative paths with slashes; a file appears whole or not at all."""

    name: str
    """For messages."""

    def files(self) -> list[str]:
        """Names of all files."""

    def writing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path of this machine to write; at the end of the block the file is in the storage.

        Raises:
            DataError: DATA-07 when it cannot be written.
        """

    def reading(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path of this machine to read, as long as the block lasts.

        Raises:
            OSError: When there is no such file in a folder.
            DataError: DATA-07 when there is none in a store, or it does not answer.
        """

    def delete(self, folder: str) -> None:
        """Delete a folder with all its files; there need not be one."""


def open_storage(place: str | Path) -> Storage:
    """The storage at `place`.

    Args:
        place: A folder, which is made when first written to, or a URL such as
            ``s3://bucket/runs/one``.

    Raises:
        ConfigError: CONFIG-06 when a URL needs a package that is not installed.
    """
    return _Store(str(place)) if "://" in str(place) else _Folder(Path(place))


class _Folder:
    """A folder of a local disk or of a network file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)

    def files(self) -> list[str]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return [path.relative_to(self.root).as_posix() for path in found]

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        path = self.root / name
        aside = path.with_name(f".{path.name}.partial")
        with writing(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            for written in (aside, path.parent):  # the bytes, then the name
                descriptor = os.open(written, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                if written is aside:
                    aside.replace(path)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        yield self.root / name

    def delete(self, folder: str) -> None:
        shutil.rmtree(self.root / folder, ignore_errors=True)


class _Store:
    """An object store through fsspec; files pass through the temporary folder of this machine."""

    def __init__(self, url: str) -> None:
        self.name = url
        self._files, self._root = open_store(url)

    def files(self) -> list[str]:
        with self._errors():
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._root)
            except FileNotFoundError:
                return []
        return [str(PurePosixPath(path).relative_to(self._root)) for path in found]

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="core-mri-") as folder:
            aside = Path(folder, "file")
            with writing(aside):
                yield aside
            with self._errors():
                self._files.put_file(str(aside), f"{self._root}/{name}")

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="core-mri-") as folder:
            copy = Path(folder, "file")
            with self._errors():
                self._files.get_file(f"{self._root}/{name}", str(copy))
            yield copy

    def delete(self, folder: str) -> None:
        with self._errors(), contextlib.suppress(FileNotFoundError):
            self._files.rm(f"{self._root}/{folder}", recursive=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Back ends of fsspec raise errors of their own families, without a common class."""
        try:
            yield
        except CoreMRIError:
            raise
        except Exception as error:
            raise DataError(
                "DATA-07",
                f"{self.name}: {type(error).__name__}: {error}",
                fix="Look at address, bucket, credentials and network of the object store.",
            ) from error

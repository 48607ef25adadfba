"""Object stores such as ``s3://bucket/folder``, through fsspec."""

from __future__ import annotations

from typing import Any

from core_mri.errors import ConfigError


def open_store(url: str) -> tuple[Any, str]:
    """The file system of `url`, and the path in it without a slash at the end.

    Args:
        url: In the words of fsspec; the credentials come from the environment of its back end.

    Raises:
        ConfigError: CONFIG-06 when fsspec or what it needs for the store is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigError(
            "CONFIG-06",
            "object stores need the package fsspec.",
            fix='Install it with pip install "core-mri[store]".',
        ) from None
    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError("CONFIG-06", f"{url}: {error}.") from None
    return files, str(root).rstrip("/")

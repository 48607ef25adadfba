"""Copies of an export in an object store, and the store's own signed URLs, through fsspec.

Such a URL works until it expires, whatever the registry says meanwhile: revoking it means deleting
the copies, so each link has copies of its own.
"""

from __future__ import annotations

from pathlib import Path

from core_mri.errors import ConfigError, DataError
from core_mri.object_store import open_store


def upload(url: str, folder: Path, names: list[str], seconds: int) -> dict[str, str]:
    """Copy files to a store and sign a URL for each.

    Args:
        url: Where to, in the words of fsspec, such as ``s3://bucket/shares/NONCE``.
        folder: Where the files are.
        names: Their paths below it.
        seconds: How long the URLs work.

    Returns:
        Path to URL.

    Raises:
        ConfigError: CONFIG-06 when fsspec or what it needs for the store is not installed,
            CONFIG-05 for a store that signs nothing.
        DataError: DATA-07 when the store refuses.
    """
    files, root = open_store(url)
    signed = {}
    try:
        for name in names:
            target = f"{root}/{name}"
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(folder / name), target)
            signed[name] = str(files.sign(target, expiration=seconds))
    except NotImplementedError:
        delete(url)
        raise ConfigError(
            "CONFIG-05", f"{url.partition('://')[0]} cannot sign URLs; S3, GCS and Azure can."
        ) from None
    except OSError as error:
        delete(url)
        raise DataError("DATA-07", f"{url}: {type(error).__name__} while uploading.") from error
    return signed


def delete(url: str) -> None:
    """Delete the copies of a link; there need not be any.

    Raises:
        ConfigError: As `upload`.
    """
    files, root = open_store(url)
    if files.exists(root):
        files.rm(root, recursive=True)

"""Uploads on disk: each part sealed by AES-GCM with a key of its job that is thrown away.

    SPOOL/JOB/key            32 bytes, mode 600
    SPOOL/JOB/OFFSET.part    nonce and sealed bytes of the upload from OFFSET on

Job and offset are authenticated, so that parts cannot be exchanged. Once the key is unlinked the
parts are noise, whatever a backup keeps of them. What a disk keeps of the unlinked key is for its
own encryption to hide.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from core_mri.errors import ServingError
from core_mri.runs import write_atomically, writing

_NONCE = 12  # bytes, NIST SP 800-38D


class Spool:
    """Sealed uploads below a folder.

    Args:
        folder: Made with mode 700.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)

    def open(self, job: str) -> None:
        """Make the place and the key of a job."""
        place = self.folder / job
        with writing(place):
            place.mkdir(mode=0o700, exist_ok=True)
            if not (place / "key").exists():
                descriptor = os.open(place / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(32))
                    file.flush()
                    os.fsync(file.fileno())

    def append(self, job: str, offset: int, content: bytes) -> None:
        """Seal a part; it is on disk when this returns. The same part may come again.

        Raises:
            DataError: DATA-07 when it cannot be written.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(_NONCE)
        sealed = AESGCM(self._key(job)).encrypt(nonce, content, _bound(job, offset))
        with writing(self.folder):
            write_atomically(self._part(job, offset), nonce + sealed)

    def read(self, job: str, size: int) -> Iterator[bytes]:
        """The parts of a whole upload, in order.

        Raises:
            ServingError: SERVE-10 when a part is missing or is not what was written.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        offset = 0
        try:
            cipher = AESGCM(self._key(job))
            while offset < size:
                sealed = self._part(job, offset).read_bytes()
                content = cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], _bound(job, offset))
                offset += len(content)
                yield content
        except (OSError, InvalidTag, ValueError):
            raise ServingError(
                "SERVE-10", "the stored upload is damaged.", fix="Upload the file again."
            ) from None

    def discard(self, job: str) -> None:
        """Throw the key away, then the parts; nothing happens when they are gone."""
        place = self.folder / job
        (place / "key").unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)

    def jobs(self) -> list[str]:
        """Those that have a place."""
        return [path.name for path in self.folder.iterdir()]

    def _key(self, job: str) -> bytes:
        return (self.folder / job / "key").read_bytes()

    def _part(self, job: str, offset: int) -> Path:
        return self.folder / job / f"{offset:015d}.part"


def _bound(job: str, offset: int) -> bytes:
    return f"{job}:{offset}".encode()

"""What the holder of a link may do, without HTTP: read agreements, accept, list and fetch files."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from core_mri.errors import DataError
from data_registry.governance import agreements
from data_registry.governance.downloads import Downloads
from data_registry.governance.share_answer import OpenFile

if TYPE_CHECKING:
    from data_registry.governance.sharing import Sharing

_HASH_PIECE = 1 << 20


@dataclass(frozen=True)
class Offered:
    """An agreement as its reader sees it."""

    source: str
    version: str
    sha256: str
    days: int
    """How long an acceptance lasts; 0 for ever."""
    text: str
    standing: agreements.Standing


class Desk:
    """Links and files of one registry, for many threads.

    Args:
        sharing: Checks links.
        downloads: Counts.
        per_link: Files that one link may fetch at once.
    """

    def __init__(self, sharing: Sharing, downloads: Downloads, per_link: int) -> None:
        self._sharing, self._downloads, self._per_link = sharing, downloads, per_link
        self._registry_lock = threading.Lock()  # a catalogue has one reader at a time
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._hashes: dict[tuple[int, ...], str] = {}
        self._hashing: dict[tuple[int, ...], threading.Lock] = {}

    def offers(self, link: str) -> list[Offered]:
        """The agreements of the sources behind a link, accepted or not.

        Raises:
            DataError: DATA-23, DATA-24 as `Sharing.holder`.
        """
        with self._registry_lock:
            issued, state = self._sharing.holder(link, time.time())
            registry, found = self._sharing.registry, []
            for source in issued.sources:
                one = agreements.agreement_of(registry, source, state)
                found.append(Offered(
                    one.source, one.version, one.sha256, one.days,
                    agreements.text_of(registry, one),
                    agreements.standing(issued.user, one, state, time.time()),
                ))  # fmt: skip
        return found

    def accept(self, link: str, source: str, sha256: str) -> None:
        """The holder accepts an agreement, named by its hash, so that it is the one that was read.

        Raises:
            DataError: DATA-23, DATA-24 as `Sharing.holder`; DATA-25 for another agreement than the
                present one of a source of the link; DATA-07 when it cannot be noted.
        """
        with self._registry_lock:
            issued, state = self._sharing.holder(link, time.time())
            registry = self._sharing.registry
            present = (
                agreements.agreement_of(registry, source, state)
                if source in issued.sources
                else None
            )
            if present is None or present.sha256 != sha256:
                raise DataError(
                    "DATA-25",
                    "this is not the present agreement of a source of the link.",
                    fix="Read the agreements of the link again.",
                )
            agreements.accept(registry, issued.user, source, present.version, nonce=issued.nonce)

    def check(self, link: str) -> None:
        """See that a link still works.

        Raises:
            DataError: As `Sharing.check`.
        """
        with self._registry_lock:
            self._sharing.check(link, time.time())

    def files(self, link: str) -> list[dict[str, Any]]:
        """Name and bytes of every file that the link covers.

        Raises:
            DataError: As `Sharing.check`.
        """
        with self._registry_lock:
            grant = self._sharing.check(link, time.time())
        sizes = ((name, grant.file(name).stat().st_size) for name in grant.names())
        return [{"name": name, "bytes": size} for name, size in sizes]

    def open(self, link: str, name: str) -> tuple[OpenFile, str, str]:
        """A file that the link covers, with its SHA-256 and the nonce of the link.

        Raises:
            DataError: As `Sharing.check`; DATA-24 for any other file.
        """
        with self._registry_lock:
            issued, _ = self._sharing.holder(link, time.time())
            path = self._sharing.check(link, time.time()).file(name)
        plain = PurePosixPath(name)
        if plain.as_posix() != name or ".." in plain.parts:  # one file has one name
            raise DataError("DATA-24", "the link does not cover this file, or there is none.")
        try:
            file = OpenFile(path)
        except OSError:
            raise DataError("DATA-24", "the file cannot be opened any more.") from None
        try:
            return file, self._sha256(file), issued.nonce
        except BaseException:
            file.close()
            raise

    def begin(self, nonce: str, name: str) -> None:
        """Count an answer with content that begins; `end` has to follow.

        Raises:
            DataError: DATA-47 when the link fetches as many files already as it may.
        """
        with self._lock:
            if self._running[nonce] >= self._per_link:
                raise DataError(
                    "DATA-47",
                    f"the link fetches {self._per_link} files already, which is the limit.",
                    fix="Wait for one of them to end.",
                )
            self._running[nonce] += 1
        self._downloads.began(nonce, name)

    def end(self, nonce: str, name: str, sent: int, *, completed: bool) -> None:
        """Count what an answer sent."""
        with self._lock:
            self._running[nonce] -= 1
            if not self._running[nonce]:
                del self._running[nonce]
        self._downloads.ended(nonce, name, sent, completed=completed)

    def _sha256(self, file: OpenFile) -> str:
        """Read once for each state of a file, then known until the server stops."""
        identity = file.identity
        with self._once(identity):
            if identity not in self._hashes:
                digest, place = hashlib.sha256(), 0
                while place < file.size:
                    piece = file.read(place, _HASH_PIECE)
                    digest.update(piece)
                    place += len(piece)
                self._hashes[identity] = digest.hexdigest()
        return self._hashes[identity]

    @contextmanager
    def _once(self, identity: tuple[int, ...]) -> Iterator[None]:
        with self._lock:
            lock = self._hashing.setdefault(identity, threading.Lock())
        with lock:
            yield

"""Sharing: an export that may be handed on, to a user who agreed, through a link that ends.

`Sharing.check` is what a service calls before it hands over a file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError, DataError
from data_registry import cohorts
from data_registry.deidentify.identifiers import load_key
from data_registry.export import MANIFEST, MARK
from data_registry.governance import object_store, share_ledger
from data_registry.governance.agreements import check_accepted
from data_registry.governance.links import Link, parse, sign
from data_registry.governance.propagation import check_export, registered_sources
from data_registry.governance.uses import record_use
from data_registry.release import check_release

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow

BASE = "core-mri:share"
"""Where links point without a service."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What the holder of a good link may have."""

    user: str
    cohort: str
    folder: Path
    """The export."""
    path: str
    """What of it; empty for all."""
    expires: int

    def file(self, name: str) -> Path:
        """A file that the link covers.

        Args:
            name: Path below the export.

        Raises:
            DataError: DATA-24 for any other file.
        """
        root = self.folder.resolve()
        try:
            found, covered = (root / name).resolve(), (root / self.path).resolve()
            there = found.is_file()
        except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, links in a circle
            there, found, covered = False, root, root
        inside = covered in (found, *found.parents) and root in found.parents
        if not (there and inside) or found.name == MARK:
            raise DataError("DATA-24", "the link does not cover this file, or there is none.")
        return found

    def names(self) -> list[str]:
        """All files that the link covers, paths below the export."""
        return [name for name in _names(self.folder) if _covers(self, name)]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What was issued."""

    nonce: str
    """Name of the link, for `Sharing.revoke`."""
    link: str
    """The signed link."""
    urls: dict[str, str]
    """With an object store: path to its own signed URL."""


class Sharing:
    """Links to the exports of a registry.

    Args:
        registry: The registry.
        key: Key of links; not the project key, so that a service need not have that.
    """

    def __init__(self, registry: Registry, key: bytes) -> None:
        self.registry = registry
        self._key = key

    @classmethod
    def open(cls, registry: Registry, key_file: Path | None = None) -> Sharing:
        """With the key of a file, ``<registry>.links.key`` beside it when None, made when missing.

        Raises:
            ConfigError: What `load_key` raises.
        """
        path = registry.path.with_name(f"{registry.path.name}.links.key")
        return cls(registry, load_key(key_file or path, create=key_file is None))

    def issue(
        self,
        cohort: str,
        user: str,
        folder: Path,
        *,
        now: float,
        seconds: int,
        reviewed: Sequence[Path],
        project_key: bytes,
        path: str = "",
        base: str = BASE,
        store: str = "",
        invite: bool = False,
    ) -> Shared:
        """A link to an export of a cohort.

        Args:
            cohort: Name of a frozen cohort.
            user: Id of a registered user.
            folder: Its export.
            now: Seconds since the epoch.
            seconds: How long the link works.
            reviewed: As `data_registry.release.check_release`.
            project_key: As there.
            path: File or folder of the export; empty for all of it.
            base: URL of the service.
            store: Object store to copy the files to, as fsspec names it.
            invite: Sign it before the user accepted the agreements: until then the link gives
                these alone, to read and accept.

        Raises:
            ConfigError: CONFIG-03 when the folder is no export of this cohort, CONFIG-02 without
                such a cohort, CONFIG-05 for a user who is not registered, or for an invitation
                to an object store, which asks for no agreement.
            DataError: DATA-19 when it may not be made public, DATA-22 when a patient in it was
                withdrawn, DATA-25 without the user's agreement, DATA-28 when a licence is
                unknown or forbids it.
        """
        frozen = cohorts.load(self.registry, cohort)
        rows = self._rows(frozen.name, folder)
        sources = sorted({row.source for row in rows})
        known = registered_sources(self.registry)
        check_export([known[source] for source in sources], public=True)
        check_release(self.registry, rows, reviewed, project_key)
        state = share_ledger.read(self.registry.path)
        if user not in state.users:
            raise ConfigError("CONFIG-05", f"no registered user {user}, or revoked.")
        if not invite:
            check_accepted(self.registry, user, sources, state, now)
        elif store:
            raise ConfigError(
                "CONFIG-05",
                "copies in an object store can be fetched at once, so the agreements have to be "
                "accepted before.",
            )
        link = Link(
            path=path, user=user, cohort=cohort, digest=frozen.digest,
            expires=int(now) + seconds, nonce=secrets.token_hex(16),
        )  # fmt: skip
        grant = Grant(user=user, cohort=cohort, folder=folder, path=path, expires=link.expires)
        names = grant.names()
        if not names:
            raise ConfigError("CONFIG-05", f"{folder} has no file {path}.")
        copies = f"{store.rstrip('/')}/{link.nonce}" if store else ""
        issued = share_ledger.Issued(
            nonce=link.nonce, user=user, cohort=cohort, digest=frozen.digest,
            folder=str(folder.resolve()), manifest_sha256=_manifest_hash(folder),
            sources=sources, expires=link.expires, store=copies,
        )  # fmt: skip
        # Noted before anything leaves, so that nothing can leave unnoted.
        share_ledger.add(self.registry.path, "issue", vars(issued))
        what = {"user": user, "cohort": cohort, "sha256": frozen.digest, "files": len(names)}
        record_use(self.registry.path, "share", [row.subject_id for row in rows], what)
        urls = object_store.upload(copies, folder, names, seconds) if copies else {}
        return Shared(nonce=link.nonce, link=sign(link, self._key, base), urls=urls)

    def holder(self, link: str, now: float) -> tuple[share_ledger.Issued, share_ledger.State]:
        """Whose link it is, as far as it still works; what the user accepted is not looked at.

        Args:
            link: As it came.
            now: Seconds since the epoch.

        Raises:
            DataError: DATA-24 when it was altered or is not ours, DATA-23 when it has expired or
                was revoked.
        """
        said = parse(link, self._key)
        state = share_ledger.read(self.registry.path)
        issued = state.links.get(said.nonce)
        if issued is None:
            raise DataError("DATA-24", "the link was never issued by this registry.")
        if now >= said.expires:
            raise DataError("DATA-23", "the link has expired.", fix="Ask for a new one.")
        if when := state.revoked.get(said.nonce):
            raise DataError("DATA-23", f"the link was revoked at {when}.")
        return issued, state

    def check(self, link: str, now: float) -> Grant:
        """What a link allows at this moment.

        Args:
            link: As it came.
            now: Seconds since the epoch.

        Raises:
            DataError: As `holder`, and DATA-24 when the export is not what it was; DATA-25 when an
                agreement was not accepted in its present version, DATA-46 when that has ended;
                DATA-28 when a licence forbids it now; DATA-22 when a patient was withdrawn since.
        """
        issued, state = self.holder(link, now)
        said = parse(link, self._key)
        check_accepted(self.registry, said.user, issued.sources, state, now)
        known = registered_sources(self.registry)
        check_export([known[source] for source in issued.sources], public=True)
        if cohorts.load(self.registry, said.cohort).digest != said.digest:
            raise DataError(
                "DATA-22",
                f"a patient of cohort {said.cohort} was withdrawn since the link was issued.",
                fix="Export the cohort again, share that, and delete the copies of the old one.",
            )
        folder = Path(issued.folder)
        if _manifest_hash(folder) != issued.manifest_sha256:
            raise DataError("DATA-24", "the export is not the one that was shared.")
        return Grant(
            user=said.user, cohort=said.cohort, folder=folder, path=said.path, expires=said.expires
        )

    def revoke(self, *, user: str = "", nonce: str = "", cohort: str = "") -> int:
        """End links before their time; exactly one of the three is given.

        A user who is revoked gets no further links. Copies in object stores are deleted.

        Args:
            user: Id: all links of this user.
            nonce: One link.
            cohort: All links to exports of this cohort so far.

        Returns:
            The number of links that worked until now.

        Raises:
            ConfigError: CONFIG-05 when there is nothing to revoke.
        """
        given = {"user": user, "nonce": nonce, "cohort": cohort}
        given = {name: value for name, value in given.items() if value}
        before = share_ledger.read(self.registry.path)
        links = [
            link
            for link in before.links.values()
            if all(getattr(link, name) == value for name, value in given.items())
        ]
        if len(given) != 1 or not (links or user in before.users):
            raise ConfigError("CONFIG-05", "give a user, a link or a cohort that has links.")
        share_ledger.add(self.registry.path, "revoke", given)
        for link in links:
            if link.store:
                object_store.delete(link.store)
        return sum(link.nonce not in before.revoked for link in links)

    def _rows(self, cohort: str, folder: Path) -> list[VolumeRow]:
        """The volumes of an export of a cohort, all of which the cohort still has.

        Raises:
            ConfigError: CONFIG-03 when the folder is something else.
            DataError: DATA-22 when the cohort lost some of them.
        """
        try:
            mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
            with (folder / MANIFEST).open(encoding="utf-8", newline="") as file:
                exported = {line["volume_id"] for line in csv.DictReader(file)}
        except (OSError, ValueError, KeyError):
            mark, exported = {}, set()
        same = mark.get("registry") == str(self.registry.path.resolve())
        if not exported or not same or mark.get("cohort") != cohort:
            raise ConfigError(
                "CONFIG-03",
                f"{folder} is no complete export of cohort {cohort} of this registry.",
                fix=f"Make one with `core-mri data export FORMAT --cohort {cohort} --out DIR`.",
            )
        rows = self.registry.volumes(cohorts.condition(self.registry, cohort))
        chosen = [row for row in rows if row.volume_id in exported]
        if len(chosen) < len(exported):
            raise DataError(
                "DATA-22",
                f"{len(exported) - len(chosen)} volumes of {folder} were withdrawn since.",
                fix="Delete it, and export the cohort again.",
            )
        return chosen


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _covers(grant: Grant, name: str) -> bool:
    try:
        grant.file(name)
    except DataError:
        return False
    return True


def _manifest_hash(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return ""

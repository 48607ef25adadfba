"""Agreements: a text with a version for each source, and who accepted which.

A source without a text of its own has the agreement that its card names, else its licence. A new
text, or the same under a new version, has to be accepted again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core_mri.errors import ConfigError, DataError
from data_registry.governance.propagation import registered_sources
from data_registry.governance.share_ledger import Agreement, State, add, read
from data_registry.shards import PARTIAL, cannot_write, fsync

if TYPE_CHECKING:
    from data_registry.catalogue import Registry

FOLDER = "agreements"


def set_agreement(
    registry: Registry, source: str, version: str, text: Path, days: int = 0
) -> Agreement:
    """Keep the text that users of a source have to accept from now on.

    Args:
        registry: The registry.
        source: Name of the source.
        version: Of the text.
        text: File of the text.
        days: How long an acceptance lasts; 0 for ever.

    Raises:
        ConfigError: CONFIG-05 for a source that does not exist, or when this version of it had
            another text or term.
        DataError: DATA-01 when there is no text, DATA-07 when it cannot be kept.
    """
    _licence(registry, source)
    try:
        content = text.read_bytes()
    except OSError as error:
        raise DataError("DATA-01", f"{text}: cannot be opened ({error.strerror}).") from None
    agreement = Agreement(source=source, version=version, sha256=_digest(source, version, content),
                          days=days)  # fmt: skip
    old = read(registry.path).agreements.get(source)
    if old == agreement:
        return agreement
    if old is not None and old.version == version:
        raise ConfigError(
            "CONFIG-05",
            f"version {version} of the agreement of {source} has another text or term.",
            fix="Give the new one another version.",
        )
    folder = registry.path / FOLDER
    aside = folder / f"{PARTIAL}{agreement.sha256}"
    try:
        folder.mkdir(exist_ok=True)
        aside.write_bytes(content)
        fsync(aside)
        aside.replace(folder / f"{agreement.sha256}.txt")
    except OSError as error:
        raise cannot_write(error, f"registry {registry.path}") from error
    add(registry.path, "agreement", vars(agreement))
    return agreement


def agreement_of(registry: Registry, source: str, state: State) -> Agreement:
    """The present agreement of a source: a text that was kept, what its card names, its licence.

    Raises:
        ConfigError: CONFIG-05 for a source that does not exist.
    """
    licence = _licence(registry, source)
    if own := state.agreements.get(source):
        return own
    named = registered_sources(registry)[source].facts.agreement
    has_one = named.name not in ("none", "not stated")
    version = named.version if has_one else licence
    text = f"{named.name} {named.version} {named.url}" if has_one else licence
    return Agreement(source=source, version=version, sha256=_digest(source, version, text.encode()))


def text_of(registry: Registry, agreement: Agreement) -> str:
    """What the user reads; of a source without a text of its own what its card or licence names."""
    try:
        content = (registry.path / FOLDER / f"{agreement.sha256}.txt").read_bytes()
    except FileNotFoundError:
        named = registered_sources(registry)[agreement.source].facts.agreement
        if named.name in ("none", "not stated"):
            return f"Licence of {agreement.source}: {agreement.version}"
        return f"{named.name} {named.version} {named.url}"
    return content.decode("utf-8", "replace")


def accept(
    registry: Registry, user: str, source: str, version: str, *, nonce: str = ""
) -> Agreement:
    """Note that a user accepted the agreement of a source.

    Args:
        registry: The registry.
        user: Id of a registered user.
        source: Name of the source.
        version: Version that the user saw, which must be the present one.
        nonce: Of the link by which the user accepted it; empty when a steward notes it.

    Raises:
        ConfigError: CONFIG-05 for a source that does not exist.
        DataError: DATA-25 for another version than the present one, DATA-07 when it cannot be
            written.
    """
    state = read(registry.path)
    agreement = agreement_of(registry, source, state)
    if version != agreement.version:
        raise DataError(
            "DATA-25",
            f"the agreement of {source} has version {agreement.version}, not {version}.",
            fix="Let the user read the present one.",
        )
    if standing(user, agreement, state, time.time()) != "accepted":
        via = {"nonce": nonce} if nonce else {}
        add(registry.path, "accept", {"user": user, **vars(agreement), **via})
    return agreement


Standing = Literal["accepted", "missing", "ended"]


def standing(user: str, agreement: Agreement, state: State, now: float) -> Standing:
    """Whether a user's acceptance of the present agreement holds at a moment."""
    when = state.accepted.get((user, agreement.source, agreement.sha256))
    if when is None:
        return "missing"
    return "ended" if agreement.days and now >= when + 86400 * agreement.days else "accepted"


def check_accepted(
    registry: Registry, user: str, sources: Iterable[str], state: State, now: float
) -> None:
    """See that a user accepted the present agreements of some sources, and that this holds.

    Raises:
        DataError: DATA-25 with each that is missing, DATA-46 with each that has ended.
    """
    wanted = [agreement_of(registry, source, state) for source in sorted(sources)]
    found = [(agreement, standing(user, agreement, state, now)) for agreement in wanted]
    for kind, code, what in (
        ("missing", "DATA-25", "has not accepted the present agreement"),
        ("ended", "DATA-46", "accepted too long ago the agreement"),
    ):
        named = ", ".join(f"{a.source} (version {a.version})" for a, how in found if how == kind)
        if named:
            raise DataError(
                code,
                f"{user} {what} of {named}.",
                fix="Accept it on the page of the link, or have it noted with `core-mri data share "
                "accept`.",
            )


def _licence(registry: Registry, source: str) -> str:
    licences = dict(registry.rows("SELECT source, licence FROM sources"))
    if source not in licences:
        raise ConfigError(
            "CONFIG-05",
            f"{registry.path} has no source {source!r}; there are: {', '.join(sorted(licences))}.",
        )
    return str(licences[source])


def _digest(source: str, version: str, text: bytes) -> str:
    """SHA-256 of the text under its source and version: a new version is another agreement."""
    return hashlib.sha256(f"{source}\0{version}\0".encode() + text).hexdigest()

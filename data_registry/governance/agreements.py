"""Agreements: a text with a version for each source, and who accepted which.

A source without a text of its own has the agreement that its card names, else its licence. A new
text, or the same under a new version, has to be accepted again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError, DataError
from data_registry.governance.propagation import registered_sources
from data_registry.governance.share_ledger import Agreement, State, add, read
from data_registry.shards import PARTIAL, cannot_write, fsync

if TYPE_CHECKING:
    from data_registry.catalogue import Registry

FOLDER = "agreements"


def set_agreement(registry: Registry, source: str, version: str, text: Path) -> Agreement:
    """Keep the text that users of a source have to accept from now on.

    Raises:
        ConfigError: CONFIG-05 for a source that does not exist, or when this version of it had
            another text.
        DataError: DATA-01 when there is no text, DATA-07 when it cannot be kept.
    """
    _licence(registry, source)
    try:
        content = text.read_bytes()
    except OSError as error:
        raise DataError("DATA-01", f"{text}: cannot be opened ({error.strerror}).") from None
    agreement = Agreement(source=source, version=version, sha256=_digest(source, version, content))
    old = read(registry.path).agreements.get(source)
    if old == agreement:
        return agreement
    if old is not None and old.version == version:
        raise ConfigError(
            "CONFIG-05",
            f"version {version} of the agreement of {source} has another text.",
            fix="Give the new text another version.",
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


def accept(registry: Registry, user: str, source: str, version: str) -> Agreement:
    """Note that a user accepted the agreement of a source.

    Args:
        registry: The registry.
        user: Id of a registered user.
        source: Name of the source.
        version: Version that the user saw, which must be the present one.

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
    if (user, source, agreement.sha256) not in state.accepted:
        add(registry.path, "accept", {"user": user, **vars(agreement)})
    return agreement


def check_accepted(registry: Registry, user: str, sources: Iterable[str], state: State) -> None:
    """See that a user accepted the present agreements of some sources.

    Raises:
        DataError: DATA-25 with each that is missing.
    """
    wanted = [agreement_of(registry, source, state) for source in sorted(sources)]
    missing = [a for a in wanted if (user, a.source, a.sha256) not in state.accepted]
    if missing:
        named = ", ".join(f"{a.source} (version {a.version})" for a in missing)
        raise DataError(
            "DATA-25",
            f"{user} has not accepted the present agreement of {named}.",
            fix="Note it with `core-mri data share accept` once the user has.",
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

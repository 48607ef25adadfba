"""The private file of a registry: who may receive data, what they agreed to, which links they got.

``sharing.jsonl`` is only appended to, one event a line, mode 0600: names and addresses of users
stand nowhere else. Other places name a user by a random id.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core_mri.errors import ConfigError
from data_registry.governance.audit_log import append, now, seconds_of
from data_registry.shards import cannot_write

FILE = "sharing.jsonl"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a user has to accept before data of a source is handed over."""

    source: str
    version: str
    sha256: str
    """Of the text."""
    days: int = 0
    """How long an acceptance lasts; 0 for ever."""


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A link as it was issued."""

    nonce: str
    user: str
    cohort: str
    digest: str
    """Of the cohort then."""
    folder: str
    """The export."""
    manifest_sha256: str
    sources: list[str]
    expires: int
    """Seconds since the epoch."""
    store: str = ""
    """Where copies of the files lie in an object store."""


@dataclass(kw_only=True)
class State:
    """What all events together say."""

    users: dict[str, dict[str, str]] = field(default_factory=dict)
    """Id to name and e-mail; of those who were not revoked."""
    agreements: dict[str, Agreement] = field(default_factory=dict)
    """Source to its newest agreement."""
    accepted: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """User, source, SHA-256 of the text to the last time, seconds since the epoch."""
    links: dict[str, Issued] = field(default_factory=dict)
    """Nonce to link."""
    revoked: dict[str, str] = field(default_factory=dict)
    """Nonce to when."""


def read(registry: Path) -> State:
    """The present state; lines are whole, what follows the last one is a killed writer's."""
    state = State()
    try:
        lines = (registry / FILE).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return state
    for event in map(json.loads, filter(None, lines)):
        kind, when = event.pop("event"), event.pop("when")
        if kind == "register":
            state.users[event["user"]] = {"name": event["name"], "email": event["email"]}
        elif kind == "agreement":
            state.agreements[event["source"]] = Agreement(**event)
        elif kind == "accept":
            key = (event["user"], event["source"], event["sha256"])
            state.accepted[key] = seconds_of(when)
        elif kind == "issue":
            state.links[event["nonce"]] = Issued(**event)
        else:
            _revoke(state, event, when)
    return state


def _revoke(state: State, event: Mapping[str, str], when: str) -> None:
    state.users.pop(event.get("user", ""), None)
    for nonce, link in state.links.items():
        if {nonce, link.user, link.cohort} & {*event.values()}:
            state.revoked.setdefault(nonce, when)


def add(registry: Path, event: str, fields: Mapping[str, object]) -> None:
    """Append one event, and an entry of the audit log that names nobody.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    import fcntl

    path = registry / FILE
    line = json.dumps({"event": event, "when": now(), **fields}) + "\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fchmod(file.fileno(), 0o600)
            content = file.read()
            os.ftruncate(file.fileno(), content.rfind(b"\n") + 1)
            file.write(line.encode("utf-8"))
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(error, f"registry {registry}") from error
    shown = {k: v for k, v in fields.items() if k not in ("name", "email", "folder", "nonce")}
    append(registry, f"share {event}", shown)


def register(registry: Path, name: str, email: str) -> str:
    """Add a user.

    Returns:
        The user's id, which is random.

    Raises:
        ConfigError: CONFIG-01 without a name or an address, CONFIG-05 when the address is there.
        DataError: DATA-07 when it cannot be written.
    """
    if not name.strip() or email.count("@") != 1 or not all(email.split("@")):
        raise ConfigError("CONFIG-01", "a user needs a name and an e-mail address.")
    for known, user in read(registry).users.items():
        if user["email"].lower() == email.lower():
            raise ConfigError("CONFIG-05", f"this address is registered already, as {known}.")
    user_id = f"U{secrets.token_hex(6)}"
    add(registry, "register", {"user": user_id, "name": name, "email": email})
    return user_id


def user_of(registry: Path, who: str) -> str:
    """The id of a registered user, given as id or e-mail address.

    Raises:
        ConfigError: CONFIG-05 when there is none.
    """
    users = read(registry).users
    for user_id, user in users.items():
        if who == user_id or who.lower() == user["email"].lower():
            return user_id
    raise ConfigError(
        "CONFIG-05",
        f"no registered user {who}, or revoked.",
        fix="Register one with `core-mri data share register`.",
    )

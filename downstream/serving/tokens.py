"""Who asks: bearer tokens of a file, or one local user where only this machine can reach us."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from pathlib import Path

from core_mri.errors import ServingError

LOCAL = "local"
MIN_LENGTH = 20
_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):(\S+)")


class Tokens:
    """Names of users by their token; without any, everybody is the local user.

    Args:
        users: Token -> name.
    """

    def __init__(self, users: dict[str, str]) -> None:
        self._users = {_digest(token): name for token, name in users.items()}

    @property
    def demanded(self) -> bool:
        """Whether a request needs one."""
        return bool(self._users)

    @property
    def users(self) -> frozenset[str]:
        """All that may come."""
        return frozenset(self._users.values()) if self.demanded else frozenset({LOCAL})

    def user_of(self, authorization: str | None) -> str | None:
        """The user of an ``Authorization: Bearer TOKEN`` header, None for a wrong one."""
        if not self.demanded:
            return LOCAL
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        given, found = _digest(token.strip()), None
        for digest, name in self._users.items():  # all of them, in equal time
            if hmac.compare_digest(digest, given):
                found = name
        return found


def load_tokens(path: Path) -> Tokens:
    """Tokens of a file with a line ``NAME:TOKEN`` for each user.

    Raises:
        ServingError: SERVE-01 when it cannot be read, others can read it, a line is none, or a
            token is short or given twice.
    """
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError):
        raise ServingError("SERVE-01", f"{path}: the token file cannot be read.") from None
    if os.name == "posix" and mode & 0o077:
        raise ServingError(
            "SERVE-01",
            f"{path}: mode {mode & 0o777:o}, others can read the tokens; 600 is allowed.",
            fix=f"Run chmod 600 {path}.",
        )
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or len(match[2]) < MIN_LENGTH or match[2] in users:
            raise ServingError(
                "SERVE-01",
                f"{path}: line {number} is no NAME:TOKEN with a token of its own of "
                f"{MIN_LENGTH} or more characters.",
                fix='Make one: echo "NAME:$(openssl rand -hex 24)"',
            )
        users[match[2]] = match[1]
    if not users:
        raise ServingError("SERVE-01", f"{path}: holds no token.")
    return Tokens(users)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()

"""Links to shared data: signed, so that nobody can make or change one without the key.

A link is a URL whose query holds path, user, cohort and its hash, expiry, a nonce, and
``HMAC-SHA256(key, JSON list of them)``. Whoever serves the data calls `Sharing.check`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from urllib.parse import parse_qsl, urlencode

from core_mri.errors import DataError

_VERSION = "core-mri link 1"
_FIELDS = ("cohort", "digest", "expires", "nonce", "path", "user")


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a link says."""

    path: str
    """File or folder below the export; empty for all of it."""
    user: str
    cohort: str
    digest: str
    """SHA-256 of the cohort."""
    expires: int
    """Seconds since the epoch."""
    nonce: str
    """Random name of the link."""


def sign(link: Link, key: bytes, base: str) -> str:
    """The URL of a link.

    Args:
        link: What it says.
        key: Key of links.
        base: URL of the service, without query; it is not signed.
    """
    query = {**asdict(link), "signature": _signature(link, key)}
    return f"{base}?{urlencode(sorted(query.items()))}"


def parse(text: str, key: bytes) -> Link:
    """What a link says, once its signature is known to be ours; compared in constant time.

    Raises:
        DataError: DATA-24 when it is no link, or not signed with this key.
    """
    pairs = parse_qsl(text.partition("?")[2], keep_blank_values=True)
    found = dict(pairs)
    signature = found.pop("signature", "")
    if len(pairs) != len(_FIELDS) + 1 or tuple(sorted(found)) != _FIELDS:
        raise _altered()
    expires = found.pop("expires")
    if not expires.isascii() or not expires.isdigit() or len(expires) > 12:
        raise _altered()
    link = Link(**found, expires=int(expires))
    if not hmac.compare_digest(_signature(link, key).encode(), signature.encode()):
        raise _altered()
    return link


def _signature(link: Link, key: bytes) -> str:
    fields = asdict(link)
    message = json.dumps([_VERSION, *(fields[name] for name in _FIELDS)], separators=(",", ":"))
    return hmac.new(key, message.encode("ascii"), hashlib.sha256).hexdigest()


def _altered() -> DataError:
    return DataError(
        "DATA-24",
        "the link was altered, or was not made with the key of this registry.",
        fix="Ask for a new one.",
    )

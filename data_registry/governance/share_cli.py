"""`core-mri data share`: users, agreements, signed links."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from core_mri.errors import ConfigError
from data_registry.catalogue import Registry
from data_registry.governance import agreements, share_ledger
from data_registry.governance.downloads import fetched
from data_registry.governance.sharing import BASE, Sharing
from data_registry.terminal import parse, table

_SECONDS = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class _Register:
    """Add a user. Name and address stand in the private file of the registry alone."""

    registry: Path
    """Folder of the registry."""
    name: str
    """Name of the person."""
    email: str
    """Address of the person."""


@dataclass(frozen=True, kw_only=True)
class _Agreement:
    """Keep the text that users of a source have to accept from now on."""

    registry: Path
    """Folder of the registry."""
    source: str
    """Name of the source."""
    version: str
    """Version of the text."""
    text: Path
    """File of the text."""
    days: int = 0
    """How long an acceptance lasts; 0 for ever. A new term needs a new version."""


@dataclass(frozen=True, kw_only=True)
class _Accept:
    """Note that a user accepted the present agreement of a source."""

    registry: Path
    """Folder of the registry."""
    user: str
    """Id or address of the user."""
    source: str
    """Name of the source."""
    version: str
    """Version that the user read; of a source without agreement the licence."""


@dataclass(frozen=True, kw_only=True)
class _Issue:
    """Sign a link to an export of a cohort for a user who accepted the agreements of its sources.

    The export must have passed the review of a public release, and the licences of all its sources
    must permit copies to others.
    """

    cohort: Annotated[str, tyro.conf.Positional]
    """Name of the frozen cohort."""
    registry: Path
    """Folder of the registry."""
    user: str
    """Id or address of the user."""
    export: Path
    """Folder of `core-mri data export --cohort COHORT`."""
    reviewed: tuple[Path, ...] = ()
    """Folders of `core-mri data deidentify` that were reviewed and ingested."""
    expires: str = "7d"
    """How long the link works: a number and m, h or d."""
    path: str = ""
    """One file or folder of the export; all of it when not given."""
    base_url: str = BASE
    """Where `core-mri data share serve` is, such as https://data.example.org/share."""
    invite: bool = False
    """Sign it before the user accepted: until then the link gives the agreements alone."""
    store: str = ""
    """Object store to copy the files to, such as s3://bucket/shares; it signs a URL for each."""
    key_file: Path | None = None
    """Project key; REGISTRY.key beside the registry when not given."""
    link_key: Path | None = None
    """Key of links; REGISTRY.links.key beside the registry when not given, made when missing."""
    json: bool = False
    """Print a JSON object."""


@dataclass(frozen=True, kw_only=True)
class _Revoke:
    """End links before their time. A user who is revoked gets no further ones."""

    registry: Path
    """Folder of the registry."""
    user: str = ""
    """Id or address: all links of this user."""
    link: str = ""
    """The nonce of one link."""
    cohort: str = ""
    """All links to exports of this cohort so far."""


@dataclass(frozen=True, kw_only=True)
class _Check:
    """Say what a link allows now; exit code 1 with the reason when it allows nothing."""

    link: Annotated[str, tyro.conf.Positional]
    """The link."""
    registry: Path
    """Folder of the registry."""
    link_key: Path | None = None
    """Key of links."""


@dataclass(frozen=True, kw_only=True)
class _Serve:
    """Hand files over to holders of links, over HTTP, until stopped.

    Links are all the secret there is: put a proxy with TLS before any address but this machine's.
    """

    registry: Path
    """Folder of the registry."""
    link_key: Path | None = None
    """Key of links."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8100
    """0 takes a free one."""
    connections: int = 100
    """At once, of everybody."""
    per_link: int = 8
    """Files that one link may fetch at once."""


@dataclass(frozen=True, kw_only=True)
class _List:
    """List users and links."""

    registry: Path
    """Folder of the registry."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb: an action, or the name of a cohort to issue a link.

    Args:
        arguments: Words after ``core-mri data share``.

    Returns:
        The exit code.
    """
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(
            "core-mri data share COHORT --registry DIR --user WHO --export DIR ...: sign a link.\n"
        )
        for name, (options, _) in _ACTIONS.items():
            print(f"  share {name:<10} {str(options.__doc__).partition(chr(10))[0]}")
        print("\ncore-mri data share ACTION --help lists the flags of an action.")
        return 0 if words else 2
    action = words.pop(0) if words[0] in _ACTIONS else "issue"
    options, run = _ACTIONS[action]
    run(parse(options, words, f"share {action}"))
    return 0


def _register(options: _Register) -> None:
    registry = Registry.open(options.registry)
    user = share_ledger.register(registry.path, options.name, options.email)
    print(f"registered as {user}")


def _agreement(options: _Agreement) -> None:
    registry = Registry.open(options.registry)
    kept = agreements.set_agreement(registry, options.source, options.version, options.text,
                                    options.days)  # fmt: skip
    print(f"users of {kept.source} have to accept version {kept.version}, sha256 {kept.sha256}")


def _accept(options: _Accept) -> None:
    registry = Registry.open(options.registry)
    user = share_ledger.user_of(registry.path, options.user)
    kept = agreements.accept(registry, user, options.source, options.version)
    print(f"{user} accepted version {kept.version} of {kept.source}, sha256 {kept.sha256}")


def _issue(options: _Issue) -> None:
    from data_registry.governance.whom import project_key

    registry = Registry.open(options.registry)
    sharing = Sharing.open(registry, options.link_key)
    shared = sharing.issue(
        options.cohort,
        share_ledger.user_of(registry.path, options.user),
        options.export,
        now=time.time(),
        seconds=_seconds(options.expires),
        reviewed=options.reviewed,
        project_key=project_key(registry, options.key_file),
        path=options.path,
        base=options.base_url,
        store=options.store,
        invite=options.invite,
    )
    if options.json:
        print(json.dumps(vars(shared), indent=2))
        return
    print(f"link {shared.nonce}, works for {options.expires}:\n{shared.link}")
    for name, url in shared.urls.items():
        print(f"{name} {url}")


def _revoke(options: _Revoke) -> None:
    registry = Registry.open(options.registry)
    user = share_ledger.user_of(registry.path, options.user) if options.user else ""
    number = Sharing(registry, b"").revoke(user=user, nonce=options.link, cohort=options.cohort)
    print(f"{number} links work no more.")


def _check(options: _Check) -> None:
    registry = Registry.open(options.registry)
    grant = Sharing.open(registry, options.link_key).check(options.link, time.time())
    print(f"{grant.user} may have {grant.path or 'all files'} of {grant.folder}")


def _list(options: _List) -> None:
    state = share_ledger.read(Registry.open(options.registry).path)
    users = [(name, user["name"], user["email"]) for name, user in state.users.items()]
    print(table(f"{len(users)} users", ("user", "name", "e-mail"), users))
    links, counts = [], fetched(options.registry)
    for nonce, link in state.links.items():
        ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(link.expires))
        got = counts.get(nonce)
        downloads = f"{got.completed} of {got.requests}" if got else ""
        links.append((nonce, link.user, link.cohort, ends, state.revoked.get(nonce, ""),
                      downloads, f"{got.bytes:,}" if got else ""))  # fmt: skip
    names = ("link", "user", "cohort", "expires", "revoked", "downloads", "bytes")
    print(table(f"\n{len(links)} links", names, links))


def _serve(options: _Serve) -> None:
    if not (0 <= options.port < 65536 and options.connections > 0 and options.per_link > 0):
        raise ConfigError(
            "CONFIG-01", "--port must be 0 to 65535, --connections and --per-link 1 or more."
        )
    try:
        from data_registry.governance.share_server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            "CONFIG-06", f"{error.name} is not installed.", fix="pip install 'core-mri[serve]'."
        ) from None
    serve(
        options.registry, options.link_key, host=options.host, port=options.port,
        connections=options.connections, per_link=options.per_link,
        started=lambda url: print(f"{url}/share", flush=True),
    )  # fmt: skip


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text)
    if found is None:
        raise ConfigError(
            "CONFIG-01", f"--expires {text}: give a number and m, h or d, such as 7d."
        )
    return int(found[1]) * _SECONDS[found[2]]


_ACTIONS: dict[str, tuple[type, Callable[..., None]]] = {
    "register": (_Register, _register),
    "agreement": (_Agreement, _agreement),
    "accept": (_Accept, _accept),
    "issue": (_Issue, _issue),
    "revoke": (_Revoke, _revoke),
    "check": (_Check, _check),
    "list": (_List, _list),
    "serve": (_Serve, _serve),
}
"""Action -> its flags, and what runs it."""

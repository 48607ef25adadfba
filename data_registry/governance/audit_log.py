"""The audit log of a registry: who changed or released what, and when, as a chain of hashes.

``audit.jsonl`` is only ever appended to: a JSON object a line, whose ``hash`` is the SHA-256 of the
rest of it, and whose ``previous`` is the hash of the line before. Changing, deleting or reordering
lines breaks the chain. Cutting off the newest ones does not: ``audit.head`` beside it names the
last line and so tells of an accident, but whoever may write the folder may write both, or the whole
chain anew. Only a copy of the head that is kept elsewhere (`verify`, `expect`) tells of that.

Who did it is the plain name of an account: a hash of one of a few names would hide nothing, and
"who" is what the log is asked for. No entry holds data of a patient.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from core_mri.errors import DataError
from data_registry.shards import cannot_write, fsync
from data_registry.views import commit_folders, commit_span

LOG, HEAD = "audit.jsonl", "audit.head"
HEAD_ASIDE = ".audit.head.new"
"""Only who has locked the log writes it; no sweep of another writer deletes it."""
ACTOR = "CORE_MRI_ACTOR"
"""Environment variable that names who acts, where the account does not."""
START = "0" * 64
"""What the first entry names as the one before."""
_BLOCK = 1 << 16
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log."""

    number: int
    """From 1."""
    when: str
    """UTC, ISO 8601, to the second."""
    who: str
    """Account, or what was given instead."""
    verb: str
    """What was done, such as ``ingest``."""
    what: Mapping[str, object]
    """Counts, keyed ids and hashes."""
    previous: str
    """Hash of the entry before."""
    hash: str = ""
    """SHA-256 of the others as JSON with sorted keys and no spaces."""

    def true_hash(self) -> str:
        """The hash that the rest of the entry has."""
        rest = {name: value for name, value in asdict(self).items() if name != "hash"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a look at the whole log found."""

    entries: list[Entry]
    """All that can be read."""
    broken: list[str]
    """What was altered, deleted, moved or cut off; empty for a whole chain."""
    notes: list[str]
    """What crashes left, which is no sign of tampering."""

    @property
    def head(self) -> str:
        """``NUMBER:HASH`` of the last entry, to be kept elsewhere."""
        return f"{self.entries[-1].number}:{self.entries[-1].hash}" if self.entries else "0:"


def now() -> str:
    """The time of an entry."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(when: str) -> float:
    """Seconds since the epoch of a time as `now` writes it."""
    return datetime.strptime(f"{when}+0000", "%Y-%m-%dT%H:%M:%SZ%z").timestamp()


def actor() -> str:
    """Who acts: `ACTOR`, else the account, else its number."""
    try:
        return os.environ.get(ACTOR, "") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def append(registry: Path, verb: str, what: Mapping[str, object], *, who: str = "") -> Entry:
    """Add one entry; processes wait for each other.

    What a killed writer left of a line is cut off, and the new entry says so; it also says when the
    log does not end where it should, so that writing on hides nothing.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    import fcntl

    path = registry / LOG
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            last, torn = _last_line(file.fileno())
            if torn:
                os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - torn)
                what = {**what, "torn_bytes": torn}
            previous = _parse(last) if last else None
            head_number, head_hash = _read_head(registry)
            ends = (previous.number, previous.hash) if previous else (0, START)
            if ends[0] < head_number or (ends[0] == head_number and ends[1] != head_hash):
                what = {**what, "broken": f"the head was {head_number}:{head_hash}"}
            elif previous is None and last:
                what = {**what, "broken": "the line before cannot be read"}
            entry = Entry(
                number=max(ends[0], head_number) + 1, when=now(), who=who or actor(), verb=verb,
                what=what, previous=ends[1],
            )  # fmt: skip
            entry = Entry(**{**asdict(entry), "hash": entry.true_hash()})
            line = json.dumps(asdict(entry), sort_keys=True, separators=(",", ":")) + "\n"
            file.write(line.encode("ascii"))
            os.fsync(file.fileno())
            aside = registry / HEAD_ASIDE
            aside.write_text(f"{entry.number}:{entry.hash}\n", encoding="ascii")
            fsync(aside)
            aside.replace(registry / HEAD)
    except OSError as error:
        raise cannot_write(error, f"the audit log of {registry}") from error
    return entry


@contextlib.contextmanager
def recorded(registry: Path, verb: str) -> Iterator[dict[str, object]]:
    """Log what the block did to the catalogue; a block that commits nothing leaves no entry.

    Yields:
        What happened, to be filled.
    """
    before = last_commit(registry)
    what: dict[str, object] = {}
    try:
        yield what
    except BaseException as error:
        what["stopped_by"] = getattr(error, "code", type(error).__name__)
        raise
    finally:
        after = last_commit(registry)
        if after != before:
            append(registry, verb, {**what, "commits": [before, after]})


def released(registry: Path, verb: str, what: Mapping[str, object]) -> None:
    """Log a release before it happens; a registry that cannot be written to is told on stderr."""
    try:
        append(registry, verb, what)
    except DataError as error:
        logger.warning("%s is not in the audit log: %s", verb, error)


def last_commit(registry: Path) -> int:
    """Number of the newest commit, 0 without any."""
    folders = commit_folders(registry)
    return commit_span(folders[-1])[1] if folders else 0


def verify(registry: Path, *, expect: str = "") -> Check:
    """Read the log and see that it is whole.

    Args:
        registry: Folder of the registry.
        expect: A head ``NUMBER:HASH`` that was kept elsewhere, which the log must hold.
    """
    import fcntl

    broken: list[str] = []
    notes: list[str] = []
    entries: list[Entry] = []
    content = b""
    with contextlib.suppress(FileNotFoundError), (registry / LOG).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        content = file.read()
    *lines, tail = content.split(b"\n")
    for place, line in enumerate(lines, start=1):
        entry = _parse(line)
        if entry is None:
            broken.append(f"line {place} is no entry: it was altered")
        else:
            entries.append(entry)
    if tail:
        notes.append(f"the last {len(tail)} bytes are no whole line: a writer was killed there")
    broken += _chain(entries)
    number, digest = _read_head(registry)
    last = entries[-1].number if entries else 0
    if last < number:
        broken.append(f"the log ends at entry {last}, and {HEAD} names entry {number}: cut off")
    for name, (wanted, known) in ((HEAD, (number, digest)), ("--expect", _split(expect))):
        here = next((entry for entry in entries if entry.number == wanted), None)
        if here is not None and here.hash != known:
            broken.append(f"entry {wanted} is not the one that {name} names: it was replaced")
        elif here is None and wanted > last and name != HEAD:
            broken.append(f"the log ends at entry {last}, and {name} names entry {wanted}: cut off")
        elif here is None and 0 < wanted <= last:
            broken.append(f"entry {wanted}, which {name} names, is gone")
    notes += _gaps(entries)
    return Check(entries=entries, broken=broken, notes=notes)


def _chain(entries: list[Entry]) -> list[str]:
    broken = []
    number, digest = 0, START
    for entry in entries:
        if entry.hash != entry.true_hash():
            broken.append(f"entry {entry.number} was altered: it does not have its hash")
        if entry.number <= number:
            broken.append(f"entry {entry.number} stands behind entry {number}: moved or repeated")
        elif entry.number > number + 1:
            gone = f"{number + 1}" + (f" to {entry.number - 1}" * (entry.number > number + 2))
            broken.append(f"entry {gone} is gone")
        elif entry.previous != digest:
            broken.append(f"entry {entry.number} follows another entry than {number}: replaced")
        if said := entry.what.get("broken"):
            broken.append(f"entry {entry.number} was written on a broken log: {said}")
        number, digest = entry.number, entry.hash
    return broken


def _gaps(entries: list[Entry]) -> list[str]:
    """Commits of no entry, whose writer was killed before it could write one."""
    notes = []
    known = 0
    for entry in entries:
        commits = entry.what.get("commits")
        if not isinstance(commits, (list, tuple)):
            continue
        if commits[0] > known and known:
            first = f"{known + 1} to " if commits[0] > known + 1 else ""
            notes.append(f"no entry for commits {first}{commits[0]}: their run was killed")
        known = max(known, commits[1])
    return notes


def _last_line(descriptor: int) -> tuple[bytes, int]:
    """The last whole line, and how many bytes follow it."""
    end = os.fstat(descriptor).st_size
    tail = b""
    while end > 0 and tail.count(b"\n") < 2:
        start = max(0, end - _BLOCK)
        tail = os.pread(descriptor, end - start, start) + tail
        end = start
    whole, newline, torn = tail.rpartition(b"\n")
    return (whole.rpartition(b"\n")[2], len(torn)) if newline else (b"", len(tail))


def _parse(line: bytes) -> Entry | None:
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _read_head(registry: Path) -> tuple[int, str]:
    try:
        return _split((registry / HEAD).read_text(encoding="ascii", errors="replace").strip())
    except FileNotFoundError:
        return 0, START


def _split(head: str) -> tuple[int, str]:
    number, _, digest = head.partition(":")
    return (int(number), digest) if number.isdigit() else (0, START)

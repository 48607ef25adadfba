"""A folder of scans to a folder of de-identified ones, with an audit that holds no values.

Files are done by worker processes and take their names in the order of the input, so that the
output is the same bytes for any number of workers, and what a killed run leaves is a beginning of
the whole. A finished file waits in OUT/.partial; its name and its line of the audit come after.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from core_mri.errors import DataError
from data_registry.deidentify.audit import (
    AUDIT,
    WAITING,
    append,
    cannot_write,
    open_audit,
    own_outputs,
)
from data_registry.deidentify.identifiers import file_id, pseudonym
from data_registry.deidentify.outcome import Outcome, Passed, PrivateDetails
from data_registry.deidentify.pixels import Looks, look_at
from data_registry.deidentify.profile import Profile
from data_registry.deidentify.review_items import passed_by_a_person
from data_registry.deidentify.scope import DEFAULT, Scope
from data_registry.deidentify.work import Done, Task, single, work
from data_registry.worker_pool import WorkerPool

_BATCH = 32


@dataclass(frozen=True)
class Item:
    """A file of the input, and what became of it."""

    path: Path
    outcome: Outcome
    details: PrivateDetails


def find_files(source: Path) -> list[Path]:
    """`source` itself, or all files below it, sorted; links are listed and not followed.

    Raises:
        DataError: DATA-01 when there is nothing.
    """
    if source.is_file():
        return [source]
    files: list[Path] = []
    for folder, folders, names in os.walk(source):
        files += [Path(folder) / name for name in names]
        files += [Path(folder) / n for n in folders if (Path(folder) / n).is_symlink()]
    if not files:
        what = "an empty folder" if source.is_dir() else "no such path"
        raise DataError("DATA-01", f"{source}: {what}.", fix="Give a file or a folder of scans.")
    return sorted(files)


def deidentify_folder(
    source: Path,
    files: list[Path],
    out: Path,
    key: bytes,
    profile: Profile,
    *,
    jobs: int = 1,
    dry_run: bool = False,
    scope: Scope = DEFAULT,
    face_pictures: Path | None = None,
) -> Iterator[Item]:
    """De-identify files; inputs are only read, outputs appear complete or not at all.

    A file that the audit in `out` knows and that has not changed is not read again. A file that
    cannot be de-identified, or in whose output the verifier finds an identifier, is quarantined: it
    leaves a line with a code, and no output.

    Args:
        source: The folder that they are in; the path below it may tell whose a file is.
        files: Of :func:`find_files`.
        out: Keyed names, and ``audit.jsonl``.
        key: Project key.
        profile: What to do.
        jobs: Worker processes.
        dry_run: Write nothing; `out` is not even made.
        scope: What to do with pixels, faces and objects that are no scans.
        face_pictures: Folder for pictures of heads before and after, which show faces.

    Yields:
        One item per file, in order, after its line of the audit is written.

    Raises:
        ConfigError: CONFIG-03 when `out` holds something else, CONFIG-04 when it was made with
            another key or profile.
        DataError: DATA-07 when `out` cannot be written.
    """
    known = {} if dry_run else open_audit(out, key, profile, scope)
    named = [
        (path, str(path.absolute()), file_id(key, path.absolute()), _stamp(key, path))
        for path in files
    ]
    verdicts = {} if dry_run else passed_by_a_person(out, known)
    passed = {
        whole: verdicts[identity]
        for _, whole, identity, stamp in named
        if identity in verdicts and known[identity].stamp == stamp
    }
    todo = [
        (identity, whole, stamp)
        for _, whole, identity, stamp in named
        if not _is_done(known.get(identity), stamp, out, passed.get(whole, frozenset()))
    ]
    waiting = {identity for identity, _, _ in todo}
    common = Task(
        (), _root(source), None if dry_run else str(out), key, profile, scope,
        own=own_outputs(source, key, scope), face_pictures=face_pictures,
    )  # fmt: skip
    audit = None if dry_run else (out / AUDIT).open("a", encoding="ascii")
    with WorkerPool(min(jobs, max(1, len(todo) // 4))) as pool:
        looks = look_at(todo, pool, scope, passed, face_pictures)
        results = _results(pool, _tasks(todo, common, looks, passed))
        seen: dict[str, str] = {}
        try:
            for path, _, identity, _ in named:
                before = known.get(identity)
                if identity not in waiting:
                    assert before is not None
                    yield Item(path, before, PrivateDetails())
                    continue
                outcome, details = next(results)
                if dry_run:
                    outcome = _without_twin(outcome, seen)
                else:
                    outcome = _named(outcome, out, before.output if before else "")
                    append(audit, outcome)
                if outcome.status == "quarantined" and not details.message:
                    details = PrivateDetails("another file has the same SOP instance UID.")
                yield Item(path, outcome, details)
        finally:
            if audit is not None:
                audit.close()
                shutil.rmtree(out / WAITING, ignore_errors=True)


def _root(source: Path) -> str:
    return str((source if source.is_dir() else source.parent).absolute())


def _tasks(
    todo: list[tuple[str, str, str]], common: Task, looks: Looks, passed: Passed
) -> Iterator[Task]:
    waiting = iter(todo)
    while batch := tuple(islice(waiting, _BATCH)):
        paths = [path for _, path, _ in batch]
        codes = {path: passed[path] for path in paths if path in passed}
        yield replace(common, files=batch, looks=looks.of(paths), passed=codes)


def _results(pool: WorkerPool, tasks: Iterator[Task]) -> Iterator[Done]:
    for task, done in pool.each(work, tasks, single):
        if done is not None:
            yield from done
            continue
        for identity, _, stamp in task.files:  # a file that kills its worker
            lost = Outcome(identity, stamp, "quarantined", code="RUN-02")
            yield lost, PrivateDetails("the worker process died of it.")


def _named(outcome: Outcome, out: Path, old: str) -> Outcome:
    """Give a finished file its name; `old` is what an earlier version of the input left there."""
    if outcome.status != "done":
        return outcome
    waiting, target = f"{out}/{WAITING}/{outcome.file}", f"{out}/{outcome.output}"
    try:
        if os.path.exists(target) and outcome.output != old:  # noqa: PTH110 - faster than Path
            same = Path(target).read_bytes() == Path(waiting).read_bytes()
            os.unlink(waiting)  # noqa: PTH108
            return outcome if same else _twin(outcome)
        try:
            os.replace(waiting, target)  # noqa: PTH105
        except FileNotFoundError:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(waiting, target)  # noqa: PTH105
    except OSError as error:
        raise cannot_write(error) from None
    return outcome


def _without_twin(outcome: Outcome, seen: dict[str, str]) -> Outcome:
    """Of a dry run: what would meet another file under its name."""
    if outcome.status != "done":
        return outcome
    first = seen.setdefault(outcome.output, outcome.result)
    return outcome if first == outcome.result else _twin(outcome)


def _twin(outcome: Outcome) -> Outcome:
    """Another file has the same SOP instance UID and other content."""
    return replace(outcome, status="quarantined", code="DATA-02", output="", result="")


def _is_done(outcome: Outcome | None, stamp: str, out: Path, passed: frozenset[str]) -> bool:
    """Whether nothing is to be done: unchanged, its output there, no new verdict of a person."""
    if outcome is None or outcome.stamp != stamp:
        return False
    if outcome.status != "done":
        return outcome.code not in passed
    return (out / outcome.output).is_file()


def _stamp(key: bytes, path: Path) -> str:
    """Keyed, and without digits in a row that could be taken for a date or a number."""
    try:
        status = path.lstat()
    except OSError:
        return ""
    return pseudonym(key, "stamp", str(status.st_size), str(status.st_mtime_ns))

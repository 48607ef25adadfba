"""A folder of scans to a folder of de-identified ones, with an audit that holds no values.

Files are done by worker processes and take their names in the order of the input, so that the
output is the same bytes for any number of workers, and what a killed run leaves is a beginning of
the whole. A finished file waits in OUT/.partial; its name and its line of the audit come after.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from core_mri.errors import ConfigError, DataError
from core_mri.version import __version__
from data_registry.deidentify.actions import EDITION, OPTIONS_EDITION
from data_registry.deidentify.faces import FacePolicy
from data_registry.deidentify.heads import FaceVerdict
from data_registry.deidentify.identifiers import file_id, pseudonym
from data_registry.deidentify.outcome import Outcome, PrivateDetails
from data_registry.deidentify.pixels import (
    PixelMode,
    PixelVerdict,
    look_at_faces,
    look_at_pixels,
)
from data_registry.deidentify.profile import Profile
from data_registry.deidentify.work import WAITING, Done, Task, single, work
from data_registry.worker_pool import WorkerPool

AUDIT = "audit.jsonl"
_KIND = "core-mri data deidentify"
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
    pixels: PixelMode = "skip",
    faces: FacePolicy = "keep",
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
        pixels: Look for text in the pixels: ``check`` quarantines the series that shows some,
            ``blank`` takes away text that the file's own header tells, ``skip`` does not look.
        faces: ``crop`` or ``deface`` heads, and hold back those where it is not sure.

    Yields:
        One item per file, in order, after its line of the audit is written.

    Raises:
        ConfigError: CONFIG-03 when `out` holds something else, CONFIG-04 when it was made with
            another key or profile.
        DataError: DATA-07 when `out` cannot be written.
    """
    known = {} if dry_run else _open_audit(out, key, profile, pixels, faces)
    named = [(path, file_id(key, path.absolute()), _stamp(key, path)) for path in files]
    todo = [
        (identity, str(path.absolute()), stamp)
        for path, identity, stamp in named
        if not _is_done(known.get(identity), stamp, out)
    ]
    own = _own(source, key, pixels, faces)
    common = Task((), _root(source), None if dry_run else str(out), key, profile, own)
    audit = None if dry_run else (out / AUDIT).open("a", encoding="ascii")
    with WorkerPool(min(jobs, max(1, len(todo) // 4))) as pool:
        shown = None
        if pixels != "skip":
            shown = look_at_pixels([path for _, path, _ in todo], pool, pixels)
        fitted = None
        if faces != "keep":
            fitted = look_at_faces([path for _, path, _ in todo], pool, faces)
        common = replace(common, face_policy=faces)
        results = _results(pool, _tasks(todo, common, shown, fitted))
        seen: dict[str, str] = {}
        try:
            for path, identity, stamp in named:
                before = known.get(identity)
                if before is not None and _is_done(before, stamp, out):
                    yield Item(path, before, PrivateDetails())
                    continue
                outcome, details = next(results)
                if dry_run:
                    outcome = _without_twin(outcome, seen)
                else:
                    outcome = _named(outcome, out, before.output if before else "")
                    _append(audit, outcome)
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
    todo: list[tuple[str, str, str]],
    common: Task,
    shown: dict[str, PixelVerdict] | None,
    fitted: dict[str, FaceVerdict] | None,
) -> Iterator[Task]:
    waiting = iter(todo)
    while batch := tuple(islice(waiting, _BATCH)):
        own = None if shown is None else {p: shown[p] for _, p, _ in batch if p in shown}
        heads = None if fitted is None else {p: fitted[p] for _, p, _ in batch if p in fitted}
        yield replace(common, files=batch, pixels=own, faces=heads)


def _own(
    source: Path, key: bytes, pixels: PixelMode, faces: FacePolicy
) -> dict[str, tuple[str, str]]:
    """Of a source that is an output of this command with this key: path -> kind, keyed hash.

    Only where text and faces were looked for as they are now, if they are.
    """
    try:
        lines = (source / AUDIT).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    head = _parse(lines[0]) if lines else {}
    if head.get("kind") != _KIND or head.get("key") != pseudonym(key, "audit"):
        return {}
    if pixels not in ("skip", head.get("pixels")) or faces not in ("keep", head.get("faces")):
        return {}
    done = _outcomes(lines[1:]).values()
    return {o.output: (o.kind, o.result) for o in done if o.output and o.kind != "dicom"}


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
        raise _full(error) from None
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


def _open_audit(
    out: Path, key: bytes, profile: Profile, pixels: PixelMode, faces: FacePolicy
) -> dict[str, Outcome]:
    """Outcomes of earlier runs by keyed id; makes the folder and its first line when new."""
    path = out / AUDIT
    head = {
        "kind": _KIND,
        "version": __version__,
        "profile": profile.name,
        "options": sorted(profile.options),
        "table": f"PS3.15 {EDITION} (options {OPTIONS_EDITION})",
        "codes": profile.codes,
        "pixels": pixels,
        "faces": faces,
        "key": pseudonym(key, "audit"),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(out.iterdir()):
                raise ConfigError(
                    "CONFIG-03",
                    f"{out} is not empty and holds no {AUDIT} of this command.",
                    fix="Give a new folder.",
                )
            path.write_text(json.dumps(head) + "\n", encoding="ascii")
        text = path.read_text(encoding="ascii", errors="replace")
        if not text.endswith("\n"):  # killed while it wrote a line
            path.write_text(text + "\n", encoding="ascii", errors="replace")
        lines = text.splitlines()
        first = _parse(lines[0]) if lines else {}
        _check_head(path, first, head)
        shutil.rmtree(out / WAITING, ignore_errors=True)
        (out / WAITING).mkdir()
    except OSError as error:
        raise _full(error) from None
    return _outcomes(lines[1:])


def _check_head(path: Path, first: dict[str, Any], head: dict[str, Any]) -> None:
    if first.get("kind") != _KIND:
        raise ConfigError(
            "CONFIG-03", f"{path} was not written by `{_KIND}`.", fix="Give a new folder."
        )
    if first.get("key") != head["key"]:
        raise ConfigError(
            "CONFIG-04",
            f"{path.parent} was made with another key; one folder has one key.",
            fix="Use the key of the first run, or give a new folder.",
        )
    different = [
        name
        for name in ("version", "profile", "options", "table", "pixels", "faces")
        if first.get(name) != head[name]
    ]
    if different:
        raise ConfigError(
            "CONFIG-04",
            f"{path.parent} was made with another {different[0]} ({first.get(different[0])}).",
            fix="Give a new folder: one folder is de-identified in one way.",
        )


def _outcomes(lines: list[str]) -> dict[str, Outcome]:
    """Later lines win; a line cut off by a kill is skipped, its file is done again."""
    known = {}
    for line in lines:
        record = _parse(line)
        if record:
            known[record["file"]] = Outcome(**record, repeated=True)
    return known


def _parse(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _append(audit: TextIO | None, outcome: Outcome) -> None:
    if audit is None:
        return
    record = dict(vars(outcome))
    del record["repeated"]
    try:
        audit.write(json.dumps(record) + "\n")
        audit.flush()
    except OSError as error:
        raise _full(error) from None


def _is_done(outcome: Outcome | None, stamp: str, out: Path) -> bool:
    if outcome is None or outcome.stamp != stamp:
        return False
    return outcome.status != "done" or (out / outcome.output).is_file()


def _stamp(key: bytes, path: Path) -> str:
    """Keyed, and without digits in a row that could be taken for a date or a number."""
    try:
        status = path.lstat()
    except OSError:
        return ""
    return pseudonym(key, "stamp", str(status.st_size), str(status.st_mtime_ns))


def _full(error: OSError) -> DataError:
    return DataError(
        "DATA-07",
        f"cannot write to the output folder: {error.strerror}.",
        fix="Make room and run the command again; it goes on where it stopped.",
    )

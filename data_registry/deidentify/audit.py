"""``audit.jsonl``: how a folder was de-identified, and a line for every file, without its values.

The first line says who did what (key, profile, scope); then a line a file, the later one wins.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TextIO

from core_mri.errors import ConfigError, DataError
from core_mri.version import __version__
from data_registry.deidentify.actions import EDITION, OPTIONS_EDITION
from data_registry.deidentify.identifiers import pseudonym
from data_registry.deidentify.outcome import Outcome
from data_registry.deidentify.profile import Profile
from data_registry.deidentify.scope import Scope

AUDIT = "audit.jsonl"
_KIND = "core-mri data deidentify"
AUDIT_START = f'{{"kind": "{_KIND}"'.encode()
"""How an audit begins, when it is met among the files of an input."""
WAITING = ".partial"
"""Folder below the output where finished files wait for their names."""


def read_audit(folder: Path) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """First line, and the newest outcome of each file by keyed id.

    Raises:
        ConfigError: CONFIG-03 when the folder is no output of ours.
    """
    path = folder / AUDIT
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    head = _parse(lines[0]) if lines else {}
    if head.get("kind") != _KIND:
        raise ConfigError(
            "CONFIG-03",
            f"{folder} holds no {AUDIT} of `core-mri data deidentify`.",
            fix="Give the output folder of that command.",
        )
    return head, _outcomes(lines[1:])


def open_audit(out: Path, key: bytes, profile: Profile, scope: Scope) -> dict[str, Outcome]:
    """Outcomes of earlier runs by keyed id; makes the folder and its first line when new.

    Raises:
        ConfigError: CONFIG-03 when `out` holds something else, CONFIG-04 when it was made with
            another key, profile or scope.
        DataError: DATA-07 when it cannot be written.
    """
    path = out / AUDIT
    head = {
        "kind": _KIND,
        "version": __version__,
        "profile": profile.name,
        "options": sorted(profile.options),
        "table": f"PS3.15 {EDITION} (options {OPTIONS_EDITION})",
        "codes": profile.codes,
        **scope.to_mapping(),
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
        _check_head(path, _parse(lines[0]) if lines else {}, head)
        shutil.rmtree(out / WAITING, ignore_errors=True)
        (out / WAITING).mkdir()
    except OSError as error:
        raise cannot_write(error) from None
    return _outcomes(lines[1:])


def own_outputs(source: Path, key: bytes, scope: Scope) -> dict[str, tuple[str, str]]:
    """Of a source that is an output of this command with this key: path -> kind, keyed hash.

    Only where text and faces were looked for as they are now, if they are.
    """
    try:
        head, outcomes = read_audit(source)
    except ConfigError:
        return {}
    if (
        head.get("key") != pseudonym(key, "audit")
        or scope.pixels not in ("skip", head.get("pixels"))
        or scope.faces not in ("keep", head.get("faces"))
    ):
        return {}
    return {
        o.output: (o.kind, o.result) for o in outcomes.values() if o.output and o.kind != "dicom"
    }


def append(audit: TextIO | None, outcome: Outcome) -> None:
    """Write the line of one file.

    Raises:
        DataError: DATA-07 when it cannot be written.
    """
    if audit is None:
        return
    record = dict(vars(outcome))
    del record["repeated"]
    try:
        audit.write(json.dumps(record) + "\n")
        audit.flush()
    except OSError as error:
        raise cannot_write(error) from None


def cannot_write(error: OSError) -> DataError:
    """The error of a full disk or a folder that refuses."""
    return DataError(
        "DATA-07",
        f"cannot write to the output folder: {error.strerror}.",
        fix="Make room and run the command again; it goes on where it stopped.",
    )


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
    different = [name for name in head if first.get(name) != head[name]]
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

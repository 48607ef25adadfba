"""Where the data of a registry went: weights trained on it, exports, shares, deny lists.

Each use is a file of its own in ``uses/``, written aside and renamed, so that writers need not wait
for each other. Its patients are named by `mark`, so that a withdrawal finds the uses of a patient,
and nobody else finds the patient.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from core_mri.errors import DataError
from data_registry.governance.audit_log import actor, now, released
from data_registry.shards import PARTIAL, cannot_write, fsync

FOLDER = "uses"
logger = logging.getLogger(__name__)


def mark(subject_id: str) -> str:
    """A hash of a keyed pseudonym: who knows the pseudonym finds it, nobody gets back to it.

    ``SHA-256("core-mri subject " + pseudonym)``, the first 128 bits as hexadecimal digits.
    """
    return hashlib.sha256(f"core-mri subject {subject_id}".encode()).hexdigest()[:32]


def record_use(
    registry: Path, kind: str, subjects: Iterable[str], what: Mapping[str, object]
) -> None:
    """Note a use of patients' data; of a registry that cannot be written to, only warn.

    A release is also an entry of the audit log. Weights are none: they stay with who trains.

    Args:
        registry: Folder of the registry.
        kind: ``weights``, ``export``, ``share``, ``card`` or ``deny list``.
        subjects: Pseudonyms.
        what: What a steward needs to find it again, such as ``folder`` and ``sha256``.
    """
    marks = sorted({mark(subject) for subject in subjects})
    content = {"kind": kind, "when": now(), "who": actor(), **what, "subjects": marks}
    text = json.dumps(content, indent=1) + "\n"
    name = f"{secrets.token_hex(8)}.json"
    folder = registry / FOLDER
    aside = folder / f"{PARTIAL}{name}"
    try:
        folder.mkdir(exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        fsync(aside)
        aside.replace(folder / name)
    except OSError as error:
        logger.warning(
            "this use is not noted in the registry: %s", cannot_write(error, str(folder))
        )
        return
    if kind != "weights":
        digest = hashlib.sha256(text.encode()).hexdigest()
        summary = {**what, "subjects": len(marks), "use": name, "use_sha256": digest}
        released(registry, kind, summary)


def note_training(registry: Path, weights: Path, subjects: Iterable[str], run: str) -> None:
    """Note that a weights folder was trained on patients of a registry.

    Args:
        registry: Folder of the registry.
        weights: The folder, complete.
        subjects: Pseudonyms.
        run: What made it, such as ``pretrain``.
    """
    sha256 = json.loads((weights / "config.json").read_text(encoding="utf-8"))["sha256"]
    what = {"run": run, "sha256": sha256, "folder": str(weights.resolve())}
    record_use(registry, "weights", subjects, what)


def uses_of(registry: Path, subjects: Iterable[str]) -> list[dict[str, object]]:
    """The uses that hold any of these patients, oldest first, without their lists of patients."""
    marks = {mark(subject) for subject in subjects}
    found = [use for use in _read(registry) if marks & {str(m) for m in use.pop("subjects")}]
    return sorted(found, key=lambda use: str(use["when"]))


def weights_of(roots: Iterable[Path], subjects: Iterable[str]) -> list[dict[str, object]]:
    """Weights folders below some roots whose card lists any of these patients.

    Args:
        roots: Folders, searched with all below them.
        subjects: Pseudonyms.

    Returns:
        ``folder`` and ``sha256`` (of the tensors) of each.

    Raises:
        DataError: DATA-01 when a root does not exist.
    """
    wanted = set(subjects)
    found: list[dict[str, object]] = []
    for root in roots:
        if not root.is_dir():
            raise DataError("DATA-01", f"no folder {root}.", fix="Check --weights.")
        for path in sorted(root.rglob("config.json")):
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
                listed = config["card"]["subjects"] or ()
            except (OSError, ValueError, KeyError, TypeError):
                continue  # another program's file of that name
            if wanted & set(listed):
                found.append({"folder": str(path.parent), "sha256": str(config.get("sha256", ""))})
    return found


def _read(registry: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((registry / FOLDER).glob("[!.]*.json")):
        try:
            yield json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            logger.warning("%s is damaged; the use it noted is not known any more", path.name)

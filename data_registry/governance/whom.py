"""Which subjects a steward means: by pseudonym, or by the id that the hospital has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError, DataError
from data_registry.dedupe import linked_subjects
from data_registry.deidentify.identifiers import load_key, pseudonym

if TYPE_CHECKING:
    from data_registry.catalogue import Registry


@dataclass(kw_only=True)
class Whom:
    """Subjects that are one person."""

    subjects: dict[str, list[str]] = field(default_factory=dict)
    """Pseudonym to the names of the sources that have scans of it."""
    joined: list[str] = field(default_factory=list)
    """Those of them that `dedupe` found to be the same person by their scans."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Of the same id in other namespaces, not taken: pseudonym to source."""
    absent: list[str] = field(default_factory=list)
    """When there is nobody: the pseudonyms that were looked for."""


def find(
    registry: Registry, subject: str, *, source: str, key_file: Path | None, everywhere: bool
) -> Whom:
    """Look a person up.

    Equal ids in two namespaces may be two people: the others are taken only with `everywhere`, or
    when `dedupe` found the same scans under both.

    Args:
        registry: The registry.
        subject: A pseudonym of the registry; or the id in the files, with `source`.
        source: Name of the source whose id it is; empty for a pseudonym.
        key_file: Project key, for an id; ``<registry>.key`` beside the registry when None.
        everywhere: Take the id in all namespaces.

    Returns:
        Without subjects when there is nobody.

    Raises:
        ConfigError: CONFIG-02 or CONFIG-05 for the key, CONFIG-05 for a source that does not exist.
    """
    known = {name for (name,) in registry.rows("SELECT DISTINCT subject_id FROM all_splits")}
    whom = Whom()
    if not source and not everywhere:
        found = [subject] if subject in known else []
        whom.absent = [subject]
    else:
        by_source = _pseudonyms(registry, subject, project_key(registry, key_file))
        if source and source not in by_source:
            raise ConfigError(
                "CONFIG-05",
                f"{registry.path} has no source {source!r}; there are: "
                f"{', '.join(sorted(by_source)) or 'none'}.",
            )
        there = {
            name: next((p for p in candidates if p in known), "")
            for name, candidates in by_source.items()
        }
        whom.absent = [
            p for name, ps in by_source.items() for p in ps if everywhere or name == source
        ]
        found = sorted({p for name, p in there.items() if p and (everywhere or name == source)})
        whom.elsewhere = {p: name for name, p in sorted(there.items()) if p and p not in found}
    for group in linked_subjects(registry):
        if set(found) & set(group.subjects):
            whom.joined += [name for name in group.subjects if name not in found]
    for name in (*found, *whom.joined):
        rows = registry.rows(
            "SELECT DISTINCT source FROM all_volumes WHERE subject_id = ? ORDER BY 1", [name]
        )
        whom.subjects[name] = [row[0] for row in rows]
    whom.elsewhere = {p: n for p, n in whom.elsewhere.items() if p not in whom.subjects}
    return whom


def _pseudonyms(registry: Registry, subject: str, key: bytes) -> dict[str, list[str]]:
    """Each source with the pseudonyms that an id may have there; see `Source.subject_of`."""
    ways = [subject, subject.lower(), subject.removeprefix("sub-")]
    ways += [f"folder:{subject}", f"study:{subject}"]
    rows = registry.rows("SELECT source, subject_namespace FROM sources")
    return {
        source: [pseudonym(key, "subject", namespace or source, way) for way in dict.fromkeys(ways)]
        for source, namespace in rows
    }


def project_key(registry: Registry, path: Path | None) -> bytes:
    """The key of a registry, from a file, or from the one beside the registry.

    Raises:
        ConfigError: CONFIG-02 without a file, CONFIG-05 when it is another key.
    """
    path = path or registry.path.with_name(f"{registry.path.name}.key")
    key = load_key(path, create=False)
    if pseudonym(key, "registry", "key check") != registry.info.key_check:
        raise ConfigError(
            "CONFIG-05",
            f"the key in {path} is not the one that {registry.path} was made with.",
            fix="Give the right one with --key-file.",
        )
    return key


def nobody(registry: Registry, subject: str) -> DataError:
    """The error when nobody was found; it repeats the words of the steward to the steward alone."""
    return DataError(
        "DATA-09",
        f"{registry.path} holds no subject {subject!r}.",
        fix="Give a pseudonym of the view `subjects`, or the id in the files with --source NAME.",
    )

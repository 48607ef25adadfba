"""`withdraw`: take a patient out of a registry, and say where the data went beyond recall.

In this order, each step whole or not at all, all of them safe to repeat: what is to be done is
noted; the ledger refuses the patient; cohorts lose the volumes; shards and catalogue are replaced
by one rename; what they replace is deleted; the audit log gets an entry; the note goes.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core_mri.errors import ConfigError
from data_registry import cohorts
from data_registry.commits import sole_writer, sweep
from data_registry.governance import audit_log, withdrawals
from data_registry.governance.removal import Owned, delete, owned, rewrite, strangers
from data_registry.governance.uses import mark, uses_of, weights_of
from data_registry.governance.whom import Whom, find, nobody
from data_registry.similarity.store import forget

if TYPE_CHECKING:
    from data_registry.catalogue import Registry


@dataclass(frozen=True, kw_only=True)
class WithdrawConfig:
    """Whom to take out."""

    subject: str
    """Pseudonym of the registry; or the id in the files, with `source`."""
    source: str = ""
    """Source whose id it is."""
    key_file: Path | None = None
    """Project key, for an id; ``<registry>.key`` beside the registry when None."""
    everywhere: bool = False
    """Take the id in all namespaces: the steward knows that they are one person."""
    weights: tuple[Path, ...] = ()
    """Folders to search for weights that were trained on the patient."""
    reason: str = ""
    """For the audit log; it names no patient."""
    actor: str = ""
    """Who asks for it; the account when empty."""
    dry_run: bool = False
    """Only tell."""


@dataclass(kw_only=True)
class WithdrawReport:
    """What was taken out, and what is out of reach."""

    whom: Whom
    volumes: int = 0
    slices: int = 0
    shards: int = 0
    """Shards written anew, or deleted."""
    cohorts: list[str] = field(default_factory=list)
    """Cohorts that lost volumes, and have another hash now."""
    deleted: list[str] = field(default_factory=list)
    """Files that somebody had put into the registry folder."""
    weights: list[dict[str, object]] = field(default_factory=list)
    """Weights below the given folders whose card lists the patient."""
    uses: list[dict[str, object]] = field(default_factory=list)
    """Weights, exports, shares and deny lists that the registry knows of."""
    already: bool = False
    """Withdrawn before: nothing was left to do."""
    completed: bool = False
    """An interrupted withdrawal was completed first."""


def withdraw(registry: Registry, config: WithdrawConfig) -> WithdrawReport:
    """Take a patient out of shards, catalogue and cohorts, and refuse the patient for ever.

    Killed at any moment, readers find the registry with the patient or without; the same again
    completes it. Bytes of deleted files are the file system's, as are its snapshots and backups.

    Args:
        registry: The registry.
        config: Whom, why, and where weights are.

    Raises:
        ConfigError: What `find` raises, CONFIG-01 when the reason names the patient, CONFIG-05
            when weights that name the patient lie inside the registry folder.
        DataError: DATA-07 when the disk is full, DATA-08 when another process is writing or a shard
            with scans of others is damaged, DATA-09 when nobody is found.
    """
    if config.subject in config.reason:
        raise ConfigError("CONFIG-01", "the reason names the patient, and the audit log must not.")
    if config.dry_run:
        whom = _find(registry, config)
        return _look(registry, whom, owned(registry, whom.subjects), config)
    with sole_writer(registry):
        begun = withdrawals.pending(registry.path)
        if begun is not None:
            _carry_out(registry, begun)
        try:
            whom = _find(registry, config)
        except _Already as error:
            report = _look(registry, error.whom, owned(registry, ()), config)
            report.already, report.completed = True, begun is not None
            return report
        own = owned(registry, whom.subjects)
        report = _look(registry, whom, own, config)
        if inside := weights_of([registry.path], whom.subjects):
            raise ConfigError(
                "CONFIG-05",
                f"weights that name the patient lie inside the registry: {inside[0]['folder']}.",
                fix="Move them out of its folder, then run the same command again.",
            )
        report.completed = begun is not None
        new = withdrawals.Pending(
            name=secrets.token_hex(8),
            when=audit_log.now(),
            who=config.actor or audit_log.actor(),
            reason=config.reason,
            subjects=sorted(whom.subjects),
            volumes=sorted(own.volumes),
            words=sorted(own.words),
            slices=report.slices,
            commit=audit_log.last_commit(registry.path),
        )
        withdrawals.begin(registry.path, new)
        report.cohorts, report.deleted = _carry_out(registry, new)
    return report


class _Already(Exception):
    """Nobody of that name is there, because they were withdrawn."""

    def __init__(self, whom: Whom) -> None:
        self.whom = whom


def _find(registry: Registry, config: WithdrawConfig) -> Whom:
    whom = find(
        registry,
        config.subject,
        source=config.source,
        key_file=config.key_file,
        everywhere=config.everywhere,
    )
    if not whom.subjects:
        gone = [name for name in whom.absent if mark(name) in withdrawals.withdrawn(registry.path)]
        if not gone:
            raise nobody(registry, config.subject)
        whom.subjects = {name: [] for name in gone}
        raise _Already(whom)
    return whom


def _look(registry: Registry, whom: Whom, own: Owned, config: WithdrawConfig) -> WithdrawReport:
    """What is there, and what of it is elsewhere."""
    members = registry.sql(
        "SELECT DISTINCT cohort FROM cohort_members WHERE list_contains(?, volume_id) ORDER BY 1",
        [sorted(own.volumes)],
    )
    return WithdrawReport(
        whom=whom,
        volumes=len(own.volumes),
        slices=sum(int(str(row["num_slices"])) for row in own.volumes.values()),
        shards=len(own.shards),
        cohorts=members["cohort"].to_pylist(),
        deleted=[p.relative_to(registry.path).as_posix() for p in strangers(registry, own)],
        weights=weights_of(config.weights, whom.subjects),
        uses=uses_of(registry.path, whom.subjects),
    )


def _carry_out(registry: Registry, pending: withdrawals.Pending) -> tuple[list[str], list[str]]:
    """Do, or complete, what was noted; the caller holds the lock."""
    path = registry.path
    withdrawals.add_to_ledger(path, pending)
    own = owned(registry, pending.subjects)
    own.words |= frozenset(pending.words)
    changed = _from_cohorts(registry, pending)
    rewrite(registry, own)
    forget(registry, pending.volumes)
    changed += _from_cohorts(registry, pending)  # those that were frozen meanwhile
    sweep(registry)
    others = strangers(registry, own)
    delete(registry, others)
    done = {entry.what.get("withdrawal") for entry in audit_log.verify(path).entries}
    if pending.name not in done:
        what = {
            "withdrawal": pending.name,
            "subjects": [mark(subject) for subject in pending.subjects],
            "volumes": len(pending.volumes),
            "slices": pending.slices,
            "cohorts": changed,
            "files_deleted": len(others),
            "reason": pending.reason,
            "commits": [pending.commit, audit_log.last_commit(path)],
        }
        audit_log.append(path, "withdraw", what, who=pending.who)
    withdrawals.end(path)
    return changed, [file.relative_to(path).as_posix() for file in others]


def _from_cohorts(registry: Registry, pending: withdrawals.Pending) -> list[str]:
    ids: Sequence[str] = pending.volumes
    return cohorts.withdraw(registry, ids, [*pending.words], pending.when)

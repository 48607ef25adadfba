"""Look for people who are in a registry under several subjects, and note what was found.

Subjects are linked by volumes that show the same scan. Splits are never changed: `ingest` puts a
new subject into the split of the one whose voxels it repeats, and where two linked subjects are in
different splits already, that is a conflict for a person to decide. The view ``conflicts`` of the
catalogue lists their subjects, and pretraining refuses them (`data_registry.overlap`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_registry.catalogue import Registry
from data_registry.commits import commit, sole_writer
from data_registry.duplicates import (
    Finder,
    Search,
    exact_duplicates,
    groups_of_subjects,
    near_duplicates,
    pictures_of,
)
from data_registry.fingerprints import fingerprint, load_fingerprints
from data_registry.governance.audit_log import recorded


@dataclass(frozen=True)
class Group:
    """Subjects that are one person."""

    subjects: tuple[str, ...]
    splits: tuple[str, ...]
    """Of each subject."""
    sources: tuple[str, ...]
    """Of their duplicate volumes, without repetition."""

    @property
    def conflict(self) -> bool:
        """Whether they are in different splits."""
        return len(set(self.splits)) > 1


@dataclass(frozen=True, kw_only=True)
class DedupeReport:
    """What one search found."""

    hashed: int
    """Volumes whose slices were hashed now."""
    exact: int
    """Pairs of volumes with the same voxels."""
    near: int
    """Further pairs that look the same."""
    new: int
    """Pairs that no earlier search had noted."""
    groups: list[Group]
    """All linked subjects of the registry."""
    search: Search

    def to_mapping(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "hashed": self.hashed, "exact": self.exact, "near": self.near, "new": self.new,
            "empty_slices": self.search.empty, "common_pictures": self.search.common,
            "skipped_pictures": self.search.skipped, "rejected_pairs": self.search.rejected,
            "conflicts": sum(group.conflict for group in self.groups),
            "groups": [
                {
                    "subjects": list(group.subjects), "splits": list(group.splits),
                    "sources": list(group.sources), "conflict": group.conflict,
                }
                for group in self.groups
            ],
        }  # fmt: skip


def dedupe(
    registry: Registry,
    *,
    jobs: int = 1,
    finders: Sequence[Finder] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> DedupeReport:
    """Hash new volumes, search all of them for duplicates across subjects, and note these.

    Args:
        registry: The registry.
        jobs: Processes that hash.
        finders: Further opinions on which slices look alike, such as of embeddings.
        on_progress: Called with volumes hashed and volumes in all.

    Raises:
        DataError: DATA-07 when the disk is full, DATA-08 when another process is writing or a
            shard is missing or damaged.
    """
    with recorded(registry.path, "dedupe") as what:
        hashed = fingerprint(registry, jobs=jobs, on_progress=on_progress)
        rows = {row.volume_id: row for row in registry.volumes("role = 'image'")}
        exact = exact_duplicates(list(rows.values()))
        search = near_duplicates(
            load_fingerprints(registry, list(rows)),
            {name: row.subject_id for name, row in rows.items()},
            pictures_of(registry, rows),
            finders=finders,
        )
        same = {row.volume_id: row.pixel_hash for row in rows.values()}
        near = [row for row in search.rows if same[row.volume_id] != same[row.other_id]]
        with sole_writer(registry):
            known = set(registry.rows("SELECT volume_id, other_id FROM duplicates"))
            stored = {name for (name,) in registry.rows("SELECT volume_id FROM volumes")}
            new = [
                row
                for row in (*exact, *near)
                if (row.volume_id, row.other_id) not in known
                and {row.volume_id, row.other_id} <= stored  # nobody withdrew them meanwhile
            ]
            if new:
                commit(registry, {"duplicates": new})
        what |= {"hashed": hashed, "pairs": len(new)}
    return DedupeReport(
        hashed=hashed,
        exact=len(exact),
        near=len(near),
        new=len(new),
        groups=linked_subjects(registry),
        search=search,
    )


def linked_subjects(registry: Registry) -> list[Group]:
    """The groups of subjects that earlier searches found to be one person."""
    pairs = list(
        registry.rows(
            "SELECT d.subject_id, other_subject_id, a.source, b.source FROM duplicates AS d "
            "JOIN volumes AS a USING (volume_id) JOIN volumes AS b ON b.volume_id = d.other_id"
        )
    )
    splits = dict(registry.rows("SELECT subject_id, split FROM splits"))
    groups = []
    for names in groups_of_subjects([(one, other) for one, other, *_ in pairs]):
        sources = {s for one, _, *both in pairs if one in names for s in both}
        groups.append(
            Group(tuple(names), tuple(splits[name] for name in names), tuple(sorted(sources)))
        )
    return groups

"""Labels by today's rules for volumes that are stored already, as one further commit."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from data_registry.catalogue import Registry
from data_registry.commits import commit, sole_writer
from data_registry.governance.audit_log import recorded
from data_registry.labels import LABELS, Classifier, Votes, cast_votes, count_votes
from data_registry.schema import RELABELED, LabelRow, VolumeRow

if TYPE_CHECKING:
    from core_mri.volume import FactValue

_TEXT_IS_GONE = ("list", "path")


def relabel(
    registry: Registry, *, classifier: Classifier | None = None, write: bool = True
) -> dict[tuple[str, str, str], int]:
    """Vote again on every volume with the rules of this version.

    Header and descriptions are those in the catalogue. Paths and source lists are not stored: what
    they said at ingest counts again. Voxels are read for the classifier only. Earlier labels stay
    in their commits.

    Args:
        registry: The registry.
        classifier: An image classifier that votes on images.
        write: Commit the new labels; False only counts.

    Returns:
        (label, old, new) -> volumes, for all labels that differ.

    Raises:
        ConfigError: CONFIG-01 when a source list named a region or sequence that no vocabulary has
            any more.
        DataError: DATA-07 when the disk is full, DATA-08 when another process is writing.
    """
    if not write:
        return _changes(_relabeled(registry, classifier))
    with sole_writer(registry), recorded(registry.path, "label") as what:
        pairs = _relabeled(registry, classifier)
        what["volumes"] = len(pairs)
        if pairs:
            commit(registry, {"labels": [new for _, new in pairs]})
        return _changes(pairs)


def _relabeled(
    registry: Registry, classifier: Classifier | None
) -> list[tuple[VolumeRow, LabelRow]]:
    """Volumes whose labels, confidences or votes are others now, with the new ones."""
    pairs = []
    for row in registry.volumes():
        facts: dict[str, FactValue] = json.loads(row.facts)
        past = past_votes(row)
        hints = {kind: past[kind].get("list", "") for kind in ("region", "sequence")}
        votes = cast_votes(facts, row.plane, hints)
        for kind in LABELS:
            if "path" in past[kind]:
                votes[kind]["path"] = past[kind]["path"]
        seen = classifier(registry.read(row)) if classifier and row.role == "image" else {}
        for kind, (label, _) in seen.items():
            votes[kind]["image"] = label
        labels = count_votes(facts, row.plane, votes, {k: sure for k, (_, sure) in seen.items()})
        new = LabelRow(volume_id=row.volume_id, **{n: getattr(labels, n) for n in RELABELED})
        if any(getattr(new, name) != getattr(row, name) for name in RELABELED):
            pairs.append((row, new))
    return pairs


def past_votes(row: VolumeRow) -> Votes:
    """What the sources said when the labels of a volume were made.

    Volumes of versions that kept no votes name their sources: those that decided said the label.
    """
    votes: Votes = {kind: {} for kind in LABELS}
    votes.update(json.loads(row.votes))
    if row.votes == "{}":
        for kind in ("region", "sequence"):
            for source in getattr(row, f"{kind}_by").split("+"):
                if source in _TEXT_IS_GONE:
                    votes[kind][source] = getattr(row, kind)
    return votes


def _changes(pairs: list[tuple[VolumeRow, LabelRow]]) -> dict[tuple[str, str, str], int]:
    counts: Counter[tuple[str, str, str]] = Counter()
    for old, new in pairs:
        for kind in ("region", "sequence", "contrast"):
            before, after = getattr(old, kind), getattr(new, kind)
            if before != after:
                counts[kind, before, after] += 1
    return dict(counts.most_common())

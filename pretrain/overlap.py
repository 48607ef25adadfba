"""Test patients are not pretrained on: what stops a run, or stands in its model card."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from core_mri.errors import ConfigError
from data_registry.catalogue import Registry
from data_registry.deny_list import deny_list_of, open_deny_list
from data_registry.overlap import Overlap, find_overlap
from data_registry.schema import VolumeRow
from pretrain.config import PretrainConfig

OVERLAP_FILE = "overlap.txt"
"""In the run folder: the sentence of `check_overlap`, for the model card."""

log = logging.getLogger(__name__)


def check_overlap(config: PretrainConfig, volumes: Sequence[VolumeRow]) -> str:
    """Compare the training volumes with the test patients of all tasks that are known.

    These are the test split of the run's own registry, and the registries and deny lists of
    ``config.test_sets``. Patients are recognized by pseudonym, voxels and looks.

    Args:
        config: The run.
        volumes: The volumes it trains on.

    Returns:
        One sentence for the model card.

    Raises:
        ConfigError: CONFIG-05 when test patients are among the training patients and
            ``config.allow_overlap`` gives no reason to allow it.
        DataError: What `open_deny_list` raises, DATA-08 when a shard is missing or damaged.
    """
    registry = Registry.open(config.registry)
    found = [
        find_overlap(registry, volumes, deny)
        for deny in (deny_list_of(registry), *map(open_deny_list, config.test_sets))
    ]
    hit = [overlap for overlap in found if overlap.subjects]
    tested = sum(overlap.tested for overlap in found)
    if not hit:
        return (
            f"checked: none of {tested} test patients of {len(found)} test set(s) is among the "
            "training patients, by pseudonym, voxels and looks"
        )
    told = "; ".join(map(_told, hit))
    if not config.allow_overlap:
        raise ConfigError(
            "CONFIG-05",
            f"test patients are among the training patients. {told}.",
            fix=f'Leave them out with --where "subject_id NOT IN ({_first(hit)})", or say why '
            "they may stay with --allow-overlap REASON, which the model card will tell.",
        )
    log.warning("test patients are pretrained on: %s; allowed: %s", told, config.allow_overlap)
    return f"OVERLAP: {told}; allowed: {config.allow_overlap}"


def _told(overlap: Overlap) -> str:
    ways = (
        ("pseudonym", overlap.by_subject),
        ("voxels", overlap.by_voxels),
        ("looks", overlap.by_look),
    )
    counts = ", ".join(f"{len(who)} by {way}" for way, who in ways if who)
    return (
        f"{len(overlap.subjects)} training patients are among the {overlap.tested} test patients "
        f"of {overlap.name} ({counts})"
    )


def _first(hit: Sequence[Overlap], most: int = 20) -> str:
    """The training patients to leave out, as SQL."""
    names = sorted({name for overlap in hit for name in overlap.subjects})
    return ", ".join(f"'{name}'" for name in names[:most]) + (", ..." if len(names) > most else "")

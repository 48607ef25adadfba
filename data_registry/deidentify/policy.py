"""The lists of ``tables/policy.yaml``: what the standard leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from data_registry.deidentify.actions import Action
from data_registry.deidentify.dictionary import TABLES, tag_of


@dataclass(frozen=True)
class Policy:
    """Explained in ``tables/policy.yaml``; attributes by tag."""

    extra: dict[int, Action]
    classes: frozenset[int]
    bulk: frozenset[int]
    structure: frozenset[int]
    coding_schemes: frozenset[str]
    ethnic_groups: frozenset[str]


@cache
def policy() -> Policy:
    """The policy of this version."""
    import yaml

    lists = yaml.safe_load((TABLES / "policy.yaml").read_text(encoding="utf-8"))

    def tags(keywords: list[str]) -> list[int]:
        found = [tag_of(keyword) for keyword in keywords]
        unknown = [k for k, tag in zip(keywords, found, strict=True) if tag is None]
        if unknown:
            raise ValueError(f"policy.yaml names no attributes of the standard: {unknown}")
        return [tag for tag in found if tag is not None]

    return Policy(
        extra=dict(zip(tags(list(lists["extra"])), lists["extra"].values(), strict=True)),
        classes=frozenset(tags(lists["classes"])),
        bulk=frozenset(tags(lists["bulk"])),
        structure=frozenset(tags(lists["structure"])),
        coding_schemes=frozenset(lists["coding_schemes"]),
        ethnic_groups=frozenset(lists["ethnic_groups"]),
    )

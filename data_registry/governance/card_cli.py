"""`core-mri data card`: what a registry or a cohort is, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_registry.catalogue import Registry
from data_registry.governance.dataset_card import write_card
from data_registry.terminal import parse


@dataclass(frozen=True, kw_only=True)
class _Card:
    """Write a dataset card: README.md, and croissant.json (Croissant 1.1) with its two tables.

    The paths of shards in croissant.json are those below the registry folder. What the registry
    does not know is said to be unknown.
    """

    registry: Path
    """Folder of the registry."""
    out: Path
    """Folder to write: new, empty, or of an earlier card."""
    cohort: str = ""
    """Only the volumes of a frozen cohort."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb.

    Args:
        arguments: Words after ``core-mri data card``.

    Returns:
        The exit code.
    """
    options = parse(_Card, arguments, "card")
    facts = write_card(Registry.open(options.registry), options.out, cohort=options.cohort)
    totals = ", ".join(f"{number} {what}" for what, number in facts.totals.items())
    print(f"{facts.name}: {totals}; licence {facts.mixture.licence}.")
    print(f"\nNext: read {options.out / 'README.md'}, and add what the registry cannot know.")
    return 0

"""`core-mri data sources`: the ready source cards, all or one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from core_mri.config import to_mapping
from data_registry.source_cards import SourceCard, card_names, load_card
from data_registry.terminal import parse, table


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """List the data sets whose downloaded folders `ingest --sources NAME --root DIR` understands.

    A card says under which terms a data set is given out, how its folder looks, and what of it was
    never checked on real files.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """Show one card in full: its name, or a YAML file."""
    json: bool = False
    """Print JSON."""


def main(arguments: Sequence[str]) -> int:
    """`core-mri data sources`."""
    options = parse(_Sources, arguments, "sources")
    if options.name:
        card = load_card(options.name)
        print(json.dumps(_mapping(card), indent=2) if options.json else _one(card))
        return 0
    cards = [load_card(name) for name in card_names()]
    if options.json:
        print(json.dumps([_mapping(card) for card in cards], indent=2))
        return 0
    lines = [
        (card.name, card.tier, card.licence, ", ".join(card.regions()), card.opened)
        for card in cards
    ]
    print(
        table(f"{len(cards)} source cards", ("name", "tier", "licence", "regions", "opened"), lines)
    )
    print("\nNext: core-mri data sources NAME; core-mri data ingest --sources NAME --root FOLDER")
    return 0


def _mapping(card: SourceCard) -> dict[str, object]:
    return {**to_mapping(card), "permitted": to_mapping(card.permitted), "regions": card.regions()}


def _one(card: SourceCard) -> str:
    agreement = card.agreement
    facts = [
        ("licence", card.licence),
        ("terms", str(card.permitted)),
        ("tier", card.tier),
        ("agreement", f"{agreement.name}, version {agreement.version}, {agreement.url}"),
        ("ethics", card.ethics),
        ("cite", card.citation),
        ("DOI", card.doi),
        ("version", card.version),
        ("homepage", card.homepage),
        ("opened", card.opened),
        *(("unverified", what) for what in card.unverified),
    ]
    parts = [f"{card.name}: {card.title}", *(f"  {name:<11}{value}" for name, value in facts)]
    for files in card.files:
        parts.append(f"  {files.role}s: {', '.join(files.include) or 'all files'}")
        about = {
            "without": ", ".join(files.exclude),
            "patient": files.subject,
            "region": files.region,
            "sequence": files.sequence,
            "values": ", ".join(f"{v} {name}" for v, name in files.label_values.items()),
            "splits": ", ".join(f"{split} {pattern}" for split, pattern in files.splits.items()),
        }
        parts += [f"    {name:<9}{value}" for name, value in about.items() if value]
    return "\n".join(parts)

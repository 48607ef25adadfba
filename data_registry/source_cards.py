"""Source cards: what is known of a data set, and how its downloaded folder is read.

A card is one YAML file. Ready ones lie in `sources/cards/`; ``core-mri data sources`` lists them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core_mri.config import load_config
from core_mri.errors import ConfigError
from data_registry.governance.licences import (
    PERMISSIONS,
    UNKNOWN,
    Declared,
    Terms,
    is_listed,
    licence_terms,
    parse_licence,
)
from data_registry.source_files import SourceFiles

if TYPE_CHECKING:
    from data_registry.source_list import Source

CARDS = Path(__file__).parent / "sources" / "cards"
"""Folder of the ready cards."""

Tier = Literal["open", "registered", "restricted"]
Use = Literal["commercial", "redistribution", "derivatives", "weights"]
Requirement = Literal["share_alike", "attribution"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a user has to accept before the data are given out."""

    name: str
    """Its title, or ``none``."""
    version: str = "not stated"
    """Version or date of its text."""
    url: str = "not checked"
    """Where its text is."""


@dataclass(frozen=True, kw_only=True)
class DeclaredTerms:
    """What a text that is no SPDX licence says; what is in none of the lists, it does not state."""

    permits: tuple[Use, ...] = ()
    """Uses that it permits in so many words."""
    forbids: tuple[Use, ...] = ()
    """Uses that it forbids."""
    requires: tuple[Requirement, ...] = ()
    """What it asks for."""
    not_required: tuple[Requirement, ...] = ()
    """What it says is not asked for."""

    def __post_init__(self) -> None:
        both = (set(self.permits) & set(self.forbids)) | (
            set(self.requires) & set(self.not_required)
        )
        if both:
            raise ConfigError("CONFIG-01", f"terms say both yes and no to {', '.join(both)}.")

    def terms(self) -> Terms:
        """As `licence_terms` gives them."""
        yes, no = (*self.permits, *self.requires), (*self.forbids, *self.not_required)
        return Terms(**dict.fromkeys(yes, "yes"), **dict.fromkeys(no, "no"))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a registry keeps of a card beside the licence; what is not known says so."""

    title: str = ""
    """Name of the data set in full."""
    tier: Tier | Literal["not stated"] = "not stated"
    """``open``: anyone may download; ``registered``: after an agreement; ``restricted``: after a
    decision of its owners on the single request."""
    agreement: Agreement = field(default_factory=lambda: Agreement(name="not stated"))
    """What users accept."""
    ethics: str = "not stated"
    """Ethics approval and consent, as published."""
    terms: DeclaredTerms | None = None
    """What the licence says, when it is no SPDX id but ``LicenseRef-...`` or ``sha256:...``."""
    citation: str = "not stated"
    """Reference its authors ask for."""
    doi: str = "not checked"
    """DOI of the data or the paper."""
    version: str = "not stated"
    """Version or date of the data that the card describes."""
    homepage: str = "not stated"
    """Where it is published."""


@dataclass(frozen=True, kw_only=True)
class SourceCard(CardFacts):
    """A data set: terms, and the kinds of files in its downloaded folder."""

    name: str
    """Name of the source in a registry; also the namespace of its patient ids."""
    licence: str
    """SPDX expression, ``LicenseRef-...`` or ``sha256:...`` with `terms`, or ``unknown``."""
    files: tuple[SourceFiles, ...]
    """Kinds of files."""
    subject_namespace: str = ""
    """Patients of equal id are one person within a namespace; `name` when empty."""
    opened: str
    """What of it was really opened by the makers of the card."""
    unverified: tuple[str, ...] = ()
    """What the card says from memory or from public code alone."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("CONFIG-01", f"card {self.name!r}: files is empty.")
        self.sources("/")
        for one in sorted(_ids(self.licence)):
            own = one.startswith("LicenseRef-") and not is_listed(one)
            if own and self.terms is None:
                raise ConfigError(
                    "CONFIG-01",
                    f"card {self.name!r}: licence {one} is no SPDX id, so its terms must be told.",
                    fix=f"Add terms: permits, forbids ({', '.join(PERMISSIONS)}), requires.",
                )
            if not own and one != UNKNOWN and not is_listed(one):
                raise ConfigError(
                    "CONFIG-01",
                    f"card {self.name!r}: licence {one} is in no list of ours.",
                    fix="Write LicenseRef-NAME and its terms, or unknown.",
                )

    @property
    def facts(self) -> CardFacts:
        """The part that a registry keeps."""
        return CardFacts(**{name: getattr(self, name) for name in CardFacts.__dataclass_fields__})

    @property
    def permitted(self) -> Terms:
        """What its licence permits and requires."""
        return licence_terms(self.licence, declared_by(self.licence, self))

    def regions(self) -> tuple[str, ...]:
        """Body regions its files are known to show."""
        return tuple(sorted({files.region for files in self.files if files.region}))

    def sources(self, root: str | Path) -> tuple[Source, ...]:
        """Its files below a folder, ready for `data_registry.ingest`."""
        from data_registry.source_list import Source

        return tuple(
            Source(
                **{name: getattr(files, name) for name in SourceFiles.__dataclass_fields__},
                name=self.name,
                licence=self.licence,
                root=str(root),
                subject_namespace=self.subject_namespace,
                card=self.facts,
            )
            for files in self.files
        )


def declared_by(licence: str, facts: CardFacts | None) -> Declared:
    """The terms that a card declares for the ids of its licence that no list has."""
    if facts is None or facts.terms is None:
        return {}
    return {one: facts.terms.terms() for one in _ids(licence) if not is_listed(one)}


def load_card(name: str | Path) -> SourceCard:
    """Read a card: a YAML file, or the name of a ready one.

    Raises:
        ConfigError: CONFIG-01 with all that is wrong in it, CONFIG-02 when there is no such card,
            CONFIG-05 when a ready card of its name has another licence or namespace.
    """
    ready = card_names()
    path = Path(name)
    if str(name) in ready:
        path = CARDS / f"{name}.yaml"
    elif not path.is_file():
        close = difflib.get_close_matches(str(name), ready, n=1)
        raise ConfigError(
            "CONFIG-02",
            f"no source card {str(name)!r}: no such file, and no ready card.",
            fix=f"Perhaps you meant {close[0]!r}." if close else "See `core-mri data sources`.",
        )
    card = load_config(SourceCard, path)
    if path.parent != CARDS and card.name in ready:
        _agree(card, load_card(card.name), path)
    return card


def card_names() -> list[str]:
    """Names of the ready cards."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def _agree(card: SourceCard, ready: SourceCard, path: Path) -> None:
    for what in ("licence", "subject_namespace"):
        own, other = getattr(card, what), getattr(ready, what)
        if own != other:
            raise ConfigError(
                "CONFIG-05",
                f"{path}: two cards of the name {card.name!r}: {what} is {own!r} here, and "
                f"{other!r} in the ready card.",
                fix="Give your card another name, or the same facts.",
            )


def _ids(licence: str) -> set[str]:
    """All ids of an expression."""
    tree = parse_licence(licence)
    return {tree} if isinstance(tree, str) else set(tree.ids())

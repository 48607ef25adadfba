"""The licence of a mixture: what the sources of a registry, a cohort or an export permit together.

The most restrictive terms of all sources go wherever their data go: into cohorts, exports and model
cards. Two rules need no flag: data of an unknown licence are never exported, and data are given to
others only when every source permits it in so many words.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from core_mri.config import load_config
from core_mri.errors import DataError
from data_registry.governance.licences import (
    IN_CONFLICT,
    UNKNOWN,
    Declared,
    Terms,
    licence_terms,
    meet,
    mixture,
    most_restrictive,
    share_alike_conflict,
)
from data_registry.source_cards import CardFacts, declared_by

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from data_registry.schema import VolumeRow


@dataclass(frozen=True, kw_only=True)
class RegisteredSource:
    """A source as a registry knows it."""

    name: str
    licence: str
    facts: CardFacts
    """From its card; all unknown when there was none."""

    @property
    def terms(self) -> Terms:
        """What its licence permits and requires."""
        return licence_terms(self.licence, declared_by(self.licence, self.facts))


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The licence of data from several sources."""

    licence: str
    """SPDX expression."""
    terms: Terms
    """The most restrictive of all."""
    conflict: tuple[str, ...]
    """Share-alike licences that allow no adaptation of the whole (`share_alike_conflict`)."""
    sources: Mapping[str, str]
    """Licence of each source."""

    def limits(self) -> list[str]:
        """What users must not do, and must do, a sentence each."""
        if not self.terms.known:
            return ["The licence of a source is unknown: nothing is permitted."]
        what = {
            "commercial": ("No commercial use", "commercial use"),
            "redistribution": ("No copies to others", "giving copies to others"),
            "derivatives": ("No changed copies to others", "giving changed copies to others"),
            "weights": ("No release of weights trained on it", "releasing weights trained on it"),
        }
        lines = []
        for use, (no, use_in_words) in what.items():
            answer = getattr(self.terms, use)
            if answer == "no":
                lines.append(f"{no}.")
            elif answer == "unstated":
                lines.append(f"Not stated, and so not permitted: {use_in_words}.")
        if self.conflict:
            lines.append(f"Share-alike licences in conflict: {', '.join(self.conflict)}.")
        elif self.terms.share_alike == "yes":
            lines.append("What is made from it must carry the same licence (share-alike).")
        if self.terms.attribution == "yes":
            lines.append("The sources must be named.")
        return lines

    def card(self, pretrained: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Facts for the card of a model trained on the data: licence, terms and limits.

        Args:
            pretrained: The card of the weights that training began with; what was trained on
                another's data is bound by their licence too. None when it began at random.
        """
        if pretrained is None:
            limits = [f"Licence of the training data: {limit}" for limit in self.limits()]
            return {"licence": self.licence, "terms": asdict(self.terms), "limits": limits}
        if "terms" not in pretrained:
            mine = self.card()
            unsaid = (
                "The card of the weights it began with does not tell the licence of their data."
            )
            return {**mine, "limits": [*mine["limits"], unsaid]}
        both = (self.licence, pretrained["licence"])
        terms = meet(self.terms, Terms(**pretrained["terms"]))
        conflict = share_alike_conflict(both)
        return Mixture(
            licence=mixture(both),
            terms=meet(terms, IN_CONFLICT) if conflict else terms,
            conflict=conflict,
            sources=self.sources,
        ).card()

    def to_mapping(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "licence": self.licence,
            "terms": asdict(self.terms),
            "share_alike_conflict": list(self.conflict),
            "sources": dict(self.sources),
        }


def registered_sources(registry: Registry) -> dict[str, RegisteredSource]:
    """All sources of a registry by name, with what their cards told.

    Raises:
        ConfigError: CONFIG-01 when a card in the registry is of another version of core-mri.
    """
    rows = registry.rows("SELECT source, licence, card FROM sources ORDER BY source")
    return {
        name: RegisteredSource(name=name, licence=licence, facts=_facts(card))
        for name, licence, card in rows
    }


def mixture_of(sources: Iterable[RegisteredSource]) -> Mixture:
    """The licence of data from several sources, at least one."""
    own = {source.name: source for source in sources}
    licences = [source.licence for source in own.values()]
    declared = _declared(own.values())
    return Mixture(
        licence=mixture(licences),
        terms=most_restrictive(licences, declared),
        conflict=share_alike_conflict(licences, declared),
        sources={name: source.licence for name, source in sorted(own.items())},
    )


def mixture_of_volumes(registry: Registry, rows: Iterable[VolumeRow]) -> Mixture:
    """The licence of some volumes of a registry, at least one."""
    known = registered_sources(registry)
    return mixture_of(known[name] for name in sorted({row.source for row in rows}))


def only_commercial(registry: Registry) -> str:
    """SQL condition on volumes: their source permits commercial use in so many words."""
    barred = [s.name for s in registered_sources(registry).values() if not _commercial(s)]
    names = ", ".join("'{}'".format(name.replace("'", "''")) for name in barred)
    return f"source NOT IN ({names})" if barred else "true"


def noncommercial_cost(registry: Registry, where: str) -> dict[str, int]:
    """Volumes by source that meet a condition and that `only_commercial` leaves out."""
    condition = f"({where or 'true'}\n) AND NOT ({only_commercial(registry)})"
    query = f"SELECT source, count(*) AS n FROM volumes WHERE {condition} GROUP BY ALL ORDER BY 1"
    return dict(registry.rows(query))


def may_redistribute(sources: Collection[RegisteredSource]) -> dict[str, str]:
    """Why data of these sources cannot be given to others, by source; empty when they can."""
    reasons = {}
    for source in sources:
        if not source.terms.known:
            reasons[source.name] = _unknown(source)
        elif source.terms.redistribution == "no":
            reasons[source.name] = f"{source.licence} forbids it"
        elif source.terms.redistribution == "unstated":
            reasons[source.name] = f"{source.licence} does not say that copies may be given"
    return reasons


def check_export(sources: Collection[RegisteredSource], *, public: bool) -> None:
    """See that data of these sources may leave the registry.

    An export for one's own use needs a known licence of every source; a public one their permission
    to give copies to others. There is no way round it but a stated licence.

    Args:
        sources: Sources of what is exported.
        public: The export is for others.

    Raises:
        DataError: DATA-28, naming the sources and what is wrong with each.
    """
    refused = may_redistribute(sources) if public else {}
    refused |= {source.name: _unknown(source) for source in sources if not source.terms.known}
    if refused:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(refused.items()))
        what = "release" if public else "export"
        raise DataError(
            "DATA-28",
            f"licences do not allow this {what}: {reasons}.",
            fix="Leave these sources out with --where. Once an unknown licence is known, the same "
            "`core-mri data ingest` with it (an SPDX id, LicenseRef-NAME) tells the registry.",
        )


def _unknown(source: RegisteredSource) -> str:
    unknown = source.licence == UNKNOWN
    return "its licence is unknown" if unknown else f"nothing is known of {source.licence}"


def _commercial(source: RegisteredSource) -> bool:
    return source.terms.permits("commercial")


def _declared(sources: Iterable[RegisteredSource]) -> Declared:
    """Terms by licence id; where two sources read one text differently, the stricter reading."""
    declared: dict[str, Terms] = {}
    for source in sources:
        for one, terms in declared_by(source.licence, source.facts).items():
            declared[one] = meet(declared[one], terms) if one in declared else terms
    return declared


@functools.lru_cache(maxsize=256)
def _facts(card: str) -> CardFacts:
    return load_config(CardFacts, json.loads(card))

"""`LICENSE`: the terms that go with a copy of the data, for people."""

from __future__ import annotations

from collections.abc import Sequence

from data_registry.governance.propagation import RegisteredSource, mixture_of


def licence_notes(sources: Sequence[RegisteredSource]) -> str:
    """The text: the terms of all sources together, then each source, and who asks to be cited.

    Args:
        sources: Where the data are from, at least one.
    """
    whole = mixture_of(sources)
    lines = [
        "# Licence",
        "",
        f"As a whole: `{whole.licence}`. The terms of all sources apply together:",
        "",
        *(f"- {limit}" for limit in whole.limits() or ["No restriction is known."]),
        "",
        "This is a reading by engineers, no legal advice. `manifest.csv` names the source of each "
        "file.",
        "",
    ]
    for source in sources:
        facts = source.facts
        lines += [
            f"## {source.name}",
            "",
            *([facts.title, ""] if facts.title else []),
            f"- Licence: {source.licence} ({source.terms})",
            f"- Agreement: {facts.agreement.name}, version {facts.agreement.version}, "
            f"{facts.agreement.url}",
            f"- Ethics: {facts.ethics}",
            f"- Cite: {facts.citation} DOI {facts.doi}",
            f"- Version: {facts.version}. From: {facts.homepage}",
            "",
        ]
    return "\n".join(lines)

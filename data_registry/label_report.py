"""How far labels can be trusted: what the sources agree on, where they do not, what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from data_registry.label_words import around
from data_registry.labels import LABELS, Votes
from data_registry.voting import vote

Item = tuple[Votes, Mapping[str, tuple[str, float]], int]
"""Votes; label and confidence of each kind; how many volumes or series have just these."""


@dataclass(kw_only=True)
class KindReport:
    """One kind of label over many volumes or series."""

    total: int = 0
    unknown: int = 0
    """Without any vote."""
    doubtful: int = 0
    """Labeled with a confidence below 0.7."""
    by_label: Counter[str] = field(default_factory=Counter)
    spoke: Counter[str] = field(default_factory=Counter)
    """Source -> how often it said something."""
    agree: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Two sources -> how often both spoke and agreed (a part agrees with what contains it)."""
    differ: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Two sources -> how often they contradicted each other."""
    disagreements: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(label, source, what it said instead) -> how often."""
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(what the source list declares, what all other sources together tell) -> how often."""


def report_labels(items: Iterable[Item]) -> dict[str, KindReport]:
    """Count agreement and disagreement of the sources, by kind of label."""
    reports = {kind: KindReport() for kind in LABELS}
    for votes, labels, number in items:
        for kind, report in reports.items():
            _count(report, kind, votes[kind], labels[kind], number)
    return reports


def compatible(first: str, second: str) -> bool:
    """Whether two regions are the same, or one is part of the other."""
    return first == second or first in around(second) or second in around(first)


def _count(
    report: KindReport, kind: str, votes: Mapping[str, str], verdict: tuple[str, float], number: int
) -> None:
    label, confidence = verdict
    report.total += number
    report.by_label[label] += number
    report.unknown += number * (not votes)
    report.doubtful += number * (bool(votes) and confidence < 0.7)
    for source, said in votes.items():
        report.spoke[source] += number
        if not compatible(said, label) and not (
            kind == "sequence" and _same_weighting(said, label)
        ):
            report.disagreements[label, source, said] += number
    for one, other in combinations(sorted(votes), 2):
        same = compatible(votes[one], votes[other])
        (report.agree if same else report.differ)[one, other] += number
    if "list" in votes:
        others = {s: said for s, said in votes.items() if s not in ("list", "image")}
        told = vote(others, around if kind == "region" else lambda _: ()).label
        report.confusion[votes["list"], told] += number


def _same_weighting(said: str, label: str) -> bool:
    return {said, label} == {"T1", "T1 contrast"}


def as_json(reports: Mapping[str, KindReport]) -> dict[str, object]:
    """The counts of `report_labels`, ready for JSON; pairs become lists of rows."""
    return {
        kind: {
            "total": r.total,
            "unknown": r.unknown,
            "doubtful": r.doubtful,
            "by_label": dict(r.by_label.most_common()),
            "spoke": dict(r.spoke.most_common()),
            "agreement": [
                {"sources": list(pair), "agree": r.agree[pair], "differ": r.differ[pair]}
                for pair in sorted(r.agree.keys() | r.differ.keys())
            ],
            "disagreements": [
                {"label": label, "source": source, "said": said, "count": n}
                for (label, source, said), n in r.disagreements.most_common()
            ],
            "confusion": [
                {"declared": declared, "told": told, "count": n}
                for (declared, told), n in r.confusion.most_common()
            ],
        }
        for kind, r in reports.items()
    }

"""How sources that say what an image shows are weighed against each other.

Each source s that names a label counts with its odds ``r / (1 - r)``, where r is how often it is
right when it speaks (`RELIABILITY`). With independent errors the odds of sources that agree
multiply; the label with the largest product wins, and

    ``confidence = O(label) / (O(label) + sum of O(rivals) + 1)``,   ``O = prod r / (1 - r)``,

where the 1 stands for "none of them is right". One source alone gives r, two that agree more, two
that contradict each other less. Errors of one hospital are not independent, so values near 1 are
too high: read them as an order, and see `core-mri data label --index` for what they meant on
128,143 series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_registry.label_words import UNKNOWN

RELIABILITY = {
    "list": 1.0,
    "geometry": 0.98,
    "description": 0.95,
    "header": 0.85,
    "study": 0.8,
    "sequence": 0.8,
    "path": 0.75,
    "timing": 0.7,
    "flavor": 0.65,
}
"""How often each source is right when it speaks.

- ``list``: the source list that was given with the data; it is taken at its word.
- ``geometry``: direction of the slices; near 45 degrees the nearest plane is a convention.
- ``description``: SeriesDescription, ProtocolName: typed for this series.
- ``header``: BodyPartExamined (wrong in 15 %: Gueld et al., Proc. SPIE 4685, 2002), ImageType,
  SequenceName, ContrastBolusAgent.
- ``study``: StudyDescription: the order, not the series.
- ``sequence``: the sequence label, where it implies an agent.
- ``path``: names of file and folders inside the source.
- ``timing``: EchoTime, RepetitionTime, InversionTime, ScanningSequence.
- ``flavor``: third value of ImageType, which says T2 for many a BOLD series.

`header` is the published figure; that the description beats it and the study alone does not was
read off disagreements in one half of the collections of `idc-index-data`; the rest is judgement.
An image classifier votes as ``image``, with its own probability.
"""

Around = Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class Verdict:
    """A label, the sources behind it joined by ``+`` (``none`` without any), its confidence."""

    label: str
    by: str
    confidence: float


NOTHING = Verdict(UNKNOWN, "none", 0.0)


def vote(
    votes: Mapping[str, str],
    around: Around,
    reliability: Mapping[str, float] = RELIABILITY,
    *,
    label: str = "",
) -> Verdict:
    """Weigh what the sources say.

    A source that names a part ("liver") and one that names what contains it ("abdomen") agree, and
    the part is the answer. Of equal odds the source that stands first in `reliability` decides.

    Args:
        votes: Source to label; ``unknown`` is no vote.
        around: What contains a label, from the inside out.
        reliability: Of each source in `votes`, in [0, 1].
        label: The answer where it is settled; then only its sources and confidence are asked.
    """
    order = list(reliability)
    known = {s: votes[s] for s in sorted(votes, key=order.index) if votes[s] != UNKNOWN}
    if not known:
        return NOTHING
    if "list" in known:
        label = known["list"]
    label = label or max(known.values(), key=lambda name: _odds(name, known, around, reliability))
    agree = _supporters(label, known, around)
    if "list" in agree:
        return Verdict(label, "+".join(agree), 1.0)
    own = _odds(label, known, around, reliability) if agree else 0.0
    rest = {s: v for s, v in known.items() if s not in agree}
    names = set(rest.values())
    inner = sorted(names.difference(*(around(name) for name in names)))
    rivals = sum(_odds(name, rest, around, reliability) for name in inner)
    return Verdict(label, "+".join(agree) or "none", round(own / (own + rivals + 1), 4))


def _supporters(label: str, known: Mapping[str, str], around: Around) -> list[str]:
    """Sources that name the label, a region around it or a part of it."""
    outer = around(label)
    return [s for s, v in known.items() if v == label or v in outer or label in around(v)]


def _odds(
    label: str, known: Mapping[str, str], around: Around, reliability: Mapping[str, float]
) -> float:
    return math.prod(
        _ratio(reliability[source])
        for source, name in known.items()
        if name == label or name in around(label)
    )


def _ratio(reliability: float) -> float:
    return reliability / max(1.0 - reliability, 1e-6)
